"""Convert the file of each rank to another format or other parameter names, with the same slices."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from reshard.checkpoint import in_order
from reshard.errors import MissingInputError, RequestError
from reshard.layout import Layout
from reshard.plan.model import Kind, Model, Parameter, Role
from reshard.plan.parameters import refuse_empty
from reshard.plan.rules import excluded_by, refuse_nothing, renamed
from reshard.spec.ranks import parse_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.checkpoint.inventory import Inventory
    from reshard.spec.rules import RenameRule


def passthrough_model(
    inventory: Inventory,
    *,
    ranks: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[RenameRule] = (),
) -> Model:
    """Return a model in which each target rank has the tensors of the source rank with the same number.

    No strategy is needed, because slices are not joined. Each tensor of each structure becomes a separate parameter, even if
    several structures contain the same name. Parameters from a `.ckpt` file keep their order. Parameters from a safetensors file
    are sorted by name, as in MindSpore.

    Args:
        inventory: files of the source.
        ranks: ranks that must exist, such as "0,2-5". None means all ranks up to the last existing one.
        include: patterns of source names of parameters to write. Empty means all.
        exclude: patterns of source names of parameters to omit, among those.
        rename: rules that rename parameters.

    Raises:
        DataError: no file contains a parameter.
        MissingInputError: a rank, or a parameter in a rename rule, does not exist.
        RequestError: two parameters would have the same name, all parameters are excluded, or the source is a unified checkpoint.
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

    @cache
    def kind(dtype: str, shape: tuple[int, ...], structure: int) -> Kind:
        return Kind(dtype, shape, Role.OWN, None, (), Layout.whole(len(shape), total), (0,), (structure,))

    parameters = [
        Parameter(names[entry.name], entry.name, kind(entry.dtype, entry.shape, number))
        for number, structure in enumerate(inventory.structures)
        for entry in in_order(structure)
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
            fix="restore it, or select existing ranks with --only-ranks (spec.target.onlyRanks)",
        )
