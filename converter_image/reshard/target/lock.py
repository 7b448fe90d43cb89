"""Allow one writer at a time, with a lock file that contains an owner and has a heartbeat."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import uuid
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import msgspec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from reshard.checkpoint.manifest import decode
from reshard.errors import AccessError, DataError, LockedError, MissingInputError
from reshard.storage.cancellable import not_cancelled
from reshard.target.documents import LOCK
from reshard.target.process import ProcessId, has_ended, start_time, this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.storage.protocol import Store
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import Identity

HEARTBEAT_SECONDS = 10.0
# A lock without a heartbeat for this long has expired. It covers several heartbeats, because shared file systems can stall.
STALE_SECONDS = 60.0
_LARGEST_LOCK = 4096
_MEMBER = ".member"

T = TypeVar("T")


class LockOwner(msgspec.Struct, frozen=True):
    """The owner of a lock.

    Attributes:
        owner: name of the owner, whose processes share the lock. The pods of a transform use its UID. Other processes have unique
            owners.
        host: machine that the process runs on, for messages. For a shared lock: the machine of the first process.
        process: its `ProcessId` as text.
        shared: whether other processes may share the lock. They are not listed here.
    """

    owner: str
    host: str
    process: str
    shared: bool = False


class LockHandle:
    """A lock that this process holds, until another process takes it over."""

    def __init__(self, store: Store, path: str, owner: LockOwner, mode: int | None) -> None:
        self._store, self._path, self._owner, self._mode = store, path, owner, mode

    def check(self) -> None:
        """Check that this process still holds the lock. Call this method before a file appears at its final path.

        Raises:
            LockedError: another process has taken the lock over, because this process had no heartbeat for too long.
        """
        found = _read(self._store, self._path)
        if found is None and self._owner.shared:  # another process of this owner considered itself the last
            self._store.write_new(self._path, msgspec.json.encode(self._owner), mode=self._mode)
            found = _read(self._store, self._path)
        if found is None or found.owner != self._owner.owner:
            raise LockedError(
                "LockLost",
                "another run has taken over this target, because the heartbeat of this run stopped for too long",
                where=self._store.url,
                fix="wait until the other run has finished, then retry",
            )

    def release(self) -> None:
        """Release the lock, unless another owner has taken it over."""
        found = _read(self._store, self._path)
        if found is not None and found.owner == self._owner.owner:
            self._store.delete(self._path)


@contextmanager
def locked(store: Store, path: str, *, owner: str | None, mode: int | None) -> Iterator[LockHandle]:
    """Hold the lock at `path` while the body runs.

    Args:
        store: store of the lock file.
        path: path of the lock file.
        owner: name shared by processes that work on one task together. The last of them releases the lock. None means that the
            lock is not shared.
        mode: permission bits of the file.

    Raises:
        LockedError: another owner holds the lock.
    """
    process = this_process()
    me = LockOwner(owner or uuid.uuid4().hex, socket.gethostname(), str(process), shared=owner is not None)
    member = member_path(path, str(process), me.owner)
    if me.shared:  # join first, so that no other process considers the lock abandoned
        store.write(member, b"", mode=mode)
    stop = threading.Event()
    heart = threading.Thread(
        target=_beat, args=(store, member if me.shared else path, stop), daemon=True, name="reshard-heartbeat"
    )
    try:
        _acquire(store, path, me, mode)
        heart.start()
        handle = LockHandle(store, path, me, mode)
        try:
            yield handle
        finally:
            stop.set()
            heart.join()
            with not_cancelled():
                if not (me.shared and any(other != member for other, _ in _members(store, path, me.owner))):
                    handle.release()
    finally:
        if me.shared:
            with not_cancelled():
                store.delete(member)


@contextmanager
def writing(target: TargetFolder, task: Identity, *, owner: str | None) -> Iterator[TargetFolder]:
    """Hold the locks that a task requires to write to a target. Only tasks that write stages of one checkpoint share a target.

    Args:
        target: target to write to.
        task: task that will write.
        owner: name shared by processes that write the task together, as in `locked`.

    Yields:
        The target, which checks all locks.

    Raises:
        LockedError: another owner writes to the target.
    """
    if task.stage is None:
        with locked(target.store, LOCK, owner=owner, mode=target.mode) as held:
            yield replace(target, check_lock=held.check)
        return
    with (
        locked(target.store, LOCK, owner=f"parts-{task.whole}", mode=target.mode) as shared,
        locked(target.store, f"{LOCK}-stage{task.stage}", owner=owner, mode=target.mode) as own,
    ):

        def check() -> None:
            shared.check()
            own.check()

        yield replace(target, check_lock=check)


@contextmanager
def serialized(target: TargetFolder, path: str, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that is only ever held briefly, and wait until it is free. `check` raises to cancel the wait.

    Raises:
        LockedError: the lock is not released in time.
    """
    with contextlib.ExitStack() as stack:
        retry_until_unlocked(lambda: stack.enter_context(locked(target.store, path, owner=None, mode=target.mode)), check=check)
        yield


