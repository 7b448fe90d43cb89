"""The plan of one target rank: the source ranks and boxes of each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.plan.columns import SCATTERED
from reshard.plan.replicas import shard_entry
from reshard.plan.runs import SMALL_BYTES, most_fetched, small_tensors, table_of

if TYPE_CHECKING:
    from reshard.checkpoint.inventory import TensorEntry
    from reshard.plan.columns import Numbers, Tables
    from reshard.plan.geometry import Geometry
    from reshard.plan.model import Kind, Parameter
    from reshard.plan.runs import Flags, Table


class TargetTensor(NamedTuple):
    """One tensor of the target file.

    Attributes:
        parameter: parameter that the tensor is a slice of.
        geometry: composition of the slice from source slices.
        ranks: source rank to read from, for each overlap of the geometry.
        entries: entry of the parameter in that rank's file, for each overlap.
    """

    parameter: Parameter
    geometry: Geometry
    ranks: tuple[int, ...]
    entries: tuple[TensorEntry, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the slice, in elements."""
        return self.geometry.box.shape

    @property
    def written_nbytes(self) -> int:
        """Bytes of the slice in the target's type."""
        return self.geometry.box.size * DTYPES[self.parameter.target_dtype].itemsize


@dataclass(frozen=True, eq=False)
class TensorGroup:
    """Tensors of one target file that have the same kind, and are therefore composed in the same way.

    Attributes:
        kind: kind of their parameters.
        numbers: positions of the tensors in the file, ascending.
        geometry: composition of each slice from source slices.
        ranks: source rank to read from, for each overlap of the geometry.
        positions: for each overlap, the position of each tensor's entry in the structure of that rank's file. Empty if metadata
            locates the shards of the parameters.
    """

    kind: Kind
    numbers: Numbers
    geometry: Geometry
    ranks: tuple[int, ...]
    positions: tuple[Numbers, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of each slice in the source's type, with padding."""
        return self.geometry.box.size * DTYPES[self.kind.dtype].itemsize

    @property
    def nbytes_needed(self) -> int:
        """Bytes of each slice that are in the source, without padding."""
        padding = sum(box.size for box in self.geometry.padding)
        return (self.geometry.box.size - padding) * DTYPES[self.kind.dtype].itemsize

    @property
    def written_nbytes(self) -> int:
        """Bytes of each slice in the target's type."""
        return self.geometry.box.size * DTYPES[self.kind.target_dtype].itemsize

    @cached_property
    def table(self) -> Table | None:
        """The runs of bytes of each slice, see `reshard.plan.runs.table_of`, or None if the tensors are not small."""
        is_small = max(self.nbytes, self.written_nbytes) <= SMALL_BYTES
        return table_of(self.geometry, DTYPES[self.kind.dtype].itemsize) if is_small else None


@dataclass(frozen=True, eq=False)
class RankPlan:
    """The tensors of one target rank's file.

    Attributes:
        rank: number of the rank.
        parameters: parameter of each tensor, in the order of the file.
        in_model: position of each parameter in the model.
        groups: the tensors, grouped by what they have in common.
        tables: entries of the source's files.
    """

    rank: int
    parameters: tuple[Parameter, ...]
    in_model: Numbers
    groups: tuple[TensorGroup, ...]
    tables: Tables

    @property
    def sources(self) -> tuple[int, ...]:
        """Source ranks that are read, in ascending order."""
        return tuple(sorted({rank for group in self.groups for rank in group.ranks}))

    @property
    def nbytes_needed(self) -> int:
        """Bytes of the source that the file requires."""
        return sum(group.nbytes_needed * len(group.numbers) for group in self.groups)

    @property
    def written_nbytes(self) -> int:
        """Bytes of all tensors in the target's type."""
        return sum(group.written_nbytes * len(group.numbers) for group in self.groups)

    @cached_property
    def group_of(self) -> Numbers:
        """The position of each tensor's group in `groups`."""
        found = np.zeros(len(self.parameters), np.int64)
        for number, group in enumerate(self.groups):
            found[group.numbers] = number
        return found

    @cached_property
    def ends(self) -> Numbers:
        """The number of bytes of the first tensors in the target's type: of none, of one, and so on up to all of them."""
        sizes = np.array([0, *(group.written_nbytes for group in self.groups)])
        return np.concatenate([[0], np.cumsum(sizes[1:][self.group_of])])

    @cached_property
    def most_fetched(self) -> tuple[Numbers, int]:
        """The maximum number of bytes that are fetched for the small ones among consecutive tensors.

        It is the difference of two elements of the array, which are as in `ends`, plus the second number.
        """
        most, last = np.zeros(len(self.parameters) + 1, np.int64), 0
        for group in self.groups:
            most[group.numbers + 1], of_last = most_fetched(self, group)
            last = max(last, of_last)
        return np.cumsum(most), last

    @cached_property
    def small(self) -> Flags:
        """Which tensors are small, so that they are copied together, see `reshard.plan.runs`."""
        return small_tensors(self)

    @cached_property
    def tensors(self) -> Sequence[TargetTensor]:
        """The tensors, which are created when they are requested."""
        return _Tensors(self)

    def offsets(self, group: TensorGroup, overlap: int, at: Numbers | slice = slice(None)) -> Numbers:
        """Return the first byte of the entries of a group's tensors in the source file of an overlap, or `SCATTERED`."""
        if group.positions:
            found: Numbers = self.tables.of_rank(group.ranks[overlap]).offsets[group.positions[overlap][at]]
            return found
        assert group.kind.placement is not None  # noqa: S101 - entries of other tensors have positions
        copy = group.kind.placement.copy_in(group.ranks[overlap], *group.geometry.cells[overlap])
        numbers = group.numbers[at].tolist()
        shards = map(attrgetter("shards"), map(self.parameters.__getitem__, numbers))
        return np.fromiter((each.offsets[copy] for each in shards), np.int64, len(numbers))

    def are_contiguous(self, group: TensorGroup) -> Flags:
        """Return which tensors of a group are one range of bytes in each source file, as all shards are that metadata locates."""
        found = np.ones(len(group.numbers), np.bool_)
        if group.positions:
            for overlap in range(len(group.ranks)):
                found &= self.offsets(group, overlap) != SCATTERED
        return found

    def entry(self, group: TensorGroup, overlap: int, at: int) -> TensorEntry:
        """Return the entry of a group's tensor in the source file of an overlap."""
        if group.positions:
            return self.tables.of_rank(group.ranks[overlap]).structure.tensors[int(group.positions[overlap][at])]
        return shard_entry(self.parameters[group.numbers[at]], group.ranks[overlap], group.geometry.cells[overlap])


class _Tensors(Sequence[TargetTensor]):
    """The tensors of a plan. Files are written tensor by tensor, so the last one is kept."""

    def __init__(self, plan: RankPlan) -> None:
        self._plan = plan
        self._last: tuple[int, TargetTensor] | None = None

    def __len__(self) -> int:
        return len(self._plan.parameters)

    @overload
    def __getitem__(self, number: int) -> TargetTensor: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[TargetTensor]: ...

    def __getitem__(self, number: int | slice) -> TargetTensor | Sequence[TargetTensor]:
        if isinstance(number, slice):
            return [self[i] for i in range(len(self))[number]]
        number = range(len(self))[number]
        last = self._last
        if last is None or last[0] != number:
            last = self._last = number, self._tensor(number)
        return last[1]

    def _tensor(self, number: int) -> TargetTensor:
        plan = self._plan
        group = plan.groups[plan.group_of[number]]
        at = int(np.searchsorted(group.numbers, number))
        entries = tuple(plan.entry(group, overlap, at) for overlap in range(len(group.ranks)))
        return TargetTensor(plan.parameters[number], group.geometry, group.ranks, entries)
