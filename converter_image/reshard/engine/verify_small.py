"""Compare thousands of small tensors of a written file with the source at a time.

The places of elements are calculated one by one, as in `reshard.engine.verify`, but only once for tensors that are alike. Nothing
is shared with the copy: neither the tables of entries, nor the joining of reads, nor the placing of what they return.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.cast import cast
from reshard.engine.verify_entries import NONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.engine.gather import SourceFiles
    from reshard.engine.verify_entries import Entries
    from reshard.model import Placement
    from reshard.plan import RankPlan
    from reshard.plan.columns import Numbers
    from reshard.plan.rank import TensorGroup
    from reshard.plan.runs import Flags
    from reshard.storage.protocol import Reader

# Bytes and pieces that are compared at a time, the bytes that are read at a time, and the longest gap that is read as well.
_BLOCK_BYTES = 1 << 20
_MOST_PIECES = 1 << 15
_GAP_BYTES = 4096


class Region(NamedTuple):
    """The elements of a target slice that one source slice holds.

    Attributes:
        start: first element in the target's slice, along each dimension.
        shape: number of elements along each dimension.
        origin: first element in the source's slice.
        rank: source rank that the plan reads it from.
        entry: entry of the tensor in that rank's file. None: the elements are padding.
        tile: number of the tile that the source slice is. None: the metadata of the source does not locate shards.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    origin: tuple[int, ...]
    rank: int
    entry: TensorEntry | None
    tile: int | None = None


class Alike(NamedTuple):
    """Small tensors of one group.

    Attributes:
        group: the group.
        regions: regions of each of its tensors, without padding. The entries are those of the first one.
        pieces: runs of bytes of each tensor that are contiguous on both sides: number of the region, offset in the source's
            slice, offset in the target's slice, and length, in bytes of the source's type.
    """

    group: TensorGroup
    regions: tuple[Region, ...]
    pieces: np.ndarray[tuple[int, int], np.dtype[np.int64]]

    @classmethod
    def of(cls, group: TensorGroup, regions: Sequence[Region]) -> Alike:
        """Calculate the pieces of regions, element by element."""
        filled = tuple(region for region in regions if region.entry is not None)
        itemsize = DTYPES[group.kind.dtype].itemsize
        rows = [np.zeros((0, 4), np.int64)]
        for number, region in enumerate(filled):
            source, target = _flats(region, group.geometry.box.shape)
            starts = np.flatnonzero(np.append(True, (np.diff(source) != 1) | (np.diff(target) != 1)))
            lengths = np.diff(np.append(starts, len(source)))
            columns = source[starts] * itemsize, target[starts] * itemsize, lengths * itemsize
            rows.append(np.stack([np.full_like(starts, number), *columns], axis=1))
        return cls(group, filled, np.concatenate(rows))


def _flats(region: Region, shape: tuple[int, ...]) -> tuple[Numbers, Numbers]:
    """Return the flat indexes of a region's elements in the source's slice, and in the target's slice of this shape."""
    assert region.entry is not None  # noqa: S101 - the caller asked
    count = prod(region.shape)
    inside = np.unravel_index(np.arange(count), region.shape) if region.shape else ()
    return _flat(region.entry.shape, region.origin, inside, count), _flat(shape, region.start, inside, count)


def _flat(shape: tuple[int, ...], origin: tuple[int, ...], inside: Sequence[Numbers], count: int) -> Numbers:
    """Return the flat indexes of the elements of a slice, whose places are counted from `origin`."""
    flat = np.zeros(count, np.int64)
    for length, start, index in zip(shape, origin, inside, strict=True):
        flat = flat * length + start + index
    return flat


class Pieces(NamedTuple):
    """Pieces of files, and their places in a buffer, as parallel arrays.

    Attributes:
        ranks: source rank of each piece.
        sources: first byte in the file.
        targets: first byte in the buffer.
        lengths: number of bytes.
    """

    ranks: Numbers
    sources: Numbers
    targets: Numbers
    lengths: Numbers