def retry_until_unlocked(work: Callable[[], T], seconds: float = STALE_SECONDS, *, check: Callable[[], None] = lambda: None) -> T:
    """Call a function that needs a lock that is only ever held briefly, and retry it until the lock is free.

    Raises:
        LockedError: the lock is not released in time.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(LockedError),
        wait=wait_random(0.05, 0.5),
        stop=stop_after_delay(seconds),
        before_sleep=lambda _: check(),
        reraise=True,
    )
    return retrying(work)


def live_writers(store: Store, path: str = LOCK) -> frozenset[str]:
    """Return the processes, as text, that share a lock and have not ended. A lock that is not shared has none."""
    return frozenset(process for _, process in _members(store, path))


def dismiss_writers(target: TargetFolder, task: Identity, owner: str) -> None:
    """Delete the files of other processes of an owner that share the lock of a complete task. They have nothing left to write.

    Nothing else shows that a process on another machine was killed, so the lock would remain until somebody uses the target.
    """
    path = LOCK if task.stage is None else f"{LOCK}-stage{task.stage}"
    for member, process in list(_members(target.store, path, owner)):
        if process != str(this_process()):
            target.store.delete(member)


def member_path(path: str, process: str, owner: str) -> str:
    """Return a new path for the file with which a process of an owner shares the lock at `path`."""
    return f"{path}.{process}.{_digest(owner)}.{uuid.uuid4().hex}{_MEMBER}"


def _digest(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def _members(store: Store, path: str, owner: str | None = None) -> Iterator[tuple[str, str]]:
    """Yield the files and processes that share a lock and have not ended. Delete the files of those that have ended.

    Processes of another owner that try to get the lock have files too. `owner` selects one owner. Default: all.
    """
    folder, _, name = path.rpartition("/")
    for entry in store.list(folder):
        if entry.name.startswith(f"{name}.") and entry.name.endswith(_MEMBER):
            member = f"{folder}/{entry.name}"
            process, _, rest = entry.name.removeprefix(f"{name}.").partition(".")
            if owner is not None and not rest.startswith(f"{_digest(owner)}."):
                continue
            if not _is_abandoned(store, member, process):
                yield member, process
                continue
            with contextlib.suppress(AccessError):  # a file that cannot be deleted expires anyway
                store.delete(member)


def _acquire(store: Store, path: str, me: LockOwner, mode: int | None) -> None:
    content = msgspec.json.encode(me)
    for _ in range(3):  # another process may be faster each time, but not forever
        if store.write_new(path, content, mode=mode):
            return
        found, other = store.stat(path), _read(store, path)
        if found is None or other is None:
            continue
        if other.owner == me.owner:
            return
        if not _has_expired(store, path, other):
            process = ProcessId.parse(other.process)
            who = f"process {process.pid} on {other.host}" if process is not None else "an unknown process"
            raise LockedError(
                "TargetLocked",
                f"another run is writing to this target: {who}",
                where=store.url,
                fix=f"wait until it finishes; if it was killed, its lock expires {STALE_SECONDS:.0f} s after its last heartbeat",
            )
        if store.swap(path, content, found.version, mode=mode):
            return
    raise LockedError("TargetLocked", "several other runs are trying to lock this target", where=store.url, fix="retry")


def _read(store: Store, path: str) -> LockOwner | None:
    try:
        return decode(store.read(path, _LARGEST_LOCK), LockOwner, path)
    except MissingInputError:
        return None
    except DataError:  # damaged, or of another version: only its heartbeat counts
        return LockOwner("", "unknown", "")


def _has_expired(store: Store, path: str, owner: LockOwner) -> bool:
    if owner.shared and owner.owner:
        return not any(True for _ in _members(store, path, owner.owner))
    return _is_abandoned(store, path, owner.process)


def _is_abandoned(store: Store, path: str, process: str) -> bool:
    """Return whether a file has no heartbeat any more: its process is known to have ended, or else its age exceeds the limit."""
    other = ProcessId.parse(process)
    if other is not None and has_ended(other, this_process(), start_time):
        return True
    age = store.age(path)
    return age is None or abs(age) > STALE_SECONDS  # treat a modification time in the future as stale


def _beat(store: Store, path: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        # An error here may be temporary. If the lock is lost, `LockHandle.check` reports it before files appear.
        with contextlib.suppress(Exception):
            store.touch(path)
