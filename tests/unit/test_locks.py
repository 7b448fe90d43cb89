"""The lock of a target: who has it, who takes it over, who has lost it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from reshard.errors import LockedError
from reshard.storage.local import LocalStore
from reshard.target.folder import LOCK
from reshard.target.lock import locked, writer_is_gone, writer_name

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def test_a_shared_lock_is_kept_as_long_as_one_of_its_holders_lives(target: Path) -> None:
    """The first of them, whom the lock names, may have gone before."""
    target.mkdir()
    store = LocalStore(target)
    first = locked(store, LOCK, owner="job", mode=0o640)
    first.__enter__()
    with locked(store, LOCK, owner="job", mode=0o640):
        first.__exit__(None, None, None)
        with pytest.raises(LockedError, match="TargetLocked"), locked(store, LOCK, owner=None, mode=0o640):
            pass
    with locked(store, LOCK, owner=None, mode=0o640):
        pass
    assert [path.name for path in (target / ".reshard").iterdir()] == []


def test_a_shared_lock_whose_holders_were_killed_is_taken_over(target: Path) -> None:
    target.mkdir()
    store = LocalStore(target)
    held = locked(store, LOCK, owner="job", mode=0o640)
    held.__enter__()
    sharer = next((target / ".reshard").glob("*.sharer"))
    sharer.rename(sharer.with_name(sharer.name.replace(f"-{os.getpid()}.", f"-{2**22 - 1}.")))
    with locked(store, LOCK, owner=None, mode=0o640):
        pass


def test_a_lock_with_a_time_in_the_future_lapses(target: Path) -> None:
    target.mkdir()
    store = LocalStore(target)
    content = {"owner": "x", "host": "elsewhere", "pid": 1, "boot": "b", "shared": False}
    store.write(LOCK, json.dumps(content).encode(), mode=0o640)
    with pytest.raises(LockedError), locked(store, LOCK, owner=None, mode=0o640):
        pass
    os.utime(target / LOCK, (2**33, 2**33))
    with locked(store, LOCK, owner=None, mode=0o640):
        pass


def test_who_has_lost_the_lock_writes_nothing_and_releases_nothing(target: Path) -> None:
    target.mkdir()
    store = LocalStore(target)
    with locked(store, LOCK, owner="first", mode=0o640) as lock:
        lock.check()
        store.write(LOCK, b'{"owner": "second", "host": "h", "pid": 1, "boot": ""}', mode=0o640)
        with pytest.raises(LockedError, match="LockLost"):
            lock.check()
    assert "second" in (target / LOCK).read_text()


def test_temporaries_of_the_living_stay(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "t").write_bytes(b"")
    machine = writer_name().rpartition("-")[0]
    assert not writer_is_gone(store, writer_name(), "t")
    assert not writer_is_gone(store, f"{machine}-1", "t")
    assert writer_is_gone(store, f"{machine}-{2**22 - 1}", "t")
    assert not writer_is_gone(store, "othermachine-1", "t")
    os.utime(tmp_path / "t", (1, 1))
    assert writer_is_gone(store, "othermachine-1", "t")


def test_a_shared_lock_that_a_leaving_one_gave_back_is_taken_again(target: Path) -> None:
    target.mkdir()
    store = LocalStore(target)
    with locked(store, LOCK, owner="job", mode=0o640) as lock:
        store.delete(LOCK)
        lock.check()
        assert (target / LOCK).exists()
