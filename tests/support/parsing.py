"""Parse files in memory, and collect the parsers' refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from memory_store import MemoryReader

from reshard import checkpoint
from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

Contents = dict[str, tuple[str, tuple[int, ...], bytes]]


def reader(kind: str, content: bytes) -> MemoryReader:
    """A file of a format."""
    return MemoryReader(f"rank_0/a.{kind}", content)


def contents(kind: str, content: bytes) -> Contents:
    """For each name type, shape and bytes."""
    structure = checkpoint.read_header(reader(kind, content)).structure
    return {t.name: (t.dtype, t.shape, b"".join(content[a : a + n] for a, n in t.extents)) for t in structure.tensors}


def refused_file(kind: str, content: bytes) -> DataError:
    """Return the error for a damaged file."""
    return refused(lambda: checkpoint.read_header(reader(kind, content)))


def refused(act: Callable[[], object]) -> DataError:
    """Return the error that `act` raises; its message must be one line."""
    with pytest.raises(DataError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return caught.value
