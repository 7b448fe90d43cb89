"""A commit of many ranks, and a run with nothing to do, take few sequential round trips."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rawfiles

from reshard.spec.request import Options, Request
from reshard.storage.local import LocalStore
from reshard.storage.protocol import Stat
from reshard.transform.complete import commit_checkpoint
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

RANKS = 64


class Trips:
    """Counts accesses to stores, and those that started while no other was in progress: these are sequential."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, int] = {}
        self.alone = 0
        self._under_way, self._lock = 0, threading.Lock()
        for name in ("list", "stat", "stats", "open", "read", "write", "write_new", "delete", "move"):
            patch.setattr(LocalStore, name, self._counted(name, getattr(LocalStore, name)))

    def _counted(self, name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        def access(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self.calls[name] = self.calls.get(name, 0) + 1
                self.alone += not self._under_way
                self._under_way += 1
            time.sleep(0.002)
            try:
                return usual(*arguments, **named)
            finally:
                with self._lock:
                    self._under_way -= 1

        return access

    def reset(self) -> None:
        self.calls.clear()
        self.alone = 0


def one_listing(self: LocalStore, paths: list[str]) -> dict[str, Stat]:
    """List as an object store does."""
    found = {str(p.relative_to(self.root)): p.stat().st_size for p in Path(self.root).rglob("*") if p.is_file()}
    return {path: Stat(path, is_folder=False, size=found[path], version="") for path in paths if path in found}


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    for rank in range(RANKS):
        path = tmp_path / "src" / f"rank_{rank}" / "net-1_100.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(rawfiles.ckpt({"w": np.zeros(4, np.int8)}))
    return Request(str(tmp_path / "src"), str(tmp_path / "out"), options=Options(output="Same"))


def test_ranks_are_listed_once_and_read_together(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "stats", one_listing)
    transform_checkpoint(request_, workers=2, commit=False)
    with monkeypatch.context() as patch:
        trips = Trips(patch)
        commit_checkpoint(request_.target)
        assert trips.calls["stats"] == 1
        assert trips.calls.get("stat", 0) + trips.calls["list"] < RANKS // 2
        assert trips.calls["read"] < RANKS + RANKS // 2  # a record of each
        assert trips.alone < RANKS
        trips.reset()
        assert transform_checkpoint(request_, workers=2).bytes_written == 0
        assert trips.calls["stats"] == 1
        assert trips.calls.get("stat", 0) + trips.calls.get("read", 0) < RANKS // 2
        # Headers of the source, and sampled blocks of the target's files; reading a manifest opens it too.
        assert trips.calls["open"] - trips.calls["read"] <= 2 * RANKS
