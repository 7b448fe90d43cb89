"""Readers share a bounded number of descriptors, and none is closed while it is read from."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from reshard.checkpoint.inventory import Inventory, SourceFile
from reshard.engine.gather import SourceFiles
from reshard.errors import BugError, DataError, StorageError
from reshard.storage.local import LocalReader, LocalStore, descriptors
from reshard.storage.traffic import Meter

SIZE = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 files with distinct contents."""
    for number in range(300):
        (tmp_path / str(number)).write_bytes(number.to_bytes(2, "big") * (SIZE // 2))
    return tmp_path


def content(number: int) -> bytes:
    return number.to_bytes(2, "big") * (SIZE // 2)


def source_files(folder: Path) -> SourceFiles:
    store = LocalStore(folder)
    files = []
    for number in range(300):
        with closing(store.open(str(number))) as reader:
            files.append(SourceFile(number, str(number), SIZE, reader.version, 0, None, ""))
    return SourceFiles(store, Inventory(tuple(files), (), "Ranks"))


def open_in(folder: Path) -> int:
    """Return the number of a folder's files that this process has open."""
    found = 0
    for number in Path("/proc/self/fd").iterdir():
        try:
            found += number.readlink().is_relative_to(folder)
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("most", [8, 64, 200])
def test_a_reader_that_released_its_descriptor_still_reads_its_own_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(descriptors, "budget", lambda: most)
    with closing(source_files(folder)) as files:
        readers = [files.reader(number) for number in range(300)]
        assert open_in(folder) <= most
        for number, reader in enumerate(readers):
            assert reader.read(0, SIZE) == content(number)
        assert open_in(folder) <= most
    assert open_in(folder) == 0


def test_many_threads_read_many_files_with_few_descriptors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "budget", lambda: 8)
    threads = 16
    barrier, most_open = threading.Barrier(threads), []

    def read(seed: int, files: SourceFiles) -> None:
        choose = random.Random(seed)
        barrier.wait()
        for turn in range(400):
            number = choose.randrange(300)
            reader, view = files.reader(number), memoryview(bytearray(SIZE))
            if turn % 3 == 0:
                assert reader.read(0, SIZE) == content(number)
            elif turn % 3 == 1:
                reader.read_into(view, 0)
                assert view == content(number)
            else:
                reader.read_runs(view, 2, [2 * n for n in range(SIZE // 2)])
                assert view == content(number)
            if turn % 50 == 0:
                most_open.append(open_in(folder))

    with closing(source_files(folder)) as files, ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(read, seed, files) for seed in range(threads)]:
            done.result()
    assert max(most_open) <= 8 + threads  # a thread keeps what it reads from
    assert open_in(folder) == 0


def test_a_file_is_not_closed_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close the reader, and make it give up its descriptor, between the moment a thread has the number and the system call."""
    monkeypatch.setattr(descriptors, "budget", lambda: 8)
    preadv = os.preadv

    def late(number: int, *arguments: object) -> int:
        monkeypatch.setattr(os, "preadv", preadv)
        reader.close()
        others.extend(LocalReader(str(folder / str(each)), Meter()) for each in range(1, 100))
        return preadv(number, *arguments)

    others: list[LocalReader] = []
    for read in ("read_into", "read_runs"):
        reader, view = LocalReader(str(folder / "0"), Meter()), memoryview(bytearray(SIZE))
        monkeypatch.setattr(os, "preadv", late)
        getattr(reader, read)(view, *((0,) if read == "read_into" else (SIZE, [0])))
        assert view == content(0)
    for other in others:
        other.close()
    with pytest.raises(BugError, match="ReaderClosed"):
        reader.read(0, 1)


def test_a_file_that_changes_while_its_reader_has_no_descriptor_is_refused(folder: Path) -> None:
    replaced, gone = LocalReader(str(folder / "0"), Meter()), LocalReader(str(folder / "1"), Meter())
    descriptors.READERS.close_all()
    (folder / "0").write_bytes(content(0) + b"more")
    (folder / "1").unlink()
    for reader in (replaced, gone):
        with closing(reader), pytest.raises(DataError, match="SourceChanged"):
            reader.read(0, SIZE)


def test_readers_release_descriptors_at_the_limit_of_the_process(folder: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    readers = [LocalReader(str(folder / str(number)), Meter()) for number in range(50)]
    highest = max(int(number.name) for number in Path("/proc/self/fd").iterdir())
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
        LocalStore(tmp_path / "out").write("file", b"content", mode=None)
        assert [reader.read(0, 2) for reader in readers] == [content(number)[:2] for number in range(50)]
        descriptors.READERS.close_all()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        with pytest.raises(StorageError, match=r"TooManyOpenFiles.*ulimit -n"):
            readers[0].read(0, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in held:
            os.close(number)
    for reader in readers:
        reader.close()


@pytest.mark.parametrize(("limit", "most"), [(64, 12), (1024, 192), (1 << 20, 2048), (resource.RLIM_INFINITY, 2048)])
def test_the_budget_of_descriptors_follows_the_limit(monkeypatch: pytest.MonkeyPatch, limit: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert descriptors.budget() == most


def test_32_workers_run_with_160_descriptors(tmp_path: Path) -> None:
    """Each target rank reads from all of 64 source ranks. 256 workers with 1,024 descriptors take the same share, and longer."""
    program = f"""
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
import rawfiles
import reshard
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
root = Path({str(tmp_path)!r})
whole = np.arange(64 * 64, dtype=np.int32).reshape(64, 64)
for rank in range(64):
    (root / f"src/rank_{{rank}}").mkdir(parents=True)
    (root / f"src/rank_{{rank}}/n.ckpt").write_bytes(rawfiles.ckpt({{"w": whole[rank : rank + 1]}}))
for name, layout in (("s", Layout((64,), ((0,), ()))), ("t", Layout((64,), ((), (0,))))):
    (root / f"{{name}}.ckpt").write_bytes(dump(StrategyFile("x", {{0: {{"w": layout}}}}), "protobuf"))
sides = {{"source": root / "src", "source_strategy": root / "s.ckpt", "target_strategy": root / "t.ckpt"}}
assert reshard.transform_checkpoint(reshard.Request(**sides, target=root / "out"), workers=32).complete
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