def _read(pieces: Pieces, reader: Callable[[int], Reader], into: bytearray) -> None:
    """Read pieces, those of each block of bytes together, with the gaps between neighbours."""
    order = np.lexsort((pieces.sources, pieces.ranks))
    ranks, sources, targets, lengths = (column[order] for column in pieces)
    if not len(ranks):
        return
    gaps = sources[1:] - sources[:-1] - lengths[:-1]
    near = (ranks[1:] == ranks[:-1]) & (gaps >= 0) & (gaps <= _GAP_BYTES)
    # Places of the pieces if everything were read into one buffer, one read after the other.
    places = np.concatenate([[0], np.cumsum(lengths[:-1] + np.where(near, gaps, 0))])
    blocks = places // _BLOCK_BYTES
    new_block = blocks[1:] != blocks[:-1]
    first_of_reads = np.flatnonzero(np.concatenate([[True], ~near | new_block]))
    first_of_blocks = [0, *(np.flatnonzero(new_block) + 1).tolist(), len(ranks)]
    last_of_reads = np.append(first_of_reads[1:], len(ranks)) - 1
    ends = places[last_of_reads] + lengths[last_of_reads]
    buffer = np.empty(_BLOCK_BYTES + int(lengths.max()), np.uint8).data
    for first, end in pairwise(first_of_blocks):
        content = buffer[: int(places[end - 1] + lengths[end - 1] - places[first])]
        reads = slice(*np.searchsorted(first_of_reads, (first, end)).tolist())
        heads = first_of_reads[reads]
        columns = ranks[heads], sources[heads], places[heads] - places[first], ends[reads] - places[first]
        for rank, source, low, high in zip(*(column.tolist() for column in columns), strict=True):
            reader(rank).read_into(content[low:high], source)
        for length in np.flatnonzero(np.bincount(lengths[first:end])).tolist():
            which = first + np.flatnonzero(lengths[first:end] == length)
            _windows(into, length)[targets[which]] = _windows(content, length)[places[which] - places[first]]


