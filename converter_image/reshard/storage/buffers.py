"""Buffers for large transfers."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

# Reads and writes past the page cache have positions, lengths and addresses that are multiples of this number of bytes.
ALIGNMENT = 4 << 10
# Parts of a file that are not aligned, such as encrypted ones, are collected in a buffer of this size before they are written.
STAGE_BYTES = 1 << 20
_HUGE_BYTES = 2 << 20


def buffers(nbytes: int, count: int) -> list[memoryview]:
    """Return buffers of `nbytes`, a multiple of `ALIGNMENT`. They start at a page, and take no memory until they are filled.

    They are mapped instead of allocated on the heap, which would keep and fragment them. Where the system permits, they consist
    of huge pages: a disk transfers 2 MiB to or from one place in less time than to or from 512.
    """
    room = mmap.mmap(-1, nbytes * count + _HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    first = -address(room) % _HUGE_BYTES
    if nbytes * count > _HUGE_BYTES // 2:
        with contextlib.suppress(OSError, AttributeError):  # kernels without huge pages, and systems other than Linux
            room.madvise(mmap.MADV_HUGEPAGE)
    return [memoryview(room)[at : at + nbytes] for at in range(first, first + nbytes * count, nbytes)]


class BufferPool:
    """Mapped buffers that are used again. New memory takes more processor time than memory that was used before.

    It keeps buffers of one use, most of which have one length, and releases those of another one. Threads may share it.
    """

    def __init__(self) -> None:
        self._idle: list[memoryview] = []

    def take(self, nbytes: int) -> memoryview:
        """Return a buffer of this length. Its content is arbitrary."""
        with contextlib.suppress(IndexError):
            if len(buffer := self._idle.pop()) == nbytes:
                return buffer
        return buffers(nbytes, 1)[0]

    def give(self, buffer: memoryview) -> None:
        """Keep a buffer that nothing uses any more."""
        self._idle.append(buffer)


def address(memory: memoryview | mmap.mmap) -> int:
    """Return the address of the first byte."""
    found: int = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    return found
