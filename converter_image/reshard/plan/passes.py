"""Divide target ranks among passes over the source: ranks that need the same bytes are written together."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from reshard.checkpoint.dtypes import DTYPES
from reshard.layout import cell_box
from reshard.layout.box import contiguous_runs
from reshard.plan.distinct import bytes_needed
from reshard.plan.model import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.plan.geometry import Cell
    from reshard.plan.model import Kind
    from reshard.plan.planner import Planner

    Cells = tuple[tuple[int, ...], ...]

T = TypeVar("T")

# A pass copies each byte once more in memory, so it must save at least this share of what its ranks read one by one,
_LEAST_SAVED = 0.02
# or join the short runs of at least this share.
_LEAST_JOINED = 0.1
# What two ranks have in common does not connect them if it is less than this share of a file.
_LEAST_COMMON = 0.005
# Two ranks that read short runs of a slice nearly always have one of the first slices in common.
_SLICES = 64


class Limits(NamedTuple):
    """Limits of a pass.

    Attributes:
        files: maximum number of files that are written at the same time.
        tensors: maximum number of their tensors, and of the shards of which these consist, together.
        equal: whether equal files count as one.
        few: number of files up to which passes that share nothing are joined, so that several files are written at the same time.
        run: length of a contiguous read in bytes from which on it costs little to read it separately.
        ranks: maximum number of ranks, each of which has an open file.
    """

    files: int
    tensors: int
    equal: bool
    few: int
    run: int
    ranks: int = sys.maxsize


def passes(
    planner: Planner, ranks: Iterable[int], limits: Limits, known: dict[Hashable, File] | None = None
) -> tuple[tuple[int, ...], ...]:
    """Divide target ranks among as few passes as the limits allow. A rank that shares little with others has its own pass.

    Args:
        planner: planner of all target ranks.
        ranks: ranks to divide.
        limits: limits of a pass.
        known: cache of the files with each content, for several calls with the same planner and limits.
    """
    known = {} if known is None else known
    found, alone, alike = list[list["File"]](), list[int](), equal_targets(planner, ranks)
    alike = [tuple(some) for equal in alike for some in _cut(equal, limits.ranks if limits.equal else 1)]
    for files in _connected([_file(planner, equal, limits.run, known) for equal in alike]):
        for some in _cut(files, _most_files(files, limits)):
            if not _saves(planner, some):
                alone += _ranks(some)
            elif found and _fits([*found[-1], *some], limits):
                found[-1] += some
            else:
                found.append(some)
    return tuple(sorted([*map(_ranks, found), *((rank,) for rank in alone)]))


def _most_files(files: Sequence[File], limits: Limits) -> int:
    """Return the number of files like these that a pass can write."""
    most = max(1, min(limits.files, limits.tensors // max(1, *(file.tensors for file in files))))
    return min(most, limits.ranks // max(len(file.ranks) for file in files))


def _fits(files: Sequence[File], limits: Limits) -> bool:
    """Return whether files that have nothing in common are few enough for one pass."""
    return len(files) <= min(limits.few, _most_files(files, limits)) and _count(files) <= limits.ranks


def _file(planner: Planner, ranks: tuple[int, ...], run: int, known: dict[Hashable, File]) -> File:
    content = _content(planner, ranks[0])
    if content not in known:
        known[content] = File.of(planner, ranks, run)
    return known[content]._replace(ranks=ranks)


def _cut(items: Sequence[T], most: int) -> list[list[T]]:
    """Divide a sequence into the fewest parts of at most `most` items, which have nearly the same length."""
    count = -(-len(items) // most)
    return [list(items[len(items) * i // count : len(items) * (i + 1) // count]) for i in range(count)]


def _count(files: Iterable[File]) -> int:
    return sum(len(file.ranks) for file in files)


def _ranks(files: Iterable[File]) -> tuple[int, ...]:
    return tuple(sorted(rank for file in files for rank in file.ranks))


def equal_targets(planner: Planner, ranks: Iterable[int]) -> list[tuple[int, ...]]:
    """Divide target ranks into those whose files have the same tensors with the same content."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for rank in sorted(ranks):
        found[_content(planner, rank)].append(rank)
    return [tuple(equal) for equal in found.values()]


def _content(planner: Planner, rank: int) -> Hashable:
    """Return a key that is equal for ranks whose files have the same tensors with the same content."""
    if planner.model.same or planner.divides:
        return rank
    stage, local = divmod(rank, planner.model.target_devices)
    kinds = planner.members(rank)
    cells = tuple(layout.cells[local] for layout in dict.fromkeys(kind.target for kind in kinds))
    return stage, cells, tuple(copy for kind in kinds if (copy := _copy(planner, kind, rank)) is not None)