def _windows(content: bytearray | memoryview, length: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Return the ranges of this length, from every byte of a buffer, as elements of an array that is a view of it."""
    return np.ndarray((len(content) - length + 1,), np.dtype((np.void, length)), content, strides=(1,))


class SmallComparison:
    """Comparison of small tensors of one written file with the source.

    Args:
        written: reader of the file.
        plan: plan of the file.
        files: files of the source.
        held: function that returns the entries of a source rank's file.
        alike: what the tensors of each group have in common, by the position of the group.
    """

    def __init__(
        self, written: Reader, plan: RankPlan, files: SourceFiles, held: Callable[[int], Entries], alike: Mapping[int, Alike]
    ) -> None:
        self._written, self._plan, self._files, self._held, self._alike = written, plan, files, held, alike

    def differing(self, numbers: Numbers, offsets: Numbers) -> Iterator[int]:
        """Yield the numbers of the tensors that differ from the source, or whose entries are not as expected.

        Args:
            numbers: numbers of the tensors, ascending.
            offsets: first byte of the content of each in the written file.
        """
        groups = self._plan.group_of[numbers]
        nbytes, counts = np.zeros((2, len(self._plan.groups)), np.int64)
        for position, each in self._alike.items():
            nbytes[position] = max(each.group.nbytes, each.group.written_nbytes)
            counts[position] = len(each.pieces)
        bytes_to, pieces_to = np.cumsum(nbytes[groups]), np.cumsum(counts[groups])
        first = 0
        while first < len(numbers):
            before = (int(bytes_to[first - 1]), int(pieces_to[first - 1])) if first else (0, 0)
            most = (
                bytes_to.searchsorted(before[0] + _BLOCK_BYTES, "right"),
                pieces_to.searchsorted(before[1] + _MOST_PIECES, "right"),
            )
            end = max(first + 1, int(min(most)))
            yield from self._compare(numbers[first:end], offsets[first:end])
            first = end

    def _compare(self, numbers: Numbers, offsets: Numbers) -> Iterator[int]:
        """Yield those of some tensors that differ."""
        groups = self._plan.group_of[numbers]
        positions = np.unique(groups).tolist()
        sizes, written_sizes = np.zeros((2, len(self._plan.groups)), np.int64)
        for position in positions:
            group = self._plan.groups[position]
            sizes[position], written_sizes[position] = group.nbytes, group.written_nbytes
        places, total = _places(sizes[groups])
        targets, written_total = _places(written_sizes[groups])
        sources, wrong = [], np.zeros(len(numbers), np.bool_)
        for position in positions:
            which = groups == position
            pieces, unexpected = self._pieces(self._alike[position], numbers[which], places[which])
            wrong[which] |= unexpected
            sources.append(pieces)
        yield from numbers[wrong].tolist()
        if wrong.any():
            return
        expected, found = bytearray(total), bytearray(written_total)
        _read(Pieces(*map(np.concatenate, zip(*sources, strict=True))), self._files.reader, expected)
        _read(Pieces(np.zeros_like(numbers), offsets, targets, written_sizes[groups]), lambda _: self._written, found)
        is_cast = any(self._plan.groups[position].kind.cast is not None for position in positions)
        if not is_cast and found == expected:
            return
        rows = (column.tolist() for column in (numbers, groups, places, targets))
        for number, position, at, target in zip(*rows, strict=True):
            kind, here = self._plan.groups[position].kind, found[target : target + int(written_sizes[position])]
            content = expected[at : at + int(sizes[position])]
            if kind.cast is not None:
                uncast, content = content, bytearray(len(here))
                cast(memoryview(uncast), kind.dtype, memoryview(content), kind.cast)
            if here != content:
                yield number

    def _pieces(self, alike: Alike, numbers: Numbers, places: Numbers) -> tuple[Pieces, Flags]:
        """Return the pieces of the tensors of a group, and which tensors do not have the expected entries."""
        offsets = np.zeros((len(alike.regions), len(numbers)), np.int64)
        known: dict[tuple[Entries, tuple[int, ...]], Numbers] = {}
        for number, region in enumerate(alike.regions):
            assert region.entry is not None  # noqa: S101 - padding is left out
            if alike.group.kind.placement is not None:
                offsets[number] = self._placed(alike.group.kind.placement, region, numbers)
                continue
            key = held, shape = self._held(region.rank), region.entry.shape
            if key not in known:
                positions = held.positions(self._plan.parameters)[numbers]
                as_expected = held.have_types(positions, [(alike.group.kind.dtype, shape)], np.zeros_like(positions))
                known[key] = np.where(as_expected, held.offsets[positions], NONE)
            offsets[number] = known[key]
        region_of, source, target, length = alike.pieces.T
        sources = offsets[region_of].T + source
        ranks = np.array([region.rank for region in alike.regions], np.int64)[region_of]
        lengths = np.broadcast_to(length, sources.shape)
        columns = (np.broadcast_to(ranks, sources.shape), sources, places[:, np.newaxis] + target, lengths)
        wrong: Flags = np.any(offsets == NONE, axis=0)
        return Pieces(*map(np.ravel, columns)), wrong

    def _placed(self, placement: Placement, region: Region, numbers: Numbers) -> list[int]:
        """Return the first byte of each tensor's shard in a region's file, or `NONE` for tensors with another placement.

        It does not use `Placement.copy_in`, as the plan does, so that a mistake there is detected.
        """
        assert region.tile is not None  # noqa: S101 - metadata locates the shards
        first, end = placement.first[region.tile : region.tile + 2]
        copy = first + np.flatnonzero(placement.files[first:end] == region.rank)[0]  # the first tensor was found in this file
        shards = [self._plan.parameters[number].shards for number in numbers.tolist()]
        return [NONE if each is None or each.placement is not placement else int(each.offsets[copy]) for each in shards]


def _places(sizes: Numbers) -> tuple[Numbers, int]:
    """Return the start of each of consecutive ranges of these sizes, and their total size."""
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1])
