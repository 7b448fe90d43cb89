"""The entries of a file's structure as arrays, so that thousands of tensors are located, and proved to be right, at a time."""

from __future__ import annotations

from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.checkpoint.inventory import Inventory, Structure
    from reshard.plan.model import Parameter

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]

# Instead of an offset: the content is not one range of the file.
SCATTERED = -1


def members_of(groups: Iterable[int], count: int) -> list[Numbers]:
    """Return the positions of the elements of each of `count` groups, ascending, given the number of each element's group."""
    numbers = np.fromiter(groups, np.int64)
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.cumsum(np.bincount(numbers, minlength=count))[:-1]) if count else []


class Columns:
    """The entries of one structure as arrays, in the order of the structure. Names, and types with shapes, are numbered.

    Attributes:
        structure: the structure.
        names: number of each entry's name, or -1 if it has none.
        types: number of each entry's type and shape.
        offsets: first byte of each entry's content in the file, or `SCATTERED`.
    """

    def __init__(self, structure: Structure, names: Iterable[int], types: Iterable[int]) -> None:
        count = len(structure.tensors)
        self.structure = structure
        self.names = np.fromiter(names, np.int64, count)
        self.types = np.fromiter(types, np.int64, count)
        offsets = (entry.extents[0][0] if len(entry.extents) == 1 else SCATTERED for entry in structure.tensors)
        self.offsets = np.fromiter(offsets, np.int64, count)
        self._order = np.argsort(self.names, kind="stable")
        self._sorted = self.names[self._order]

    def find(self, names: Numbers) -> Numbers:
        """Return the position of the entry of each of these names, which the structure contains."""
        at = np.searchsorted(self._sorted, names)
        return self._order[np.minimum(at, len(self._order) - 1)]


class Tables:
    """The columns of all structures of an inventory, which are created on first use. Threads may share it.

    Args:
        inventory: files of the source.
        parameters: parameters whose names are numbered.
    """

    def __init__(self, inventory: Inventory, parameters: Iterable[Parameter]) -> None:
        self._structures = inventory.structures
        self._structure_of = {file.rank: file.structure for file in inventory.files}
        self._names = {parameter.source_name: number for number, parameter in enumerate(parameters)}
        self._types: dict[tuple[str, tuple[int, ...]], int] = {}
        self._columns: dict[int, Columns] = {}
        self._lock = Lock()

    def of_rank(self, rank: int) -> Columns:
        """Return the columns of the file of a source rank."""
        number = self._structure_of[rank]
        found = self._columns.get(number)
        if found is None:
            with self._lock:
                structure = self._structures[number]
                names = (self._names.get(entry.name, -1) for entry in structure.tensors)
                types = (self._number(entry.dtype, entry.shape) for entry in structure.tensors)
                found = self._columns.setdefault(number, Columns(structure, names, types))
        return found

    def names(self, parameters: Iterable[Parameter]) -> Numbers:
        """Return the number of each parameter's name in the source."""
        return np.fromiter(map(self._names.__getitem__, map(attrgetter("source_name"), parameters)), np.int64)

    def type_of(self, dtype: str, shape: tuple[int, ...]) -> int:
        """Return the number of a type and shape."""
        with self._lock:
            return self._number(dtype, shape)

    def _number(self, dtype: str, shape: tuple[int, ...]) -> int:
        return self._types.setdefault((dtype, shape), len(self._types))
