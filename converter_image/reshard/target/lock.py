"""One writer at a time: a lock file with an owner and a heartbeat."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from reshard.checkpoint.manifest import decode
from reshard.errors import AccessError, DataError, LockedError, MissingInputError, ReshardError
from reshard.target.folder import LOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.storage.protocol import Store
    from reshard.target.folder import TargetFolder
    from reshard.target.standing import Identity

HEARTBEAT_SECONDS = 10.0
# A lock whose holder has not been heard of for this long is nobody's. Several heartbeats, for shared file systems can stall.
STALE_SECONDS = 60.0
_LARGEST_LOCK = 4096
_SHARER = ".sharer"

T = TypeVar("T")


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock.

    Attributes:
        owner: those of one owner share the lock; a transform's pods have its UID, others are alone.
        host: the machine that the process runs on, that of the first who came.
        pid: the process's number there.
        boot: the run of that host's kernel (and which container) the pid belongs to.
        shared: whether others may have joined, of whom this says nothing.
    """

    owner: str
    host: str
    pid: int
    boot: str
    shared: bool = False


class Held:
    """A lock that this process has, as long as nobody has taken it over."""

    def __init__(self, store: Store, path: str, holder: Holder, mode: int) -> None:
        self._store, self._path, self._holder, self._mode = store, path, holder, mode

    def check(self) -> None:
        """To be called before anything appears at its final place.

        Raises:
            LockedError: another has taken the lock over; this process was out of touch for too long.
        """
        holder = _read(self._store, self._path)
        if holder is None and self._holder.shared:  # another of its owner took itself for the last, and gave it back
            self._store.write_new(self._path, msgspec.json.encode(self._holder), mode=self._mode)
            holder = _read(self._store, self._path)
        if holder is None or holder.owner != self._holder.owner:
            raise LockedError(
                "LockLost",
                "another run has taken this target over, because this one gave no sign of life for too long",
                where=self._store.url,
                fix="wait for it, then run again",
            )

    def release(self) -> None:
        """Give it back, unless it is somebody else's by now."""
        holder = _read(self._store, self._path)
        if holder is not None and holder.owner == self._holder.owner:
            self._store.delete(self._path)


@contextmanager
def locked(store: Store, path: str, *, owner: str | None, mode: int) -> Iterator[Held]:
    """Hold the lock at `path` while the body runs.

    Args:
        store: the storage that the lock is in.
        path: the lock file.
        owner: shared by processes that work on one job together; the last of them gives it back. None: nobody shares it.
        mode: permission bits of the file.

    Raises:
        LockedError: someone else holds it.
    """
    me = Holder(owner or uuid.uuid4().hex, socket.gethostname(), os.getpid(), _boot(), shared=owner is not None)
    sharer = f"{path}.{writer_name()}.{uuid.uuid4().hex}{_SHARER}"
    if me.shared:  # first of all, so that nobody takes the lock for abandoned
        store.write(sharer, b"", mode=mode)
    stop = threading.Event()
    heart = threading.Thread(
        target=_beat, args=(store, sharer if me.shared else path, stop), daemon=True, name="reshard-heartbeat"
    )
    try:
        _acquire(store, path, me, mode)
        heart.start()
        held = Held(store, path, me, mode)
        try:
            yield held
        finally:
            stop.set()
            heart.join()
            if not me.shared or not _has_sharers(store, path, besides=sharer):
                held.release()
    finally:
        if me.shared:
            store.delete(sharer)


@contextmanager
def writing(target: TargetFolder, job: Identity, *, owner: str | None) -> Iterator[Callable[[], None]]:
    """Hold what a job needs to write to a target. Jobs that make parts of one checkpoint share the target; no other does.

    Args:
        target: the target that is written to.
        job: what is to be written.
        owner: shared by processes that write the job together, as of `locked`.

    Yields:
        What `Held.check` is for one lock.

    Raises:
        LockedError: someone else writes there.
    """
    if job.part is None:
        with locked(target.store, LOCK, owner=owner, mode=target.mode) as held:
            yield held.check
        return
    with (
        locked(target.store, LOCK, owner=f"parts-{job.whole}", mode=target.mode) as shared,
        locked(target.store, f"{LOCK}-part{job.part}", owner=owner, mode=target.mode) as own,
    ):

        def check() -> None:
            shared.check()
            own.check()

        yield check


