"""Sum the fingerprints of slices, which the records of ranks contain, to those of whole parameters. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from reshard.errors import DataError
from reshard.model.tiling import divide

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.layout.box import Box

    Shape = tuple[int, ...]
    Sums = np.ndarray[Any, np.dtype[np.uint64]]


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
    count = len(shape)
    starts = np.array([start for start, _ in boxes], np.int64).reshape(len(boxes), count)
    lengths = np.array([length for _, length in boxes], np.int64).reshape(len(boxes), count)
    try:
        divide(shape, starts, lengths, "")
    except DataError:
        return None
    return np.add.reduce([*boxes.values()], axis=0, dtype=np.uint64)  # type: ignore[no-any-return]  # numpy's stubs


def text_of(fingerprint: int) -> str:
    """Return a fingerprint as text."""
    return f"{fingerprint:016x}"
