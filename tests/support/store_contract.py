"""Contract for every storage. A storage joins with a class of tests and a fixture `store`, an empty one."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest

from reshard.errors import DataError, MissingInputError, ReshardError
from reshard.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.storage.protocol import Store

MODE = 0o640


def put(store: Store, path: str, content: bytes) -> None:
    store.write(path, content, mode=MODE)


def together(act: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=act, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class StoreContract:
    def test_written_files_are_read_and_listed(self, store: Store) -> None:
        put(store, "a/b", b"12345")
        put(store, "a/c/d", b"")
        assert store.read("a/b", 5) == b"12345"
        assert [(s.name, s.is_folder, s.size) for s in store.list("a")] == [("b", False, 5), ("c", True, 0)]
        assert [s.name for s in store.list("")] == ["a"]
        assert store.list("nothing") == []
        assert (sorted(store.names("a")), [*store.names("nothing")]) == (["b", "c"], [])
        found = store.stat("a/b")
        assert found is not None
        assert (found.size, found.is_folder) == (5, False)
        assert store.stat("a/x") is None

    @pytest.mark.parametrize("count", [0, 1, 60])
    def test_many_files_and_folders_are_requested_at_once(self, store: Store, count: int) -> None:
        paths = [f"rank_{number}/x" for number in range(count)]
        together(lambda thread: [put(store, path, b"1" * n) for n, path in enumerate(paths) if n % 16 == thread])
        put(store, "folder/x", b"")
        put(store, "rank_1/y", b"12")
        put(store, "rank_1/ckpt/z", b"")
        found = store.stats([*paths, "rank_1/z", "folder", "nothing"])
        assert found == {path: store.stat(path) for path in paths}
        assert [found[path].size for path in paths] == list(range(count))
        folders = [*(path.partition("/")[0] for path in paths), "rank_1/ckpt", "", "nothing"]
        assert store.list_folders(folders) == [store.list(folder) for folder in folders]

    def test_a_reader_gives_ranges_of_one_version(self, store: Store) -> None:
        put(store, "a", bytes(range(100)))
        reader = store.open("a")
        assert (reader.size, reader.version) == (100, store.stat("a").version)
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

    def test_a_file_appears_whole_or_not_at_all(self, store: Store) -> None:
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

    def test_only_one_of_many_creates_a_new_file(self, store: Store) -> None:
        won = []

        def compete(number: int) -> None:
            if store.write_new("lock", str(number).encode(), mode=MODE):
                won.append(number)

        together(compete)
        assert store.read("lock", 10) == str(won[0]).encode()
        assert len(won) == 1
        assert [s.name for s in store.list("")] == ["lock"]

    def test_files_can_be_moved_and_deleted(self, store: Store) -> None:
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

    @pytest.mark.parametrize("prune", [False, True])
    def test_many_files_are_deleted_at_once(self, store: Store, prune: bool) -> None:
        paths = [f"rank_{number}/x&y {number}" for number in range(60)]
        together(lambda thread: [put(store, path, b"1") for n, path in enumerate(paths) if n % 16 == thread])
        put(store, "rank_1/y", b"1")
        put(store, "other", b"1")
        store.delete_files([*paths, "nothing", "folder/nothing"], prune=prune)
        assert [s.name for s in store.list("rank_1")] == ["y"]
        assert store.list("rank_2") == []
        if prune:
            assert [s.name for s in store.list("")] == ["other", "rank_1"]

    def test_heartbeats_use_the_storages_clock(self, store: Store) -> None:
        assert store.age("a") is None
        store.touch("a")
        assert store.stat("a") is None
        put(store, "a", b"1")
        time.sleep(3.1)  # an object's time has no fractions, nor has the clock that it is compared with
        before = store.age("a")
        assert before is not None
        assert 0.05 < before < 60
        store.touch("a")
        assert store.age("a") < before
        assert store.read("a", 1) == b"1"

    def test_only_one_of_many_replaces_a_version(self, store: Store) -> None:
        put(store, "lock", b"dead")
        version = store.stat("lock").version
        won: list[int] = []

        def compete(number: int) -> None:
            if store.swap("lock", f"new {number}".encode(), version, mode=MODE):
                won.append(number)

        together(compete)
        assert len(won) == 1
        assert store.read("lock", 10) == f"new {won[0]}".encode()
        assert not store.swap("lock", b"late", version, mode=MODE)
        assert not store.swap("nothing", b"late", version, mode=MODE)
        assert [s.name for s in store.list("")] == ["lock"]

    def test_a_large_file_is_written_with_little_memory(self, store: Store) -> None:
        content = random.Random(1).randbytes(21 << 20)
        for size in (len(content), None):
            writer = store.create("rank_0/large", temporary="tmp/large", mode=MODE, size=size, memory=16 << 20)
            for at in range(0, len(content), 3 << 20):
                piece = bytearray(content[at : at + (3 << 20)])
                if size is not None and (room := writer.room(len(piece))) is not None:
                    room[: len(piece)] = piece
                    writer.write(room[:1000])
                    writer.write(room[1000 : len(piece)])
                else:
                    writer.write(piece)
                    piece[:] = bytes(len(piece))  # it is the caller's again
            assert store.stat("rank_0/large") is None
            writer.finish()
            writer.abort()
            reader = store.open("rank_0/large")
            assert reader.size == len(content)
            assert reader.read(0, reader.size) == content
            store.delete("rank_0/large")

    def test_leftovers_of_a_killed_writer_are_deleted(self, store: Store) -> None:
        writer = store.create("rank_0/x", temporary="tmp/x", mode=MODE, size=40 << 20)
        writer.write(bytes(20 << 20))
        store.abort_stale_uploads(["rank_0/y", "rank_0/x2", "rank_0"], silent=0)
        store.abort_stale_uploads(["rank_0/x"], silent=60)
        writer.write(bytes(20 << 20))
        writer.finish()
        assert store.stat("rank_0/x").size == 40 << 20
        store.abort_stale_uploads(["rank_0/x"], silent=0)
        assert store.stat("rank_0/x").size == 40 << 20

    def test_nested_places_are_recognized(self, store: Store) -> None:
        around = store.around()
        assert around[0] not in around[1:]
        assert open_store(f"{store.url}/inside").around()[1:] == around

    def test_missing_and_too_long_names_are_reported(self, store: Store) -> None:
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
