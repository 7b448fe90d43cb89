"""Sum the fingerprints of slices, which the records of ranks contain, to those of whole parameters. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from reshard.layout.fingerprint import odd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.layout.box import Box

    Shape = tuple[int, ...]
    Sums = np.ndarray[Any, np.dtype[np.uint64]]


_MARKS = 0x636F766572616765  # seed


class SliceFingerprints(msgspec.Struct, frozen=True):
    """The fingerprints of the same box of several parameters in one file, see `reshard.layout.fingerprint`.

    Attributes:
        shape: lengths of the whole tensors.
        start: first element of the box.
        lengths: lengths of the box.
        names: names of the parameters in the file.
        sums: fingerprints of the boxes, as little-endian numbers of 8 bytes.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    lengths: tuple[int, ...]
    names: tuple[str, ...]
    sums: bytes

    @classmethod
    def of(cls, shape: Shape, box: Box, names: Iterable[str], sums: Sums) -> SliceFingerprints:
        """Return the record of these fingerprints."""
        return cls(shape, box.start, box.shape, tuple(names), sums.astype("<u8").tobytes())


class Conflict(NamedTuple):
    """A slice of which files contain different elements.

    Attributes:
        name: name of the parameter.
        ranks: a target rank for each of two contents.
    """

    name: str
    ranks: tuple[int, int]


class _Slices(NamedTuple):
    """The fingerprints of one box of several parameters, in the files of one or more ranks."""

    rank: int
    sums: Sums


class FingerprintSums:
    """Collects the fingerprints in the files of ranks. Copies of a slice must agree.

    Attributes:
        conflicts: slices of which files contain different elements.
    """

    def __init__(self) -> None:
        self.conflicts: list[Conflict] = []
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._found: dict[tuple[Shape, tuple[str, ...]], dict[tuple[Shape, Shape], _Slices]] = defaultdict(dict)

    def add(self, rank: int, records: Iterable[SliceFingerprints]) -> None:
        """Add the fingerprints in the file of a target rank."""
        for record in records:
            names = self._names.setdefault(record.names, record.names)
            sums = np.frombuffer(record.sums, "<u8").astype(np.uint64)
            box = record.start, record.lengths
            before = self._found[record.shape, names].setdefault(box, _Slices(rank, sums))
            for number in np.flatnonzero(before.sums != sums).tolist():
                self.conflicts.append(Conflict(names[number], (before.rank, rank)))

    def whole(self) -> dict[str, int]:
        """Return the fingerprint of each parameter all of whose elements are in the files, by name.

        A parameter without a result has slices that are not known or that differ, or several tensors have its name.
        """
        found: dict[str, set[int]] = defaultdict(set)
        rest: dict[tuple[str, Shape], dict[tuple[Shape, Shape], set[int]]] = defaultdict(lambda: defaultdict(set))
        for (shape, names), boxes in self._found.items():
            sums = _total(shape, {box: slices.sums for box, slices in boxes.items()})
            if sums is not None:
                for name, value in zip(names, sums.tolist(), strict=True):
                    found[name].add(value)
                continue
            for box, slices in boxes.items():  # other files group the parameters in another way
                for name, value in zip(names, slices.sums.tolist(), strict=True):
                    rest[name, shape][box].add(value)
        for (name, shape), slices_of in rest.items():
            if all(len(values) == 1 for values in slices_of.values()):
                one = {box: np.array([*values], np.uint64) for box, values in slices_of.items()}
                if (total := _total(shape, one)) is not None:
                    found[name].add(int(total[0]))
        differing = {conflict.name for conflict in self.conflicts}
        return {name: values.pop() for name, values in found.items() if len(values) == 1 and name not in differing}


def _total(shape: Shape, boxes: dict[tuple[Shape, Shape], Sums]) -> Sums | None:
    """Return the sums over boxes, or None if the boxes do not contain each element exactly once."""
    starts = np.array([start for start, _ in boxes], np.uint64).reshape(len(boxes), len(shape))
    lengths = np.array([length for _, length in boxes], np.uint64).reshape(len(boxes), len(shape))
    return np.add.reduce([*boxes.values()], axis=0, dtype=np.uint64) if _covers(shape, starts, starts + lengths) else None


def _covers(shape: Shape, starts: Sums, ends: Sums) -> bool:
    """Return whether boxes contain each element of a tensor exactly once.

    If every position along a dimension has a random mark, the product of the differences of a box's marks is additive, like its
    volume, but two different sets of elements have the same sum only by chance, with a probability of about 2^-60.
    """
    dimensions = np.arange(len(shape), dtype=np.uint64) << np.uint64(56)

    def volumes(first: Sums, last: Sums) -> Sums:
        marks = [odd(positions + dimensions, _MARKS) >> np.uint64(1) for positions in (first, last)]
        return np.multiply.reduce(marks[1] - marks[0], axis=-1)  # type: ignore[no-any-return]  # numpy's stubs

    whole = np.array([shape], np.uint64).reshape(1, len(shape))
    return bool(np.add.reduce(volumes(starts, ends)) == volumes(np.zeros_like(whole), whole)[0])


def text_of(fingerprint: int) -> str:
    """Return a fingerprint as text."""
    return f"{fingerprint:016x}"
