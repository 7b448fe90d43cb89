"""Find the kind of each parameter: its type, shape and layouts on both sides. Parameters that are alike share one kind."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint.dtypes import DTYPES, OBJECT
from reshard.errors import DataError
from reshard.layout import Layout
from reshard.plan.model import Kind, Role
from reshard.plan.pad import padded
from reshard.plan.stages import SourceStages, whole_shape

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from collections.abc import Set as AbstractSet

    from reshard.checkpoint.inventory import Inventory, TensorEntry
    from reshard.model import Shards
    from reshard.plan.pad import Lengths
    from reshard.plan.stages import SourceCuts
    from reshard.strategy import Strategy

# The stages in which a strategy names a parameter, each with its layout and the whole shape that the strategy states.
Named = tuple[tuple[int, Layout, tuple[int, ...] | None], ...]


def names_in(strategy: Strategy | None) -> dict[str, Named]:
    """Return the parameters of a strategy, each with its stages. Parameters with the same layouts share one object."""
    found: dict[str, Named] = {}
    equal: dict[Hashable, Named] = {}
    for number, layouts in enumerate(strategy.stages if strategy else (), strategy.first if strategy else 0):
        shapes = strategy.shapes[number - strategy.first] if strategy and strategy.shapes else {}
        if not (found or shapes):  # usually, there are no other stages
            distinct = {id(layout): ((number, layout, None),) for layout in layouts.values()}
            named_by = {key: equal.setdefault(named, named) for key, named in distinct.items()}
            found = dict(zip(layouts, map(named_by.__getitem__, map(id, layouts.values())), strict=True))
            continue
        known: dict[Hashable, Named] = {}  # by identity, because comparing layouts takes longer
        for name, layout in layouts.items():
            before, shape = found.get(name, ()), shapes.get(name)
            key = (id(layout), id(before), shape)
            named = known.get(key)
            if named is None:
                named = (*before, (number, layout, shape))
                named = known[key] = equal.setdefault(named, named)
            found[name] = named
    return found


class _Whereabouts(NamedTuple):
    """A parameter in the source's files and in both strategies.

    Attributes:
        name: name in the source's files.
        new_name: name in the target's files.
        entry: entry in the first structure that contains the parameter.
        structures: positions in `Inventory.structures` of the structures that contain the parameter.
        role: reason why the parameter is in the target.
        source: stages in which the source strategy names the parameter.
        target: stages in which the target strategy names the parameter.
    """

    name: str
    new_name: str
    entry: TensorEntry
    structures: tuple[int, ...]
    role: Role
    source: Named
    target: Named


class Kinds:
    """The kinds of the parameters of one model.

    Args:
        inventory: files of the source.
        strategies: source strategy and target strategy.
        devices: number of ranks per pipeline stage of the target.
        shards: shards of the parameters that metadata locates, by source name.
        lengths: new lengths of the parameters that are padded or trimmed, by source name.
        may_differ: source names of parameters whose copies may differ, if no strategy names them.
    """

    def __init__(
        self,
        inventory: Inventory,
        strategies: tuple[Strategy | None, Strategy | None],
        devices: int,
        shards: Mapping[str, Shards],
        lengths: Mapping[str, Lengths],
        may_differ: AbstractSet[str],
    ) -> None:
        source, self._target = strategies
        self._stages = None if inventory.unified else SourceStages(inventory, source)
        self._devices, self._shards, self._lengths, self._may_differ = devices, shards, lengths, may_differ

    def of(
        self,
        name: str,
        new_name: str,
        entry: TensorEntry,
        structures: tuple[int, ...],
        role: Role,
        source: Named,
        target: Named,
    ) -> tuple[tuple[Kind, ...], bool]:
        """Return one kind for each distinct layout of target stages. Usually, there is only one.

        For arguments, see `_Whereabouts`.

        Returns:
            The kinds, and whether parameters with equal arguments except for their names have the same kinds. This excludes
            parameters that the metadata, the lengths or `may_differ` name.

        Raises:
            DataError: files and strategies contradict each other, or a layout does not divide the parameter.
            RequestError: the parameter cannot be padded.
        """
        cuts: SourceCuts = ()
        are_alike = True
        if role is not Role.REPLICATED and self._stages is not None:
            entry, cuts = self._stages.cuts(name, entry, structures, tuple(stage for stage, *_ in source))
            are_alike = self._stages.are_alike(structures, len(source))
        found = _Whereabouts(name, new_name, entry, structures, role, source, target)
        return self._find(found, cuts, per_rank=role is Role.REPLICATED and name in self._may_differ), are_alike

    def _find(self, found: _Whereabouts, cuts: SourceCuts, *, per_rank: bool) -> tuple[Kind, ...]:
        entry, target = found.entry, self._target
        before, source_stages = cuts[0] if cuts else (None, ())
        shape = entry.shape if before is None else whole_shape(found.name, entry, before)
        new_shape = padded(entry, shape, self._lengths.get(found.name, {}))
        divided = target is None and self._devices > 1 and found.role is Role.CUT and entry.dtype != OBJECT
        default = Layout.chunks(len(shape), self._devices) if divided else Layout.whole(len(shape), self._devices)
        stages_by_layout: dict[Layout, list[int]] = defaultdict(list)
        if target is not None and found.target:
            for stage, *_ in found.target:
                stages_by_layout[target.layout(stage, found.new_name, new_shape, sliced=False)].append(stage)
        else:
            stages_by_layout[default] = list(range(len(target.stages) if target else 1))
        for layout in stages_by_layout:
            _check_fit(found, new_shape, layout)
        return tuple(
            Kind(
                dtype=entry.dtype,
                shape=shape,
                role=found.role,
                source=before,
                source_stages=source_stages,
                target=layout,
                target_stages=tuple(stages),
                structures=found.structures,
                other_cuts=cuts[1:],
                placement=shards.placement if (shards := self._shards.get(found.name)) is not None else None,
                new_shape=new_shape if new_shape != shape else None,
                per_rank=per_rank,
            )
            for layout, stages in stages_by_layout.items()
        )


def _check_fit(found: _Whereabouts, shape: tuple[int, ...], layout: Layout) -> None:
    """Check that a layout of the target divides a parameter of this whole shape.

    Raises:
        DataError: it does not, or it divides a byte.
    """
    try:
        layout.box(shape, 0)
    except DataError as error:
        _refuse_split_bytes(found, shape, layout)
        raise DataError(
            error.reason,
            f"the target strategy does not fit the tensor {found.entry.dtype}{list(shape)}: {error.what}",
            where=f"parameter {found.new_name}",
            fix="use a target strategy that fits; if this one is JSON, save it in the protobuf form (.ckpt) instead",
        ) from error


def _refuse_split_bytes(found: _Whereabouts, shape: tuple[int, ...], layout: Layout) -> None:
    """Refuse a layout that divides rows of numbers with less than a byte, but not at the ends of bytes.

    Raises:
        DataError: the layout divides a byte.
    """
    dtype = DTYPES[found.entry.dtype]
    if dtype.values == 1 or len(shape) != layout.ndim or not shape:
        return
    in_numbers = dtype.count_values(shape)
    if all(n % k == 0 for n, k in zip(in_numbers, layout.parts, strict=True)):
        raise DataError(
            "NotByteAligned",
            f"the target strategy divides rows of {in_numbers[-1]} {dtype.safetensors} numbers into {layout.parts[-1]} slices,"
            f" but only multiples of {dtype.values} numbers fill whole bytes",
            where=f"parameter {found.new_name}",
            fix="use a target strategy that divides other dimensions of this parameter",
        )
