"""The local store."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from store_contract import StoreContract

from reshard.errors import DataError, MissingInputError, StorageError
from reshard.spec.storage_options import StorageOptions
from reshard.storage import open_store
from reshard.storage.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.storage.protocol import Store


class TestLocal(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "store"))


def test_dangling_links_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for name, to in (("dangling", "nothing"), ("loop", "loop"), ("below", "a/b")):
        (tmp_path / name).symlink_to(to)
    assert [s.name for s in open_store(str(tmp_path)).list("")] == ["a"]


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in ("pipe", "folder"):
        with pytest.raises(MissingInputError, match="NotAFile"):
            open_store(str(tmp_path)).open(path)
    with pytest.raises(MissingInputError, match="NotAFile"):
        open_store("/dev").open("full")


class TestConfined(StoreContract):
    """A claim may be a link itself, and contain links that stay in it."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "claim" / "real").mkdir(parents=True)
        (tmp_path / "claim" / "link").symlink_to("real")
        (tmp_path / "alias").symlink_to("claim")
        return open_store(str(tmp_path / "alias" / "link" / "store"), StorageOptions(inside=str(tmp_path / "alias")))


OUTSIDE: dict[str, Callable[[Store], object]] = {
    "list": lambda store: store.list("out"),
    "list below": lambda store: store.list("out/folder"),
    "list concurrently": lambda store: store.list_folders(["out"]),
    "stat": lambda store: store.stat("out/secret"),
    "stats": lambda store: store.stats(["out/secret"]),
    "read": lambda store: store.read("out/secret", 10),
    "create": lambda store: store.create("out/new", temporary="tmp", mode=None),
    "temporary file": lambda store: store.create("new", temporary="out/tmp", mode=None),
    "folder": lambda store: store.write("out/a/b", b"1", mode=None),
    "folder behind a link to nothing": lambda store: store.write("gone/a", b"1", mode=None),
    "write": lambda store: store.write("out/secret", b"1", mode=None),
    "write_new": lambda store: store.write_new("out/new", b"1", mode=None),
    "swap": lambda store: store.swap("out/secret", b"1", "x", mode=None),
    "swap of a link": lambda store: store.swap("file", b"1", "x", mode=None),
    "move from": lambda store: store.move("out/secret", "new"),
    "move to": lambda store: store.move("own", "out/own"),
    "can_link": lambda store: store.can_link("out", "HardLink"),
    "link from": lambda store: store.link("out/secret", "new", "HardLink", temporary="tmp", mode=None),
    "link of a link": lambda store: store.link("file", "new", "Clone", temporary="tmp", mode=None),
    "link to": lambda store: store.link("own", "out/own", "HardLink", temporary="tmp", mode=None),
    "link by": lambda store: store.link("own", "new", "HardLink", temporary="out/tmp", mode=None),
    "delete": lambda store: store.delete("out/secret"),
    "delete a folder": lambda store: store.delete("out/folder"),
    "delete_files": lambda store: store.delete_files(["out/secret"], prune=True),
    "delete through": lambda store: store.delete_files(["own"], through="out"),
    "touch": lambda store: store.touch("out/secret"),
    "touch a link": lambda store: store.touch("file"),
    "age": lambda store: store.age("out/secret"),
}


def contents(folder: Path) -> dict[str, tuple[float, bytes]]:
    return {str(path): (path.lstat().st_mtime, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")}


@pytest.mark.parametrize("access", OUTSIDE)
def test_no_access_leads_out_of_a_claim(tmp_path: Path, access: str) -> None:
    claim, other = tmp_path / "claim", tmp_path / "claim-of-others"
    (other / "folder").mkdir(parents=True)
    (other / "secret").write_bytes(b"s")
    (claim / "target").mkdir(parents=True)
    (claim / "target" / "own").write_bytes(b"o")
    for name, to in (("out", other), ("file", other / "secret"), ("gone", other / "nothing")):
        (claim / "target" / name).symlink_to(to)
    os.utime(other / "secret", (1, 1))
    before = contents(tmp_path)
    with pytest.raises(DataError, match="LinkOutside") as refused:
        OUTSIDE[access](open_store(str(claim / "target"), StorageOptions(inside=str(claim))))
    assert str(other) not in str(refused.value)
    assert contents(tmp_path) == before


def test_links_out_of_a_claim_can_be_deleted_and_replaced(tmp_path: Path) -> None:
    claim, other = tmp_path / "claim", tmp_path / "other"
    claim.mkdir()
    other.write_bytes(b"s")
    for name in ("a", "b"):
        (claim / name).symlink_to(other)
    store = open_store(str(claim), StorageOptions(inside=str(claim)))
    store.delete("a")
    store.write("b", b"1", mode=None)
    assert [(path.name, path.read_bytes()) for path in claim.iterdir()] == [("b", b"1")]
    assert other.read_bytes() == b"s"


@pytest.mark.parametrize(("left", "raises"), [(".nfs000000000001", False), ("written-meanwhile", True)])
def test_a_folder_remains_on_nfs_until_its_files_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, *, raises: bool
) -> None:
    """NFS renames a deleted file that is still open. A virtual machine with NFS showed it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / left).touch()

    def not_empty(_: str, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", not_empty)
    with pytest.raises(StorageError) if raises else nullcontext():
        LocalStore(tmp_path).delete("tmp")