@contextmanager
def in_turn(target: TargetFolder, path: str, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that everyone holds for moments only: wait for it. `check` raises to cancel the wait.

    Raises:
        LockedError: someone holds it for longer than that.
    """
    with contextlib.ExitStack() as stack:
        patiently(lambda: stack.enter_context(locked(target.store, path, owner=None, mode=target.mode)), check=check)
        yield


def patiently(work: Callable[[], T], seconds: float = STALE_SECONDS, *, check: Callable[[], None] = lambda: None) -> T:
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


def _has_sharers(store: Store, path: str, *, besides: str = "") -> bool:
    """Whether any of those that share a lock is still there."""
    folder, _, name = path.rpartition("/")
    for entry in store.list(folder):
        full = f"{folder}/{entry.name}"
        if full != besides and entry.name.startswith(f"{name}.") and entry.name.endswith(_SHARER):
            writer = entry.name.removeprefix(f"{name}.").partition(".")[0]
            if not writer_is_gone(store, writer, full):
                return True
            with contextlib.suppress(AccessError):  # one that nobody may delete expires all the same
                store.delete(full)
    return False


def _acquire(store: Store, path: str, me: Holder, mode: int) -> None:
    content = msgspec.json.encode(me)
    for _ in range(3):  # each time someone else may be quicker, but not for ever
        if store.write_new(path, content, mode=mode):
            return
        found, holder = store.stat(path), _read(store, path)
        if found is None or holder is None:
            continue
        if holder.owner == me.owner:
            return
        if not _is_dead(store, path, holder):
            raise LockedError(
                "TargetLocked",
                f"another run writes to this target: process {holder.pid} on {holder.host}",
                where=store.url,
                fix=f"wait for it; if it is gone for good, its lock lapses {STALE_SECONDS:.0f} s after its last sign of life",
            )
        if store.swap(path, content, found.version, mode=mode):
            return
    raise LockedError("TargetLocked", "other runs compete for this target", where=store.url, fix="try again")


def _read(store: Store, path: str) -> Holder | None:
    try:
        return decode(store.read(path, _LARGEST_LOCK), Holder, path)
    except MissingInputError:
        return None
    except DataError:  # damaged: as old as its file, and of nobody we know
        return Holder("", "unknown", 0, "")


def _is_dead(store: Store, path: str, holder: Holder) -> bool:
    if holder.shared and holder.owner:
        return not _has_sharers(store, path)
    if holder.boot and holder.host == socket.gethostname() and holder.boot == _boot():
        return not _process_exists(holder.pid)
    return _is_silent(store, path)


def _is_silent(store: Store, path: str) -> bool:
    """Whether a file has not been touched for long."""
    age = store.age(path)
    return age is None or abs(age) > STALE_SECONDS  # a sign of life from the future is none


def writer_name() -> str:
    """This process, for the name of a temporary."""
    return f"{_machine()}-{os.getpid()}"


def writer_is_gone(store: Store, writer: str, path: str) -> bool:
    """Whether the process is gone that put its `writer_name` into the name of the file at `path`, and touches it."""
    machine, _, pid = writer.rpartition("-")
    if machine == _machine() and pid.isdigit():
        return not _process_exists(int(pid))
    return _is_silent(store, path)


def _machine() -> str:
    return hashlib.sha256(f"{socket.gethostname()}\0{_boot()}".encode()).hexdigest()[:12]


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot() -> str:
    """The kernel's boot and the process namespace: together they say what a pid means. Empty where they are not told."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _beat(store: Store, path: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(ReshardError):  # what is lost shows when the work's own files appear
            store.touch(path)
