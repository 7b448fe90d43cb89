"""Measure what this machine can do with as many bytes as a transform moves. Each measurement prints its seconds as JSON.

- `limits.py write FOLDER BYTES` writes four new files with sync, past the page cache where the file system can.
- `limits.py read FOLDER` reads all files of a folder past the page cache.
- `limits.py memory BYTES` copies memory with as many threads as there are processors.
- `limits.py files SOURCE FOLDER TIMES` copies all files with sync, each several times, and reads them once. Like a transform, it
  reads past the page cache what is not in it, and writes so where the file system can. It does not cut or hash anything.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from reshard.storage.buffers import ALIGNMENT, buffers
from reshard.storage.local import LocalStore
from reshard.storage.local.filesystem import FileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Enough in flight for the disks that were measured, see docs/decisions/0003-direct-io.md.
_THREADS = 4
_PART = 2 << 20
_FILES = 4
_COPIED = 64 << 20


def in_parts(sizes: Iterable[int], transfer: Callable[[int, int, memoryview], None]) -> float:
    """Return the seconds to transfer the whole blocks of some files, in parts with the number of the file and their position."""
    idle: SimpleQueue[memoryview] = SimpleQueue()
    for buffer in buffers(_PART, _THREADS):
        buffer[:] = os.urandom(4096) * (_PART // 4096)  # memory that is in use
        idle.put(buffer)

    def part(number: int, at: int, nbytes: int) -> None:
        buffer = idle.get()
        transfer(number, at, buffer[:nbytes])
        idle.put(buffer)

    began = time.perf_counter()
    with ThreadPoolExecutor(_THREADS) as pool:
        running = [
            pool.submit(part, number, at, min(_PART, size - at))
            for number, size in enumerate(size // ALIGNMENT * ALIGNMENT for size in sizes)
            for at in range(0, size, _PART)
        ]
    for each in running:
        each.result()
    return time.perf_counter() - began


def created(folder: Path, sizes: Iterable[int]) -> list[int]:
    """Return the descriptors of new files, which are preallocated and opened for direct writes where Reshard does so."""
    folder.mkdir(parents=True)
    direct = FileSystem().allocates(str(folder))
    files = []
    for number, size in enumerate(sizes):
        files.append(os.open(folder / str(number), os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if direct else 0)))
        if direct:
            os.posix_fallocate(files[-1], 0, size)
    return files


def synced(files: Iterable[int]) -> float:
    """Return the seconds to sync and close files."""
    began = time.perf_counter()
    for file in files:
        os.fsync(file)
        os.close(file)
    return time.perf_counter() - began


def write(folder: Path, nbytes: int) -> float:
    """Return the seconds to write new files with sync."""
    sizes = [-(-nbytes // _FILES // ALIGNMENT) * ALIGNMENT] * _FILES
    files = created(folder, sizes)
    return in_parts(sizes, lambda number, at, view: _all(os.pwrite(files[number], view, at), view)) + synced(files)


def read(folder: Path) -> float:
    """Return the seconds to read all files of a folder past the page cache."""
    paths = _files(folder)
    files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
    sizes = [path.stat().st_size for path in paths]
    return in_parts(sizes, lambda number, at, view: _all(os.preadv(files[number], [view], at), view))


def copy_files(source: Path, folder: Path, times: int) -> float:
    """Return the seconds to copy the whole blocks of all files, each several times, with sync."""
    paths, store = _files(source), LocalStore(source)
    sizes, files = [path.stat().st_size for path in paths], []
    for path in paths:
        with closing(store.open(str(path.relative_to(source)))) as reader:
            files.append(os.open(path, os.O_RDONLY | (os.O_DIRECT if reader.waits else 0)))
    targets = created(folder, sizes * times)

    def transfer(number: int, at: int, view: memoryview) -> None:
        _all(os.preadv(files[number], [view], at), view)
        for again in range(times):
            _all(os.pwrite(targets[number + again * len(files)], view, at), view)

    return in_parts(sizes, transfer) + synced(targets)


def copy_memory(nbytes: int) -> float:
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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _all(done: int, view: memoryview) -> None:
    if done != len(view):
        raise OSError(f"{done} of {len(view)} bytes were transferred")


def main() -> None:
    """Print the seconds of one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("limit", choices=["write", "read", "memory", "files"])
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    first, *more = given.arguments
    if given.limit == "memory":
        seconds = copy_memory(int(first))
    elif given.limit == "read":
        seconds = read(Path(first))
    elif given.limit == "write":
        seconds = write(Path(first), int(more[0]))
    else:
        seconds = copy_files(Path(first), Path(more[0]), int(more[1]))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
