"""Sum the fingerprints of slices, which the records of ranks contain, to those of whole parameters. Pure."""

from __future__ import annotations

import struct
from collections import defaultdict
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import numpy as np
import xxhash

from reshard.errors import DataError
from reshard.layout.fingerprint import odd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reshard.layout.box import Box

    Shape = tuple[int, ...]
    Sums = np.ndarray[Any, np.dtype[np.uint64]]
    Numbers = np.ndarray[Any, np.dtype[Any]]
    Flags = np.ndarray[Any, np.dtype[np.bool_]]


_Length = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_MARKS = 0x636F766572616765  # seed
_WORD = (1 << 64) - 1
_DIGITS = 16


class SliceFingerprints(msgspec.Struct, frozen=True):
    """The fingerprints of the same box of parameters of one shape in one file, see `reshard.layout.fingerprint`.

    Attributes:
        start: first element of the box.
        lengths: lengths of the box.
        numbers: positions of the parameters in the draft of the manifest, ascending, as little-endian numbers of 4 bytes.
        sums: fingerprints of the boxes, as little-endian numbers of 8 bytes.
    """

    start: tuple[_Length, ...]
    lengths: tuple[_Length, ...]
    numbers: bytes
    sums: bytes

    def __post_init__(self) -> None:
        if len(self.start) != len(self.lengths):
            raise ValueError("the start of a box has other dimensions than its lengths")
        if len(self.numbers) % 4 or len(self.sums) != 2 * len(self.numbers):
            raise ValueError("the numbers of parameters and of fingerprints differ")

    @classmethod
    def of(cls, box: Box, numbers: Numbers, sums: Sums) -> SliceFingerprints:
        """Return the record of these fingerprints. The parameters can have any order."""
        order = np.argsort(numbers)
        return cls(box.start, box.shape, numbers[order].astype("<u4").tobytes(), sums[order].astype("<u8").tobytes())


class _Slice(NamedTuple):
    """The files that contain one box of parameters of one shape.

    Attributes:
        first: digest of the fingerprints in the first file.
        ranks: target ranks. Each was the first with some of the parameters.
        held: the parameters, as a bit for each one of the shape.
    """

    first: int
    ranks: tuple[int, ...]
    held: int


