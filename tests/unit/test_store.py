"""The local store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from store_contract import StoreContract

from reshard.errors import MissingInputError
from reshard.storage import open_store

if TYPE_CHECKING:
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
