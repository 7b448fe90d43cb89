"""Tensors that look like optimizer states, although `state` of a layout file does not declare them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import RequestError, ReshardError, listed
from reshard.mesh.patterns import owner_of, patterns_of
from reshard.mesh.render import rule_line
from reshard.spec.layout import LayoutRule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from reshard.layout import Layout
    from reshard.mesh.resolve import Assigned
    from reshard.mesh.sharding import Whole


class UndeclaredStates:
    """Tensors that have the name of another tensor after a prefix, and its shape.

    Args:
        tensors: all parameters of the target, by name.
        owners: parameter that decides for each tensor, by the states that the layout file declares.
        where: name of the layout file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Whole], owners: Mapping[str, str], where: str) -> None:
        shapes = {name: tensor.shape for name, tensor in tensors.items() if tensor.shape and owners[name] == name}
        self.owners = {name: owner for name in shapes if (owner := owner_of(name, shapes)) != name}
        self._declared, self._owned, self._where = owners, shapes.keys(), where

    def prefix(self, name: str) -> str:
        """Return what precedes the name of the parameter in the name of a tensor in `owners`."""
        return name.removesuffix(self.owners[name])

    def explained(self, errors: Mapping[str, ReshardError]) -> dict[str, ReshardError]:
        """Return errors about tensors, with another remedy for those in `owners` whose parameters have no error."""
        return {
            name: self._refusal(name, error.what, error.fix) if self.owners.get(name, name) not in errors else error
            for name, error in errors.items()
        }

    def differing(self, assigned: Mapping[str, Assigned], layouts: Mapping[str, Layout]) -> dict[str, ReshardError]:
        """Return the refusals of tensors that the same axes divide as their parameters, but with other optimizer shards.

        Args:
            assigned: rule and sharding of each tensor that has one, by name.
            layouts: layouts of the same tensors.
        """
        what = "optimizer parallelism divides only one of it and its parameter, because their types have different sizes"
        found: dict[str, ReshardError] = {}
        for name, owner in self.owners.items():
            if name in layouts and owner in layouts and layouts[name] != layouts[owner]:
                one, other = assigned[name], assigned[owner]
                if (one.rule, one.sharding) == (other.rule, other.sharding):
                    found[name] = self._refusal(name, what, "write a rule for each of them")
        return found

    def _refusal(self, name: str, what: str, fix: str | None) -> RequestError:
        prefix = self.prefix(name)
        return RequestError(
            "StateNotDeclared",
            f"{what}; its name is that of another parameter after the prefix {prefix}, which is not in `state`",
            where=self._where,
            fix=f"add `{prefix}` to `state` if these are optimizer states, so that each is divided like its parameter; otherwise,"
            f" {fix}",
        )

    def patterns(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return patterns that match these parameters and no others. A declared state is omitted if its parameter exists."""
        found = {owner if (owner := self._declared[name]) in self._declared else name for name in names}
        return patterns_of(sorted(found), self._declared.keys() - found)

    def unmatched(self, names: Collection[str], most: int) -> list[RequestError]:
        """Return the refusal of parameters that no rule matches, if there are any.

        Args:
            names: names of these parameters.
            most: number of patterns in the message.
        """
        if not names:
            return []
        patterns = self.patterns(names)
        others = [name for name in names if name not in self.owners]
        prefixes = ", ".join(dict.fromkeys(f"`{self.prefix(name)}`" for name in sorted(names) if name in self.owners))
        fixes = (
            [f"add {prefixes} to `state` if these are optimizer states, which are divided like their parameters"]
            if prefixes
            else []
        )
        if others:
            rule = rule_line(LayoutRule(self.patterns(others)[0]))
            fixes.append(f"add a rule such as {rule}, which means that every rank of a stage holds it whole")
        fix = "; ".join([*fixes, "or omit these parameters with --exclude (spec.parameters.exclude)"])
        return [RequestError("ParameterUnmatched", f"no rule matches {listed(patterns, most)}", where=self._where, fix=fix)]

    def notes(self, names: Iterable[str]) -> list[str]:
        """Return messages about prefixes after which all tensors with rules have names of parameters.

        Args:
            names: names of the tensors that rules match.
        """
        found = dict.fromkeys(self.prefix(name) for name in names if name in self.owners)
        others = [name for name in self._owned if name not in self.owners]
        return [
            f"names after the prefix {prefix} are those of parameters; if these are optimizer states, add it to `state`, so that"
            " each is divided like its parameter"
            for prefix in found
            if not any(name.startswith(prefix) for name in others)
        ]