class FingerprintSums:
    """Adds up the fingerprints in the files of ranks. Copies of a slice must agree.

    The fingerprints of slices are not kept, only a digest of those of each box and shape in the first file. If
    another file has another digest, the records of those before are read again to compare them.

    Args:
        shapes: shape of the whole tensors of each kind.
        kinds: kind of each parameter.
        again: function that returns the fingerprints in the file of a rank that was added.
        check: function that raises to cancel.

    Attributes:
        conflicts: parameters, by position, that have a slice of which files contain different elements, with a target rank for
            each of two contents.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        kinds: Iterable[int],
        again: Callable[[int], Iterable[SliceFingerprints]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.conflicts: dict[int, tuple[int, int]] = {}
        distinct = {shape: number for number, shape in enumerate(dict.fromkeys(shapes))}
        self._shapes = tuple(distinct)
        self._shape_of = np.array([distinct[shape] for shape in shapes], np.int32)[np.fromiter(kinds, np.int32)]
        self._counts = np.bincount(self._shape_of, minlength=len(distinct)).tolist()
        # The position of each parameter among those of its shape.
        ends = np.cumsum([0, *self._counts])
        self._places = np.empty(len(self._shape_of), np.int32)
        order = np.argsort(self._shape_of, kind="stable")
        self._places[order] = np.arange(len(order)) - ends[self._shape_of[order]]
        self._sums = np.zeros(len(self._shape_of), np.uint64)
        self._volumes = np.zeros(len(self._shape_of), np.uint64)
        self._differ = np.zeros(len(self._shape_of), np.bool_)
        self._check = check
        self._again = lru_cache(maxsize=1)(lambda rank: self._by_key(again(rank)))  # neighbours often differ from one rank
        self._slices: dict[bytes, _Slice] = {}  # by shape and box

    def add(self, rank: int, records: Iterable[SliceFingerprints]) -> None:
        """Add the fingerprints in the file of a target rank.

        Raises:
            DataError: a parameter does not exist, or a box does not belong to its shape.
        """
        for record in records:
            self._check()
            if record.numbers:
                self._add(rank, record)

    def _add(self, rank: int, record: SliceFingerprints) -> None:
        numbers, sums = numbers_of(rank, record.numbers, len(self._places)), np.frombuffer(record.sums, "<u8")
        key = self._key(record)
        digest = xxhash.xxh3_64_intdigest(record.numbers + record.sums)
        known = self._slices.get(key, _Slice(digest, (), 0))
        if known.ranks and known.first == digest:
            return
        shape = self._shape_of[numbers[0]]
        if (self._shape_of[numbers] != shape).any() or not _is_within(record, self._shapes[shape]):
            raise damaged(rank, f"a box of parameter {numbers[0]} does not belong to its shape")
        flags = np.zeros(self._counts[shape], np.bool_)
        flags[self._places[numbers]] = True
        mine = int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")
        if common := known.held & mine:
            bits = np.frombuffer(common.to_bytes(-(-len(flags) // 8), "little"), np.uint8)
            is_held = np.unpackbits(bits, bitorder="little")[self._places[numbers]].astype(np.bool_)
            self._compare(key, known.ranks, rank, numbers[is_held], sums[is_held])
            numbers, sums = numbers[~is_held], sums[~is_held]
        if len(numbers):
            self._sums[numbers] += sums
            self._volumes[numbers] += np.uint64(_volume(record.start, record.lengths))
            self._slices[key] = _Slice(known.first, (*known.ranks, rank), known.held | mine)

    def _compare(self, key: bytes, others: Iterable[int], rank: int, numbers: Numbers, sums: Sums) -> None:
        """Compare fingerprints of a rank with those of the same box in the files of other ranks, which have all of them."""
        for other in others:
            left = ~self._differ[numbers]
            numbers, sums = numbers[left], sums[left]
            if not len(numbers):
                return
            for record in self._again(other).get(key, ()):
                held = _numbers(record.numbers)
                common, here, there = np.intersect1d(numbers, held, assume_unique=True, return_indices=True)
                differing = common[sums[here] != np.frombuffer(record.sums, "<u8")[there]]
                self._differ[differing] = True
                self.conflicts |= dict.fromkeys(differing.tolist(), (other, rank))
                numbers, sums = np.delete(numbers, here), np.delete(sums, here)

    def _by_key(self, records: Iterable[SliceFingerprints]) -> Mapping[bytes, Sequence[SliceFingerprints]]:
        found = defaultdict[bytes, list[SliceFingerprints]](list)
        for record in records:
            if record.numbers:
                found[self._key(record)].append(record)
        return found

    def _key(self, record: SliceFingerprints) -> bytes:
        box = (*record.start, *record.lengths)
        return struct.pack(f"<{1 + len(box)}Q", self._shape_of[_numbers(record.numbers[:4])[0]], *box)

    def whole(self) -> tuple[Sums, Flags]:
        """Return the fingerprints of all parameters, and which of them are valid.

        The others have slices that are not known or that differ, or no elements.
        """
        volumes = np.array([_volume((0,) * len(shape), shape) for shape in self._shapes], np.uint64)[self._shape_of]
        return self._sums, (self._volumes == volumes) & (volumes != 0) & ~self._differ


def numbers_of(rank: int, content: bytes, count: int) -> Numbers:
    """Return the positions of parameters in the record of a rank.

    Args:
        rank: target rank.
        content: positions in ascending order, as little-endian numbers of 4 bytes.
        count: number of parameters.

    Raises:
        DataError: a parameter does not exist, or the order is another one.
    """
    numbers = _numbers(content)
    if len(numbers) and numbers.max() >= count:
        raise damaged(rank, f"it contains parameter {numbers.max()} of {count}")
    if (numbers[1:] <= numbers[:-1]).any():
        raise damaged(rank, "the parameters are not in ascending order")
    return numbers


def damaged(rank: int, what: str) -> DataError:
    """Return the error for the damaged record of a target rank."""
    return DataError(
        "DocumentInvalid", what, where=f"record of rank {rank}", fix="delete the file of this rank and run the transform again"
    )


def _numbers(content: bytes) -> Numbers:
    return np.frombuffer(content, "<u4")


def _is_within(record: SliceFingerprints, shape: Shape) -> bool:
    return len(shape) == len(record.start) and all(
        first + length <= whole for first, length, whole in zip(record.start, record.lengths, shape, strict=True)
    )


def _volume(start: Shape, lengths: Shape) -> int:
    """Return a number that is additive for disjoint boxes, like a volume.

    If every position along a dimension has a random mark, the product of the differences of a box's marks is additive, but two
    different sets of elements have the same sum only by chance, with a probability of about 2^-60.
    """
    sides = zip(start, lengths, strict=True)
    return prod(_mark(number, first + length) - _mark(number, first) for number, (first, length) in enumerate(sides)) & _WORD


@lru_cache(maxsize=1 << 12)  # the boxes of a checkpoint share most positions
def _mark(dimension: int, position: int) -> int:
    number = (dimension << 56) + position & _WORD
    return int(odd(np.array([number], np.uint64), _MARKS)[0]) >> 1


def texts_of(fingerprints: Sums) -> list[str]:
    """Return fingerprints as text."""
    text = fingerprints.astype(">u8").tobytes().hex()
    return [text[at : at + _DIGITS] for at in range(0, len(text), _DIGITS)]
