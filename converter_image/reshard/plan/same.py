"""Conversion of each rank's file: another format or other names, the same slices. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import MissingInputError, RequestError
from reshard.layout import Layout
from reshard.plan.model import Model, Parameter, Role
from reshard.plan.parameters import refuse_empty
from reshard.plan.rename import excluded_by, refuse_nothing, renamed
from reshard.spec.ranks import parse_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.checkpoint.inventory import Inventory
    from reshard.spec.request import RenameRule


def keep(
    inventory: Inventory,
    *,
    ranks: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[RenameRule] = (),
) -> Model:
    """Return a model in which each target rank has the tensors of the source rank with the same number.

    Without a strategy nothing says how slices belong together, and nothing has to: a parameter is one tensor of the files of
    one structure, and what another structure has under its name, in another shape perhaps, is another parameter. They keep the
    order of a `.ckpt`; a safetensors file has none that means anything, so as in MindSpore they go by name.

    Args:
        inventory: what the source's files hold.
        ranks: those that must be there, such as "0,2-5"; None: all up to the last that is.
        include: patterns of the source's names of parameters to write. Empty: all.
        exclude: patterns of the source's names of parameters to leave out, among those.
        rename: what parameters are called at the target.

    Raises:
        DataError: no file holds a parameter.
        MissingInputError: a rank is not there, or a parameter that is to be renamed.
        RequestError: two parameters would have one name; all are excluded; or the source's files are not those of ranks.
    """
    if inventory.unified:
        raise RequestError(
            "SourceIsUnified",
            "the source is a unified checkpoint: its files contain whole parameters, not ranks",
            where="source",
            fix="use --output unified or per-rank (spec.target.output), or use one of the files as the source",
        )
    refuse_empty(inventory)
    held = dict.fromkeys(entry.name for structure in inventory.structures for entry in structure.tensors)
    excluded = excluded_by(held, include, exclude)
    names = renamed(held, rename, excluded=excluded)
    refuse_nothing(names, [name for name in held if name not in names])
    total = inventory.files[-1].rank + 1
    _check_ranks(inventory, range(total) if ranks is None else parse_ranks(ranks, total))
    whole: dict[int, Layout] = {}
    parameters = [
        Parameter(
            name=names[entry.name],
            dtype=entry.dtype,
            shape=entry.shape,
            role=Role.OWN,
            source=None,
            source_stages=(),
            target=whole.setdefault(len(entry.shape), Layout.whole(len(entry.shape), total)),
            target_stages=(0,),
            structures=(number,),
            source_name=entry.name,
        )
        for number, structure in enumerate(inventory.structures)
        for entry in (structure.tensors if structure.format == "ckpt" else sorted(structure.tensors, key=lambda e: e.name))
        if entry.name in names
    ]
    return Model(
        inventory=inventory,
        source_devices=total,
        source_stages=1,
        target_devices=total,
        target_stages=1,
        parameters=tuple(parameters),
        excluded=tuple(excluded),
        excluded_by_rename=tuple(name for name in held if name not in names and name not in excluded),
        same=True,
    )


def _check_ranks(inventory: Inventory, wanted: Iterable[int]) -> None:
    there = {file.rank for file in inventory.files}
    absent = next((rank for rank in wanted if rank not in there), None)
    if absent is not None:
        raise MissingInputError(
            "SourceRankMissing",
            f"the source contains no checkpoint of rank {absent}",
            where="source",
            fix="restore it, or select existing ranks with --ranks (spec.target.ranks)",
        )
