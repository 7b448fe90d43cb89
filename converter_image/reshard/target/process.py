"""Identify a process, so that another process, perhaps on another machine, can find out whether it has ended."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

UNKNOWN = 0
_ENDED = {"Z", "X"}  # a zombie remains until its parent reads its exit code, which may never happen
_TOKEN = re.compile(r"([0-9a-f]{12})?-(\d{1,10})-(\d{1,20})-([0-9a-f]{12})?-([0-9a-f]{12})?", re.ASCII)
# kubelet mounts the termination message of a container from pods/<uid>/containers/<name>/<a new number for each start>.
_CONTAINER = re.compile(r"(\S*/pods/[^/\s]+/containers/[^/\s]+)/([0-9a-f]+) ", re.ASCII)


class ProcessId(NamedTuple):
    """One run of one process. Text fields are hashes. They are empty if the system does not report the value.

    Attributes:
        machine: host name, boot and PID namespace. If they are equal, equal PIDs mean the same process.
        pid: PID of the process on this machine.
        started: time of its start, in clock ticks since boot, because PIDs are reused. `UNKNOWN` means that it cannot be read.
        container: pod, and name of the container in it. Only one instance of a container runs at a time.
        instance: start of that container in which the process runs.
    """

    machine: str
    pid: int
    started: int
    container: str = ""
    instance: str = ""

    def __str__(self) -> str:
        """Return text that `parse` accepts, and that is valid in a file name."""
        return "-".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> ProcessId | None:
        """Return the process that `str` has written, or None if the text is not valid."""
        match = _TOKEN.fullmatch(text)
        if match is None:
            return None
        return cls(match[1] or "", int(match[2]), int(match[3]), match[4] or "", match[5] or "")


def has_ended(process: ProcessId, here: ProcessId, started: Callable[[int], int | None]) -> bool:
    """Return whether a process is known to have ended.

    Args:
        process: process to check.
        here: current process.
        started: function that returns the start time of the process with a PID. None means that there is none.
    """
    if process.machine and process.machine == here.machine:
        found = started(process.pid)
        return found is None or (UNKNOWN not in (found, process.started) and found != process.started)
    return bool(process.container) and process.container == here.container and process.instance != here.instance


def this_process() -> ProcessId:
    """Return the identity of this process."""
    return _identity(os.getpid())


@cache
def _identity(pid: int) -> ProcessId:
    machine = container = instance = ""
    host, boot = socket.gethostname(), _read("/proc/sys/kernel/random/boot_id").strip()
    try:
        machine = _hash(host, boot, os.readlink("/proc/self/ns/pid")) if boot else ""
    except OSError:
        boot = ""
    if boot and (match := _CONTAINER.search(_read("/proc/self/mountinfo"))) is not None:
        container, instance = _hash(host, boot, match[1]), _hash(match[2])
    return ProcessId(machine, pid, _state(pid)[1], container, instance)


def start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot, `UNKNOWN` if it is hidden, or None if it has ended."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    state, started = _state(pid)
    return None if state in _ENDED else started


def _state(pid: int) -> tuple[str, int]:
    """Return the state of a process and its start time, see proc_pid_stat(5)."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # the name before it may contain any character
    return (fields[0], int(fields[19])) if len(fields) > 19 else ("", UNKNOWN)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
