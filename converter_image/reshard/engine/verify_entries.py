"""The entries of files as arrays, to compare those of thousands of tensors at a time with what is expected.

Only the verification uses them, so that a mistake in the tables of the plan is detected.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.checkpoint.inventory import Inventory, Structure, TensorEntry
    from reshard.plan import Parameter
    from reshard.plan.columns import Numbers
    from reshard.plan.runs import Flags

    Type = tuple[str, tuple[int, ...]]  # type and shape

# Instead of a position or an offset: there is no such entry, or its content is not one range of the file.
NONE = -1


class Entries:
    """The entries of one file, or of files with equal entries. Threads may share it.

    Args:
        tensors: the entries.
        name_of: function that returns the name of a parameter in these files.

    Attributes:
        tensors: the entries.
        offsets: first byte of the content of each entry in the file, or `NONE` if the content is divided. At `NONE`: `NONE`.
    """

    def __init__(self, tensors: Sequence[TensorEntry], name_of: Callable[[Parameter], str]) -> None:
        self.tensors = tensors
        offsets = (entry.extents[0][0] if len(entry.extents) == 1 else NONE for entry in tensors)
        self.offsets: Numbers = np.fromiter(chain(offsets, [NONE]), np.int64, len(tensors) + 1)
        self._position_of = {entry.name: position for position, entry in enumerate(tensors)}
        self._numbers: dict[Type, int] = {}
        types = (self._numbers.setdefault((entry.dtype, entry.shape), len(self._numbers)) for entry in tensors)
        self._types: Numbers = np.fromiter(chain(types, [NONE]), np.int64, len(tensors) + 1)
        self._name_of = name_of
        self._last: tuple[Sequence[Parameter], Numbers] = ((), np.zeros(0, np.int64))

    def find(self, name: str) -> TensorEntry | None:
        """Return the entry of this name, or None if there is none."""
        position = self._position_of.get(name)
        return None if position is None else self.tensors[position]

    def positions(self, parameters: Sequence[Parameter]) -> Numbers:
        """Return the position of the entry of each parameter, or `NONE`. Most ranks have the parameters of the previous one."""
        known, found = self._last
        if known is not parameters:
            names = map(self._name_of, parameters)
            found = np.fromiter((self._position_of.get(name, NONE) for name in names), np.int64, len(parameters))
            self._last = parameters, found
        return found

    def have_types(self, positions: Numbers, types: Sequence[Type], which: Numbers) -> Flags:
        """Return which of these entries exist, and have the expected type and shape.

        Args:
            positions: positions of the entries.
            types: expected types and shapes.
            which: position in `types` of what is expected of each entry.
        """
        unknown = len(self._numbers)
        expected = np.array([self._numbers.get(each, unknown) for each in types], np.int64)[which]
        found: Flags = self._types[positions] == expected
        return found


class Known:
    """The entries of the source's files, and those of the written file that was read last: others are often equal.

    Threads may share it.
    """

    def __init__(self) -> None:
        self._lock, self._reading = Lock(), Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all entries."""
        self._seen: dict[bytes, Structure] = {}
        self._written = Entries((), attrgetter("name"))
        self._source: dict[int, Entries] = {}
        self._inventory: Inventory | None = None
        self._structure_of: dict[int, int] = {}

    def read(
        self, read: Callable[[dict[bytes, Structure]], tuple[TensorEntry, ...]], *, at_once: bool
    ) -> tuple[TensorEntry, ...]:
        """Read the entries of a written file.

        Args:
            read: function that reads them, see `OutputFormat.entries`.
            at_once: whether threads may read at the same time. Otherwise, only the first one parses equal headers.
        """
        with nullcontext() if at_once else self._reading:
            seen = self._seen
            found = read(seen)
            if len(seen) > 1:
                self._seen = dict(list(seen.items())[-1:])
            return found

    def of_written(self, described: Sequence[TensorEntry]) -> Entries:
        """Return the entries of a written file as arrays."""
        with self._lock:
            if self._written.tensors is not described and self._written.tensors != described:
                self._written = Entries(described, attrgetter("name"))
            return self._written

    def of_rank(self, inventory: Inventory, rank: int) -> Entries:
        """Return the entries of a source rank's file. Files of the same structure share them."""
        with self._lock:
            if self._inventory is not inventory:
                self._inventory, self._source = inventory, {}
                self._structure_of = {file.rank: file.structure for file in inventory.files}
            number = self._structure_of[rank]
            if number not in self._source:
                self._source[number] = Entries(inventory.structures[number].tensors, attrgetter("source_name"))
            return self._source[number]
