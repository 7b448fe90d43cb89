"""Whole parameters, spread over files of bounded size. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reshard.plan.parameters import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.plan.parameters import Model, Parameter


def unify(model: Model, part_bytes: int) -> Model:
    """A model whose target is one whole rank, as one whose target ranks are parts of that.

    Each part is filled in the order of the source up to `part_bytes`, so that neighbours stay together and a load opens few
    files; a parameter longer than that has a part for itself. What no strategy names makes up the last part.
    """
    named = [p for p in model.parameters if p.role is not Role.REPLICATED]
    others = [p for p in model.parameters if p.role is Role.REPLICATED]
    parts = [*_filled(named, part_bytes), *([others] if others else [])]
    spread = [replace(p, target_stages=(number,)) for number, part in enumerate(parts) for p in part]
    return replace(model, target_stages=len(parts), parameters=tuple(spread))


def _filled(parameters: Iterable[Parameter], part_bytes: int) -> list[list[Parameter]]:
    parts: list[list[Parameter]] = []
    room = 0
    for parameter in parameters:
        if not parts or parameter.slice_nbytes > room:
            parts.append([])
            room = part_bytes
        parts[-1].append(parameter)
        room -= parameter.slice_nbytes
    return parts
