"""One writer at a time: a lock file with an owner and a heartbeat."""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from reshard.checkpoint.manifest import decode
from reshard.errors import AccessError, DataError, LockedError, MissingInputError
from reshard.target.folder import LOCK
from reshard.target.process import ProcessId, has_ended, start_time, this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.storage.protocol import Store
    from reshard.target.folder import TargetFolder
    from reshard.target.standing import Identity

HEARTBEAT_SECONDS = 10.0
# A lock without a heartbeat for this long has expired. Several heartbeats, because shared file systems can stall.
STALE_SECONDS = 60.0
_LARGEST_LOCK = 4096
_MEMBER = ".member"

T = TypeVar("T")


class LockOwner(msgspec.Struct, frozen=True):
    """Who holds a lock.

    Attributes:
        owner: processes of one owner share the lock; the pods of a transform have its UID, others are alone.
        host: the machine that the process runs on, for messages; of a shared lock that of the first.
        process: its `ProcessId` as text.
        shared: whether others may have joined, about whom this says nothing.
    """

    owner: str
    host: str
    process: str
    shared: bool = False


class LockHandle:
    """A lock that this process holds, as long as nobody has taken it over."""

    def __init__(self, store: Store, path: str, owner: LockOwner, mode: int | None) -> None:
        self._store, self._path, self._owner, self._mode = store, path, owner, mode

    def check(self) -> None:
        """To be called before anything appears at its final place.

        Raises:
            LockedError: another has taken the lock over; this process was out of touch for too long.
        """
        found = _read(self._store, self._path)
        if found is None and self._owner.shared:  # another of its owner took itself for the last, and gave it back
            self._store.write_new(self._path, msgspec.json.encode(self._owner), mode=self._mode)
            found = _read(self._store, self._path)
        if found is None or found.owner != self._owner.owner:
            raise LockedError(
                "LockLost",
                "another run has taken over this target, because the heartbeat of this run stopped for too long",
                where=self._store.url,
                fix="wait until the other run has finished, then run again",
            )

    def release(self) -> None:
        """Give it back, unless it is somebody else's by now."""
        found = _read(self._store, self._path)
        if found is not None and found.owner == self._owner.owner:
            self._store.delete(self._path)


@contextmanager
def locked(store: Store, path: str, *, owner: str | None, mode: int | None) -> Iterator[LockHandle]:
    """Hold the lock at `path` while the body runs.

    Args:
        store: the storage that the lock is in.
        path: the lock file.
        owner: shared by processes that work on one job together; the last of them gives it back. None: nobody shares it.
        mode: permission bits of the file.

    Raises:
        LockedError: someone else holds it.
    """
    process = this_process()
    me = LockOwner(owner or uuid.uuid4().hex, socket.gethostname(), str(process), shared=owner is not None)
    member = f"{path}.{process}.{uuid.uuid4().hex}{_MEMBER}"
    if me.shared:  # first of all, so that nobody takes the lock for abandoned
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
            if not (me.shared and any(other != member for other, _ in _members(store, path))):
                handle.release()
    finally:
        if me.shared:
            store.delete(member)


@contextmanager
def writing(target: TargetFolder, job: Identity, *, owner: str | None) -> Iterator[Callable[[], None]]:
    """Hold what a job needs to write to a target. Jobs that make parts of one checkpoint share the target; no other does.

    Args:
        target: the target that is written to.
        job: what is to be written.
        owner: shared by processes that write the job together, as of `locked`.

    Yields:
        What `LockHandle.check` is for one lock.

    Raises:
        LockedError: someone else writes there.
    """
    if job.stage is None:
        with locked(target.store, LOCK, owner=owner, mode=target.mode) as held:
            yield held.check
        return
    with (
        locked(target.store, LOCK, owner=f"parts-{job.whole}", mode=target.mode) as shared,
        locked(target.store, f"{LOCK}-stage{job.stage}", owner=owner, mode=target.mode) as own,
    ):

        def check() -> None:
            shared.check()
            own.check()

        yield check


@contextmanager
def serialized(target: TargetFolder, path: str, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that everyone holds for moments only: wait for it. `check` raises to cancel the wait.

    Raises:
        LockedError: someone holds it for longer than that.
    """
    with contextlib.ExitStack() as stack:
        retry_until_unlocked(lambda: stack.enter_context(locked(target.store, path, owner=None, mode=target.mode)), check=check)
        yield


def retry_until_unlocked(work: Callable[[], T], seconds: float = STALE_SECONDS, *, check: Callable[[], None] = lambda: None) -> T:
    """Do what needs a lock that others hold for moments only: wait for them. `check` raises to cancel the wait.

    Raises:
        LockedError: someone holds it for longer than that.
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
    """The processes, as text, that share a lock and are not gone. Of a lock that is not shared: none but the caller."""
    return frozenset(process for _, process in _members(store, path))


def _members(store: Store, path: str) -> Iterator[tuple[str, str]]:
    """The files and processes of those who share a lock and are not gone. Files of those who are gone are deleted."""
    folder, _, name = path.rpartition("/")
    for entry in store.list(folder):
        if entry.name.startswith(f"{name}.") and entry.name.endswith(_MEMBER):
            member, process = f"{folder}/{entry.name}", entry.name.removeprefix(f"{name}.").partition(".")[0]
            if not _is_abandoned(store, member, process):
                yield member, process
                continue
            with contextlib.suppress(AccessError):  # one that nobody may delete expires all the same
                store.delete(member)


def _acquire(store: Store, path: str, me: LockOwner, mode: int | None) -> None:
    content = msgspec.json.encode(me)
    for _ in range(3):  # each time another process may be first, but not for ever
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
    raise LockedError("TargetLocked", "other runs are competing for this target", where=store.url, fix="run again")


def _read(store: Store, path: str) -> LockOwner | None:
    try:
        return decode(store.read(path, _LARGEST_LOCK), LockOwner, path)
    except MissingInputError:
        return None
    except DataError:  # damaged, or another version's: only its heartbeat counts
        return LockOwner("", "unknown", "")


def _has_expired(store: Store, path: str, owner: LockOwner) -> bool:
    if owner.shared and owner.owner:
        return not any(True for _ in _members(store, path))
    return _is_abandoned(store, path, owner.process)


def _is_abandoned(store: Store, path: str, process: str) -> bool:
    """Whether a file has no heartbeat any more. A process that is known to be gone has none; otherwise its age decides."""
    other = ProcessId.parse(process)
    if other is not None and has_ended(other, this_process(), start_time):
        return True
    age = store.age(path)
    return age is None or abs(age) > STALE_SECONDS  # a modification time in the future is stale


def _beat(store: Store, path: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        # Whatever goes wrong now may go well the next time. What is lost shows when the work's own files appear.
        with contextlib.suppress(Exception):
            store.touch(path)
