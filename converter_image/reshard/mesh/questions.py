"""Open questions of a derivation, and the messages that refuse parameters because of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError, RequestError, ReshardError
from reshard.mesh.problems import place
from reshard.mesh.readings import MOST_AXES, MOST_READINGS
from reshard.mesh.render import rule_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.mesh.sharding import Derived
    from reshard.spec.layout import LayoutRule

MOST_LINES = 12
_UNSHARDED = (
    "`derive.unsharded` with the patterns of all parameters that optimizer parallelism does not divide, or `[]` if it divides all"
)
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
    "sharded": (
        "OptimizerShardUnknown",
        "the source does not show whether optimizer parallelism divides it",
        "a second strategy with optimizer parallelism as a witness",
    ),
    "disputed": (
        "OptimizerShardUnknown",
        "the source, its witnesses and `derive.unsharded` contradict each other about whether optimizer parallelism divides it",
        "",
    ),
    "meshes": ("LayoutNotDerivable", "`zero` has axes of the other mesh: {}", ""),
    "stage": ("LayerStageUnknown", "neither a layer in its name nor the source determines its pipeline stage", ""),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a parameter, and the rules that can answer it.

    Attributes:
        kind: key of `_KINDS`, or `uneven`.
        about: axes, for the message.
        rules: possible answers.
        replicated: lists of axes that answer it as `replicated`, if they divide no parameter. An axis that the source does not
            have must then have its place in the order of the mesh.
        is_stage_open: whether the pipeline stage is unknown too. Then only a rule is an answer.
        is_sharded_open: whether it is unknown too if optimizer parallelism divides the parameter, which `unsharded` can state.
    """

    kind: str
    about: str = ""
    rules: tuple[LayoutRule, ...] = ()
    replicated: tuple[str, ...] = ()
    is_stage_open: bool = False
    is_sharded_open: bool = False

    def refused(self, names: tuple[str, ...], patterns: tuple[str, ...], where: str) -> Refused:
        """Return the refusal of the parameters with this question.

        Args:
            names: names of the parameters.
            patterns: patterns that match these names and no others.
            where: name of the layout file.
        """
        match = patterns[0] if len(patterns) == 1 else patterns
        rules = tuple(msgspec.structs.replace(rule, match=match) for rule in self.rules)
        lines = " or ".join(map(rule_line, rules[:MOST_LINES])) or "a rule for them"
        lines += f" or another of {len(rules)} possible rules" if len(rules) > MOST_LINES else ""
        where, fix = place(where, patterns), f"add to `rules`: {lines}"
        if self.kind == "uneven":
            what = f"its axes do not divide its shape in the mesh of the target: {self.about}"
            uneven = DataError("LayoutDoesNotDivide", what, where=where, fix=f"{fix}; or use another mesh, or --pad")
            return Refused(names, uneven, rules)
        reason, what, _ = _KINDS[self.kind]
        others = self._others()
        error = RequestError(reason, what.format(self.about), where=where, fix=fix + (f"; or use {others}" if others else ""))
        return Refused(names, error, rules)

    def _others(self) -> str:
        """Return the other answers than a rule."""
        if self.is_stage_open:
            return ""
        *_, remedy = _KINDS[self.kind]
        found = [f"`derive.replicated: [{axes}]` if that divides no parameter" for axes in self.replicated]
        if self.kind == "unseen" and found:
            found[-1] += " and has its place in the order of `mesh`"
        found += [remedy] if remedy else []
        if self.is_sharded_open and self.kind == "sharded":
            return "; or use ".join([_UNSHARDED, *found])
        return " or ".join(found) + (f", with {_UNSHARDED}" if self.is_sharded_open else "")


@dataclass(frozen=True, slots=True)
class Refused:
    """Parameters whose sharding is not derived, for one reason.

    Attributes:
        names: names of the parameters.
        error: reason, and how to answer the question.
        rules: possible rules for these parameters. The right one is among them, except for an axis without a witness, for a
            layout without a reading, and for axes that do not divide a shape.
    """

    names: tuple[str, ...]
    error: ReshardError
    rules: tuple[LayoutRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Derivation:
    """The parameters whose sharding follows from the source, and the others.

    Attributes:
        derived: shardings by name.
        refused: parameters whose sharding does not follow, by reason.
    """

    derived: Mapping[str, Derived]
    refused: tuple[Refused, ...]
