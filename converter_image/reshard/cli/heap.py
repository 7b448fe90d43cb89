"""The memory of the main program: large blocks are returned to the system when they are freed."""

from __future__ import annotations

import ctypes

# See mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 1 << 20
# Free memory that remains at the end of the heap. With glibc's default of 128 KiB, arrays would get new memory again and again.
_KEPT_BYTES = 8 << 20


def return_large_blocks() -> None:
    """Let the C library map large blocks of memory one by one, so that it returns each of them when it is freed.

    By default, glibc does so only for blocks that are larger than all that were freed before, up to 32 MiB. The others become a
    part of the heap, which keeps most of their memory: for headers and manifests with 100,000 names, 40 MiB.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc has it, other C libraries do not
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
