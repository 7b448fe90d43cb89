"""Sum the fingerprints of slices, which the records of ranks contain, to those of whole parameters. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import numpy as np
import xxhash

from reshard.errors import DataError
from reshard.layout.fingerprint import odd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reshard.layout.box import Box

    Shape = tuple[int, ...]
    Sums = np.ndarray[Any, np.dtype[np.uint64]]
    Numbers = np.ndarray[Any, np.dtype[Any]]
    Flags = np.ndarray[Any, np.dtype[np.bool_]]


_Length = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_MARKS = 0x636F766572616765  # seed
_DIGITS = 16


class SliceFingerprints(msgspec.Struct, frozen=True):
    """The fingerprints of the same box of several parameters in one file, see `reshard.layout.fingerprint`.

    Attributes:
        start: first element of the box.
        lengths: lengths of the box.
        numbers: positions of the parameters in the draft of the manifest, as little-endian numbers of 4 bytes. The parameters are
            of one kind.
        sums: fingerprints of the boxes, as little-endian numbers of 8 bytes.
    """

    start: tuple[_Length, ...]
    lengths: tuple[_Length, ...]
    numbers: bytes
    sums: bytes

    def __post_init__(self) -> None:
        if len(self.numbers) % 4 or len(self.sums) != 2 * len(self.numbers):
            raise ValueError("the numbers of parameters and of fingerprints differ")

    @classmethod
    def of(cls, box: Box, numbers: Numbers, sums: Sums) -> SliceFingerprints:
        """Return the record of these fingerprints."""
        return cls(box.start, box.shape, numbers.astype("<u4").tobytes(), sums.astype("<u8").tobytes())


class _Copy(NamedTuple):
    """The fingerprints of one box of several parameters in the file of a rank, as a digest."""

    rank: int
    numbers: bytes
    digest: int


class FingerprintSums:
    """Adds up the fingerprints in the files of ranks. Copies of a slice must agree.

    The fingerprints of slices are not kept, only a digest of those of each box of a kind. If a copy has another digest, the
    record of the first is read again.

    Args:
        shapes: shape of the whole tensors of each kind.
        kinds: kind of each parameter.
        again: function that returns the fingerprints in the file of a rank that was added.

    Attributes:
        conflicts: parameters, by position, that have a slice of which files contain different elements, with a target rank for
            each of two contents.
    """

    def __init__(
        self, shapes: Sequence[Shape], kinds: Iterable[int], again: Callable[[int], Iterable[SliceFingerprints]]
    ) -> None:
        self.conflicts: dict[int, tuple[int, int]] = {}
        self._kinds = np.fromiter(kinds, np.int64)
        self._wholes = np.array([_volume((0,) * len(shape), shape) for shape in shapes], np.uint64)
        self._sums = np.zeros(len(self._kinds), np.uint64)
        self._volumes = np.zeros(len(self._kinds), np.uint64)
        self._again = again
        self._copies: dict[bytes, tuple[_Copy, ...]] = {}  # by kind and box; usually one
        self._numbers: dict[bytes, bytes] = {}  # equal ones once
        self._held: dict[bytes, Numbers] = {}  # parameters of all copies, where there are several

    def add(self, rank: int, records: Iterable[SliceFingerprints]) -> None:
        """Add the fingerprints in the file of a target rank.

        Raises:
            DataError: a parameter does not exist.
        """
        for record in records:
            if record.numbers:
                self._add(rank, record)

    def _add(self, rank: int, record: SliceFingerprints) -> None:
        numbers, sums = _arrays(record)
        if numbers.max() >= len(self._kinds):
            raise DataError(
                "DocumentInvalid",
                f"a fingerprint belongs to parameter {numbers.max()} of {len(self._kinds)}",
                where=f"record of rank {rank}",
                fix="delete the file of this rank and run the transform again",
            )
        key = self._key(record)
        mine = _Copy(rank, self._numbers.setdefault(record.numbers, record.numbers), xxhash.xxh3_64_intdigest(record.sums))
        copies = self._copies.get(key, ())
        if any(copy.numbers is mine.numbers and copy.digest == mine.digest for copy in copies):
            return
        if copies:
            held = self._held.get(key, _numbers(copies[0].numbers))
            new = ~np.isin(numbers, held)
            if not new.all():
                for copy in copies:
                    self._compare(key, copy, rank, numbers, sums)
            numbers, sums = numbers[new], sums[new]
            self._held[key] = np.concatenate([held, numbers])
        if len(numbers):
            self._sums[numbers] += sums
            self._volumes[numbers] += np.uint64(_volume(record.start, record.lengths))
            self._copies[key] = (*copies, mine)

    def _compare(self, key: bytes, copy: _Copy, rank: int, numbers: Numbers, sums: Sums) -> None:
        """Compare fingerprints of a rank with those of a copy of the same box."""
        for record in self._again(copy.rank):
            if record.numbers == copy.numbers and self._key(record) == key:
                others, values = _arrays(record)
                common, here, there = np.intersect1d(numbers, others, assume_unique=True, return_indices=True)
                for number in common[sums[here] != values[there]].tolist():
                    self.conflicts.setdefault(number, (copy.rank, rank))

    def _key(self, record: SliceFingerprints) -> bytes:
        box = (*record.start, *record.lengths)
        return struct.pack(f"<{1 + len(box)}Q", self._kinds[_numbers(record.numbers[:4])[0]], *box)

    def whole(self) -> tuple[Sums, Flags]:
        """Return the fingerprints of all parameters, and which of them are valid.

        The others have slices that are not known or that differ.
        """
        valid = self._volumes == self._wholes[self._kinds]
        valid[[*self.conflicts]] = False
        return self._sums, valid


def _numbers(content: bytes) -> Numbers:
    return np.frombuffer(content, "<u4")


def _arrays(record: SliceFingerprints) -> tuple[Numbers, Sums]:
    return _numbers(record.numbers), np.frombuffer(record.sums, "<u8")


def _volume(start: Shape, lengths: Shape) -> int:
    """Return a number that is additive for disjoint boxes, like a volume.

    If every position along a dimension has a random mark, the product of the differences of a box's marks is additive, but two
    different sets of elements have the same sum only by chance, with a probability of about 2^-60.
    """
    dimensions = np.arange(len(start), dtype=np.uint64) << np.uint64(56)
    first = np.array(start, np.uint64)
    last = first + np.array(lengths, np.uint64)
    marks = [odd(positions + dimensions, _MARKS) >> np.uint64(1) for positions in (first, last)]
    return int(np.multiply.reduce(marks[1] - marks[0]))


def texts_of(fingerprints: Sums) -> list[str]:
    """Return fingerprints as text."""
    text = fingerprints.astype(">u8").tobytes().hex()
    return [text[at : at + _DIGITS] for at in range(0, len(text), _DIGITS)]