def _copy(planner: Planner, kind: Kind, rank: int) -> Hashable:
    """Return the source ranks whose copies a target rank gets, if other ranks may get others."""
    own = kind.per_rank or kind.role is Role.OWN
    return tuple(ranks for _, ranks in planner.needs(kind, rank)) if own else None


class File(NamedTuple):
    """Ranks whose files are equal, and what these files may have in common with others.

    Attributes:
        ranks: the ranks, in ascending order.
        place: position among files that have much in common: the stage, and the cells of its slices, largest parameters first.
        tensors: number of tensors, and of the shards of which they consist.
        nbytes: bytes of the source that the file needs.
        slices: slices of parameters.
        runs: source slices of which the file needs short runs, with the number of their bytes.
    """

    ranks: tuple[int, ...]
    place: tuple[int, Cells]
    tensors: int
    nbytes: int
    slices: frozenset[Hashable]
    runs: dict[Hashable, int]

    @classmethod
    def of(cls, planner: Planner, ranks: tuple[int, ...], run: int) -> File:
        """Return the file of these ranks. Reads of less than `run` bytes are short."""
        rank = ranks[0]
        stage, local = divmod(rank, planner.model.target_devices)
        members = planner.members(rank)
        sizes = {kind: kind.nbytes_at(local) * len(numbers) for kind, numbers in members.items()}
        nbytes = sum(sizes.values())
        slices, runs = set[Hashable](), dict[Hashable, int]()
        large = [kind for kind in sizes if sizes[kind] and sizes[kind] >= nbytes * _LEAST_COMMON]
        for kind in large:
            slices.add((kind, kind.target.cells[local], _copy(planner, kind, rank)))
            needs = planner.needs(kind, rank)[:_SLICES]
            if _has_short_runs(kind, local, needs[0][0], run):
                runs |= {(kind, cell): sizes[kind] // len(needs) for cell, _ in needs}
        layouts = dict.fromkeys(kind.target for kind in sorted(large, key=lambda kind: -sizes[kind]))
        place = stage, tuple(layout.cells[local] for layout in layouts)
        tensors = sum(map(len, members.values()))
        tensors += sum(len(planner.needs(kind, rank)) * len(members[kind]) for kind in members if kind.placement is not None)
        return cls(ranks, place, tensors, nbytes, frozenset(slices), runs)


def _has_short_runs(kind: Kind, local: int, cell: Cell, run: int) -> bool:
    """Return whether a rank needs runs of a source slice that are shorter than `run` bytes, with gaps between them."""
    if kind.placement is not None:
        held = kind.placement.tiling.box(*cell)
    else:
        held = cell_box(kind.shape, kind.source.parts if kind.source is not None else (1,) * len(cell), cell)
    common = held.intersect(kind.box(local))
    if common is None:
        return False
    length, _ = contiguous_runs(held.shape, common.relative_to(held.start))
    return length < common.size and length * DTYPES[kind.dtype].itemsize < run


def _connected(files: Sequence[File]) -> list[list[File]]:
    """Divide files into groups that have nothing in common. In each group, files with much in common are adjacent."""
    leader = list(range(len(files)))

    def leader_of(number: int) -> int:
        while leader[number] != number:
            leader[number] = number = leader[leader[number]]
        return number

    first: dict[Hashable, int] = {}
    for number, file in enumerate(files):
        for common in (*file.slices, *file.runs):
            leader[leader_of(number)] = leader_of(first.setdefault(common, number))
    found: dict[int, list[File]] = defaultdict(list)
    for number, file in enumerate(files):
        found[leader_of(number)].append(file)
    return [sorted(some, key=lambda file: file.place) for some in found.values()]


def _saves(planner: Planner, files: Sequence[File]) -> bool:
    """Return whether a pass reads less than its ranks one by one, or in much longer runs."""
    ranks = _ranks(files)
    if len(ranks) < 2:
        return False
    needed = bytes_needed(planner, ranks)
    if needed.total - needed.distinct >= needed.total * _LEAST_SAVED:
        return True
    users: dict[Hashable, int] = defaultdict(int)
    for file in files:
        for run in file.runs:
            users[run] += 1
    joined = sum(nbytes for file in files for run, nbytes in file.runs.items() if users[run] > 1)
    return joined >= _LEAST_JOINED * sum(file.nbytes for file in files)
