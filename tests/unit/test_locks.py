"""The lock of a target: its holder, takeover, and loss."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from reshard.checkpoint.manifest import encode
from reshard.errors import LockedError
from reshard.storage.local import LocalStore
from reshard.target import lock as lock_module
from reshard.target import process as process_module
from reshard.target.documents import LOCK
from reshard.target.folder import TargetFolder
from reshard.target.lock import STALE_SECONDS, LockOwner, live_writers, locked
from reshard.target.process import UNKNOWN, ProcessId, has_ended, start_time, this_process

if TYPE_CHECKING:
    from pathlib import Path

HERE = ProcessId("a" * 12, 1, 500, "b" * 12, "c" * 12)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def leave_lock(target: Path, process: ProcessId | str) -> Path:
    """Leave the lock of a process that was just killed."""
    path = target / LOCK
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(LockOwner("other", "host", str(process))))
    return path


def can_lock(target: Path, owner: str | None = None) -> bool:
    try:
        with locked(LocalStore(target), LOCK, owner=owner, mode=0o640):
            return True
    except LockedError:
        return False


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("process", [HERE, ProcessId("", 0, UNKNOWN), ProcessId("a" * 12, 2**22, 2**63), this_process()])
def test_a_process_is_read_as_it_is_written(process: ProcessId) -> None:
    assert ProcessId.parse(str(process)) == process


@pytest.mark.parametrize("text", ["", "1", "host-1", "a-1-1--", "-1-1-", "--1--", "-1-1--x", f"-{9**99}-1--", "-\u0663-1--"])
def test_other_text_is_not_a_process(text: str) -> None:
    assert ProcessId.parse(text) is None


@pytest.mark.parametrize(
    ("process", "started", "ended"),
    [
        (HERE, 500, False),
        (HERE, 501, True),  # by now another process has the PID
        (HERE, None, True),
        (HERE, UNKNOWN, False),  # hidden from this user
        (HERE._replace(started=UNKNOWN), 501, False),
        (HERE._replace(machine="d" * 12), None, False),  # the same container, in a PID namespace of its own
        (HERE._replace(machine="d" * 12, instance="e" * 12), 500, True),  # this container before it was restarted
        (HERE._replace(machine="d" * 12, container="e" * 12, instance="e" * 12), None, False),
        (HERE._replace(machine="d" * 12, container="", instance=""), None, False),
    ],
)
def test_a_process_is_known_to_have_ended(process: ProcessId, started: int | None, ended: bool) -> None:
    assert has_ended(process, HERE, lambda _: started) is ended


def test_process_state_is_unknown_if_the_system_does_not_report_it() -> None:
    nowhere = ProcessId("", 1, UNKNOWN)
    assert not has_ended(nowhere, nowhere, lambda _: None)


def test_a_lock_expires_although_a_process_has_its_holders_pid(target: Path) -> None:
    """PIDs are reused: on a host, and as PID 1 of a restarted container."""
    me = this_process()
    assert start_time(os.getpid()) == me.started != UNKNOWN
    leave_lock(target, me._replace(started=me.started - 1))
    assert can_lock(target)


def test_a_process_whose_parent_never_reads_its_exit_code_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(child.pid) is None
    finally:
        child.wait()


def test_the_heartbeat_decides_even_if_the_process_runs(target: Path) -> None:
    path = leave_lock(target, this_process())
    assert not can_lock(target)
    age(path, STALE_SECONDS + 1)
    assert can_lock(target)


@pytest.mark.parametrize("process", ["", "from another version", str(HERE)])
def test_a_holder_of_which_nothing_is_known_has_until_its_heartbeat_stops(target: Path, process: str) -> None:
    path = leave_lock(target, process)
    age(path, STALE_SECONDS - 10)
    assert not can_lock(target)
    age(path, STALE_SECONDS + 1)
    assert can_lock(target)


def test_a_container_that_restarts_in_its_pod_resumes_at_once(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounted(pod: str, name: str, start: str) -> str:
        return f"36 35 98:0 /kubelet/pods/{pod}/containers/{name}/{start} /dev/termination-log rw - ext4 /dev/vda1 rw\n"

    def process_in(mounts: str, namespace: str) -> ProcessId:
        read = process_module._read  # noqa: SLF001 - replaced below
        with monkeypatch.context() as patched:
            patched.setattr(process_module, "_read", lambda path: mounts if path.endswith("mountinfo") else read(path))
            patched.setattr(os, "readlink", lambda _: namespace)
            return process_module._identity.__wrapped__(os.getpid())  # noqa: SLF001 - without its cache

    now = process_in(mounted("uid", "ranks", "b7"), "pid:[2]")
    monkeypatch.setattr(lock_module, "this_process", lambda: now)
    leave_lock(target, process_in(mounted("uid", "ranks", "a9"), "pid:[1]"))
    assert can_lock(target)
    for other in (
        process_in(mounted("uid", "sidecar", "a9"), "pid:[1]"),
        process_in(mounted("another", "ranks", "a9"), "pid:[1]"),
        process_in("", "pid:[1]"),
    ):
        leave_lock(target, other)
        assert not can_lock(target)


def hold(path: str, ready: multiprocessing.synchronize.Event) -> None:
    with locked(LocalStore(path), LOCK, owner=None, mode=0o640):
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once(target: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=hold, args=(str(target), ready))
    process.start()
    try:
        assert ready.wait(60)
        assert not can_lock(target)
    finally:
        process.kill()
        process.join()
    assert can_lock(target)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="takes root, and unshare")
def test_pid_1_of_another_namespace_is_another_process(target: Path) -> None:
    """Both processes of a restarted container are PID 1, and the second one must not wait for itself for ever."""
    program = (
        "import os, sys; from reshard.storage.local import LocalStore; from reshard.target.lock import *; "
        "from reshard.target.documents import LOCK; assert os.getpid() == 1; "
        "handle = locked(LocalStore(sys.argv[1]), LOCK, owner=None, mode=0o640); handle.__enter__(); os._exit(0)"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program, str(target)]
    subprocess.run(command, check=True)
    age(target / LOCK, STALE_SECONDS + 1)
    subprocess.run(command, check=True)


def test_a_shared_lock_is_kept_as_long_as_one_of_its_members_lives(target: Path) -> None:
    """The first member, which the lock names, may have left before."""
    store = LocalStore(target)
    first = locked(store, LOCK, owner="task", mode=0o640)
    first.__enter__()
    with locked(store, LOCK, owner="task", mode=0o640):
        first.__exit__(None, None, None)
        assert not can_lock(target)
    assert can_lock(target)
    assert [path.name for path in (target / ".reshard").iterdir()] == []


@pytest.mark.parametrize("gone", ["its PID is another's", "its heartbeat stopped"])
def test_a_shared_lock_whose_members_were_killed_is_taken_over(target: Path, gone: str) -> None:
    me, store = this_process(), LocalStore(target)
    held = locked(store, LOCK, owner="task", mode=0o640)
    held.__enter__()
    member = next((target / ".reshard").glob("*.member"))
    if gone == "its heartbeat stopped":
        age(member, STALE_SECONDS + 1)
    else:
        member.rename(member.with_name(member.name.replace(str(me), str(me._replace(started=me.started - 1)))))
    assert can_lock(target)
    assert not list((target / ".reshard").glob("*.member"))


def test_a_shared_lock_whose_members_were_killed_is_taken_over_by_several_processes(target: Path) -> None:
    """A soak found it: each process that tried to take the lock over counted as a living member of it."""
    store = LocalStore(target)
    held = locked(store, LOCK, owner="killed", mode=0o640)
    held.__enter__()
    (member,) = (target / ".reshard").glob("*.member")
    with pytest.raises(LockedError), locked(store, LOCK, owner="next", mode=0o640):
        pass
    age(member, STALE_SECONDS + 1)
    with locked(store, LOCK, owner="next", mode=0o640), locked(store, LOCK, owner="next", mode=0o640):
        assert not can_lock(target)
    assert [path.name for path in (target / ".reshard").iterdir()] == []


def test_a_lock_with_a_time_in_the_future_expires(target: Path) -> None:
    path = leave_lock(target, HERE)
    assert not can_lock(target)
    os.utime(path, (2**33, 2**33))
    assert can_lock(target)


def test_a_process_that_lost_the_lock_writes_and_releases_nothing(target: Path) -> None:
    store = LocalStore(target)
    with locked(store, LOCK, owner="first", mode=0o640) as handle:
        handle.check()
        store.write(LOCK, b'{"owner": "second", "host": "h", "process": ""}', mode=0o640)
        with pytest.raises(LockedError, match="LockLost"):
            handle.check()
    assert "second" in (target / LOCK).read_text()


def test_temporaries_belong_to_members_of_the_lock(target: Path) -> None:
    """A file that was not written to for long may belong to a process that waits for its source."""
    store, me = LocalStore(target), this_process()
    state = TargetFolder(store, 0o640).task("0123456789abcdef")
    living, gone = me._replace(started=me.started - 1), HERE
    temporaries = {process: target / state.folder / "tmp" / f"rank_0.{process}.x" for process in (living, gone)}
    member = target / f"{LOCK}.{HERE._replace(pid=7)}.x.member"
    for path in (member, *temporaries.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    member.rename(member.with_name(f"lock.{living}.x.member"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lock_module, "has_ended", lambda *_: False)
        age(temporaries[living], STALE_SECONDS + 1)
        assert live_writers(store) == {str(living)}
        state.sweep({0}, live_writers(store))
    assert [path.exists() for path in temporaries.values()] == [True, False]
    assert live_writers(store) == frozenset()
    state.sweep({1}, frozenset())
    assert temporaries[living].exists()
    state.sweep({0}, frozenset())
    assert not temporaries[living].exists()


def test_a_shared_lock_released_by_a_leaving_member_is_taken_again(target: Path) -> None:
    store = LocalStore(target)
    with locked(store, LOCK, owner="task", mode=0o640) as handle:
        store.delete(LOCK)
        handle.check()
        assert (target / LOCK).exists()


def test_the_heartbeat_continues_after_a_failed_beat(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Semaphore(0)

    def fail(_: LocalStore, path: str) -> None:
        beats.release()
        raise KeyError(path)

    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(LocalStore, "touch", fail)
    with locked(LocalStore(target), LOCK, owner=None, mode=0o640):
        for _ in range(3):
            assert beats.acquire(timeout=30)
