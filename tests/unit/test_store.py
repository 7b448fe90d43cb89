"""What every storage must do. A storage joins by a fixture parameter."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from reshard.errors import DataError, MissingInputError, ReshardError
from reshard.storage import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.storage.protocol import Store

MODE = 0o640


@pytest.fixture(params=["local"])
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def put(store: Store, path: str, content: bytes) -> None:
    store.write(path, content, mode=MODE)


def test_what_is_written_is_read_and_listed(store: Store) -> None:
    put(store, "a/b", b"12345")
    put(store, "a/c/d", b"")
    assert store.read("a/b", 5) == b"12345"
    assert [(s.name, s.is_folder, s.size) for s in store.list("a")] == [("b", False, 5), ("c", True, 0)]
    assert [s.name for s in store.list("")] == ["a"]
    assert store.list("nothing") == []
    found = store.stat("a/b")
    assert found is not None
    assert (found.size, found.is_folder) == (5, False)
    assert store.stat("a/x") is None


def test_a_reader_gives_ranges_of_one_version(store: Store) -> None:
    put(store, "a", bytes(range(100)))
    reader = store.open("a")
    assert (reader.size, reader.version) == (100, store.stat("a").version)  # type: ignore[union-attr]
    assert reader.read(10, 5) == bytes(range(10, 15))
    view = memoryview(bytearray(6))
    reader.read_into(view, 94)
    assert bytes(view) == bytes(range(94, 100))
    reader.read_runs(view, 2, [0, 50, 98])
    assert bytes(view) == bytes([0, 1, 50, 51, 98, 99])
    for offset, length in ((99, 2), (100, 1), (0, 1 << 62)):
        with pytest.raises(ReshardError):
            reader.read(offset, length)
    with pytest.raises(ReshardError):
        reader.read_into(view, 95)
    with pytest.raises(ReshardError):
        reader.read_runs(view, 2, [0, 50, 99])
    reader.close()
    put(store, "a", b"other")
    assert store.open("a").version != reader.version


def test_a_file_appears_whole_or_not_at_all(store: Store) -> None:
    writer = store.create("x/y", temporary="tmp/y", mode=MODE)
    writer.write(b"one")
    writer.write(memoryview(b"two"))
    assert store.stat("x/y") is None
    writer.finish()
    writer.abort()
    assert store.read("x/y", 6) == b"onetwo"
    again = store.create("x/y", temporary="tmp/y", mode=MODE)
    again.write(b"half")
    again.abort()
    again.abort()
    assert store.read("x/y", 6) == b"onetwo"
    assert [s.name for s in store.list("x")] == ["y"]
    assert store.list("tmp") == []


def test_only_one_of_many_creates_a_new_file(store: Store) -> None:
    won = []

    def compete(number: int) -> None:
        if store.write_new("lock", str(number).encode(), mode=MODE):
            won.append(number)

    threads = [threading.Thread(target=compete, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("lock", 10) == str(won[0]).encode()
    assert len(won) == 1
    assert [s.name for s in store.list("")] == ["lock"]


def test_files_move_and_go(store: Store) -> None:
    put(store, "a/b", b"1")
    put(store, "c", b"2")
    store.move("a/b", "c")
    assert store.read("c", 1) == b"1"
    assert store.stat("a/b") is None
    store.delete("c")
    store.delete("c")
    put(store, "d/e/f", b"")
    store.delete("d")
    assert store.stat("d") is None


def test_signs_of_life_follow_the_storages_clock(store: Store) -> None:
    assert store.modified("a") is None
    put(store, "a", b"")
    first = store.modified("a")
    time.sleep(0.02)
    assert store.touch("a") > first  # type: ignore[operator]


def test_what_is_not_there_or_too_long_is_said(store: Store) -> None:
    with pytest.raises(MissingInputError):
        store.open("nothing")
    with pytest.raises(MissingInputError):
        store.read("nothing", 1)
    put(store, "a", b"12")
    with pytest.raises(DataError):
        store.read("a", 1)
    put(store, "folder/x", b"")
    with pytest.raises(ReshardError):
        store.open("folder").read(0, 1)


def test_links_that_lead_nowhere_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for name, to in (("dangling", "nothing"), ("loop", "loop"), ("below", "a/b")):
        (tmp_path / name).symlink_to(to)
    assert [s.name for s in open_store(str(tmp_path)).list("")] == ["a"]


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in ("pipe", "folder"):
        with pytest.raises(MissingInputError, match="NotAFile"):
            open_store(str(tmp_path)).open(path)
    with pytest.raises(MissingInputError, match="NotAFile"):
        open_store("/dev").open("full")
