"""Open questions of a derivation, and the messages that refuse parameters because of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import RequestError
from reshard.mesh.readings import MOST_AXES, MOST_READINGS
from reshard.mesh.render import rule_line

if TYPE_CHECKING:
    from reshard.spec.layout import LayoutRule

MOST_LINES = 12
_SHOWN = 5  # patterns in one message
_WITNESS = "a second strategy as a witness"
# By kind: reason, what is unknown, and other remedies than a rule.
_KINDS = {
    "reading": ("LayoutNotDerivable", "no block of axes of the source{} divides it as it is divided there", ""),
    "axes": ("LayoutNotDerivable", f"more than {MOST_AXES} axes have several ranks: {{}}", ""),
    "zero": ("LayoutNotDerivable", "the source divides it by only some of the axes in `zero`: {}", ""),
    "readings": ("LayoutAmbiguous", "its layout in the source has several readings in the mesh {}", _WITNESS),
    "many": ("LayoutAmbiguous", f"its slices in the source have more than {MOST_READINGS} readings in the mesh {{}}", ""),
    "default": (
        "LayoutAmbiguous",
        "its layout in the source is also that of an operator without a strategy, whose slices MindSpore counts by the shape",
        _WITNESS,
    ),
    "unseen": ("NoWitness", "the source has one rank along {0}, so it does not show what {0} divides", _WITNESS),
    "conditional": (
        "NoWitness",
        "the source cannot divide its shape by {0}, but the target can, so the source does not show whether {0} divides it",
        _WITNESS,
    ),
    "sharded": ("OptimizerShardUnknown", "the source does not show whether optimizer parallelism divides it", _WITNESS),
    "stage": ("LayerStageUnknown", "neither a layer in its name nor the source determines its pipeline stage", ""),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a parameter, and the rules that can answer it.

    Attributes:
        kind: key of `_KINDS`.
        about: axes, for the message.
        rules: possible answers.
        replicated: lists of axes that answer it as `replicated`, if they divide no parameter. An axis that the source does not
            have must then have its place in the order of the mesh.
    """

    kind: str
    about: str = ""
    rules: tuple[LayoutRule, ...] = ()
    replicated: tuple[str, ...] = ()

    def refused(self, names: tuple[str, ...], patterns: tuple[str, ...], where: str) -> Refused:
        """Return the refusal of the parameters with this question.

        Args:
            names: names of the parameters.
            patterns: patterns that match these names and no others.
            where: name of the layout file.
        """
        match = patterns[0] if len(patterns) == 1 else patterns
        rules = tuple(msgspec.structs.replace(rule, match=match) for rule in self.rules)
        shown = ", ".join(patterns[:_SHOWN]) + (f" and {len(patterns) - _SHOWN} more" if len(patterns) > _SHOWN else "")
        lines = " or ".join(map(rule_line, rules[:MOST_LINES])) or "a rule for them"
        lines += f" or another of {len(rules)} possible rules" if len(rules) > MOST_LINES else ""
        reason, what, remedy = _KINDS[self.kind]
        remedies = [f"`derive.replicated: [{axes}]` if that divides no parameter" for axes in self.replicated]
        if self.kind == "unseen" and remedies:
            remedies[-1] += " and has its place in the order of `mesh`"
        others = " or ".join([*remedies, *([remedy] if remedy else [])])
        error = RequestError(
            reason,
            what.format(self.about),
            where=f"{where}: parameters {shown}",
            fix=f"add to `rules`: {lines}" + (f"; or use {others}" if others else ""),
        )
        return Refused(names, error, rules)


@dataclass(frozen=True, slots=True)
class Refused:
    """Parameters whose sharding is not derived, for one reason.

    Attributes:
        names: names of the parameters.
        error: reason, and how to answer the question.
        rules: possible rules for these parameters. The right one is among them, except for an axis without a witness and for a
            layout without a reading.
    """

    names: tuple[str, ...]
    error: RequestError
    rules: tuple[LayoutRule, ...]
