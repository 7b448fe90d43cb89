"""Measure how fast this machine writes and reads bytes past the page cache, and copies them in memory.

`limits.py write FOLDER BYTES` writes four new files with sync, `limits.py read FOLDER` reads all files of a folder, and
`limits.py copy BYTES` copies memory with as many threads as there are processors. Each prints its seconds as JSON. Nothing passes
the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from reshard.storage.buffers import ALIGNMENT, buffers

if TYPE_CHECKING:
    from collections.abc import Callable

# Enough in flight for the disks that were measured, see docs/decisions/0003-direct-io.md.
_THREADS = 4
_PART = 2 << 20
_FILES = 4
_COPIED = 64 << 20


def direct(file: int, nbytes: int, transfer: Callable[[int, memoryview, int], int], free: list[memoryview]) -> None:
    """Transfer the whole blocks of a file with several threads."""
    idle: SimpleQueue[memoryview] = SimpleQueue()
    for buffer in free:
        idle.put(buffer)

    def part(at: int) -> None:
        buffer = idle.get()
        transfer(file, buffer[: min(_PART, nbytes - at)], at)
        idle.put(buffer)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(part, range(0, nbytes, _PART)))


def filled() -> list[memoryview]:
    """Return buffers whose memory is in use."""
    made = buffers(_PART, _THREADS)
    for buffer in made:
        buffer[:] = os.urandom(4096) * (_PART // 4096)
    return made


def write(folder: Path, nbytes: int) -> float:
    """Return the seconds to write new, preallocated files with sync."""
    folder.mkdir(parents=True)
    free, each = filled(), -(-nbytes // _FILES // ALIGNMENT) * ALIGNMENT
    began = time.perf_counter()
    for number in range(_FILES):
        file = os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        os.posix_fallocate(file, 0, each)
        direct(file, each, os.pwrite, free)
        os.fsync(file)
        os.close(file)
    return time.perf_counter() - began


def read(folder: Path) -> float:
    """Return the seconds to read all files of a folder."""
    free = filled()
    began = time.perf_counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        direct(file, path.stat().st_size // ALIGNMENT * ALIGNMENT, lambda file, view, at: os.preadv(file, [view], at), free)
        os.close(file)
    return time.perf_counter() - began


def copy(nbytes: int) -> float:
    """Return the seconds to copy this many bytes in memory, which is too large for a cache."""
    threads = os.cpu_count() or 1
    pairs = [(np.ones(_COPIED, np.uint8), np.zeros(_COPIED, np.uint8)) for _ in range(threads)]

    def one(pair: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(-(-nbytes // _COPIED // threads)):
            np.copyto(pair[1], pair[0])

    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(one, pairs))
        return time.perf_counter() - began


def main() -> None:
    """Print the seconds of one limit as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("limit", choices=["write", "read", "copy"])
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    if given.limit == "copy":
        seconds = copy(int(given.arguments[0]))
    elif given.limit == "read":
        seconds = read(Path(given.arguments[0]))
    else:
        seconds = write(Path(given.arguments[0]), int(given.arguments[1]))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
