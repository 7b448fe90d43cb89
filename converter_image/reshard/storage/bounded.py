"""Base class of readers of a known length."""

from __future__ import annotations

from abc import ABC, abstractmethod

from reshard.errors import DataError


class BoundedReader(ABC):
    """A `Reader` that checks ranges against the length of the file.

    Attributes:
        name: path, for messages.
        size: length in bytes.
    """

    name: str
    size: int
    _what_ends = "the object"

    @abstractmethod
    def read_into(self, view: memoryview, offset: int) -> None:
        """See `Reader.read_into`."""

    def read(self, offset: int, length: int) -> bytes:
        """See `Reader.read`."""
        self._check_inside(offset, length)
        content = bytearray(length)
        self.read_into(memoryview(content), offset)
        return bytes(content)

    def _check_inside(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            what = f"{length} bytes were expected at byte {offset}, but {self._what_ends} ends at byte {self.size}"
            raise DataError("Truncated", what, where=self.name, fix="the file is damaged; restore it")
