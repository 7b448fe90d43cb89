"""One writer at a time: a lock file with an owner and a heartbeat."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import DataError, LockedError, MissingInputError, ReshardError
from reshard.manifest import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.storage.protocol import Store

HEARTBEAT_SECONDS = 10.0
# A lock whose holder has not been heard of for this long is nobody's. Several heartbeats, for shared file systems can stall.
STALE_SECONDS = 60.0
_LARGEST_LOCK = 4096


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock.

    Attributes:
        owner: those of one owner share the lock; a transform's pods have its UID, others are alone.
        host: where the process runs.
        pid: which it is there.
        boot: which run of that host's kernel (and which container) the pid belongs to.
    """

    owner: str
    host: str
    pid: int
    boot: str


@contextmanager
def locked(store: Store, path: str, *, owner: str | None, mode: int, release: bool = True) -> Iterator[None]:
    """Hold the lock at `path` while the body runs.

    Args:
        store: where.
        path: the lock file.
        owner: shared by processes that work on one job together; None: nobody shares it.
        mode: permission bits of the file.
        release: give it back at the end; False leaves it to the one who finishes the job.

    Raises:
        LockedError: someone else holds it.
    """
    me = Holder(owner or uuid.uuid4().hex, socket.gethostname(), os.getpid(), _boot())
    _acquire(store, path, me, mode)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(store, path, stop), daemon=True, name="reshard-heartbeat")
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        if release:
            store.delete(path)


def _acquire(store: Store, path: str, me: Holder, mode: int) -> None:
    content = msgspec.json.encode(me)
    for _ in range(3):  # each time someone else may be quicker, but not for ever
        if store.write_new(path, content, mode=mode):
            return
        holder = _read(store, path)
        if holder is not None and holder.owner == me.owner:
            return
        if holder is not None and not _is_dead(store, path, holder, mode):
            raise LockedError(
                "TargetLocked",
                f"another run writes to this target: process {holder.pid} on {holder.host}",
                where=store.url,
                fix=f"wait for it; if it is gone for good, its lock lapses {STALE_SECONDS:.0f} s after its last sign of life",
            )
        _take_away(store, path)
    raise LockedError("TargetLocked", "other runs compete for this target", where=store.url, fix="try again")


def _read(store: Store, path: str) -> Holder | None:
    try:
        return decode(store.read(path, _LARGEST_LOCK), Holder, path)
    except MissingInputError:
        return None
    except DataError:  # damaged: as old as its file, and of nobody we know
        return Holder("", "unknown", 0, "")


def _is_dead(store: Store, path: str, holder: Holder, mode: int) -> bool:
    if holder.boot and holder.host == socket.gethostname() and holder.boot == _boot():
        return not _process_exists(holder.pid)
    found = store.modified(path)
    if found is None:
        return True
    probe = f"{path}.{uuid.uuid4().hex}.now"  # the storage's own clock decides, not this machine's
    store.write(probe, b"", mode=mode)
    try:
        return store.touch(probe) - found > STALE_SECONDS
    finally:
        store.delete(probe)


def _take_away(store: Store, path: str) -> None:
    """Rename it first: of several that find the lock dead, one removes it, and none removes its successor."""
    grave = f"{path}.{uuid.uuid4().hex}.dead"
    try:
        store.move(path, grave)
    except ReshardError:
        return
    store.delete(grave)


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
        try:
            store.touch(path)
        except ReshardError:
            continue  # the storage's next answer will tell; a lost lock shows when the work's own files cannot be moved
