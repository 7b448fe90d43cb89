"""The world of a simulation: the files of a store, and its clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulation.processes import Process, Scheduler


@dataclass(frozen=True)
class File:
    """One version of a file."""

    content: bytes
    version: str
    modified: float


@dataclass
class World:
    """The content of a store, and its clock.

    Attributes:
        files: files by path.
        folders: folders, in a file system.
        uploads: unfinished uploads by number, as path and content.
        now: clock of the store.
        scheduler: scheduler of the processes. None: each call takes effect at once, and the clock is that of the machine.
    """

    files: dict[str, File] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    uploads: dict[int, tuple[str, float]] = field(default_factory=dict)
    clock: float = 1_000_000.0
    scheduler: Scheduler | None = None
    serial: int = 0

    @property
    def now(self) -> float:
        return self.clock if self.scheduler is not None else time.time()

    @property
    def state(self) -> object:
        """The state of the world, to recognize it in another schedule."""
        return frozenset(self.files.items()), frozenset(self.uploads.items()), frozenset(self.folders), self.clock

    def step(self, what: str, *, writes: bool = False, server: bool = False, fenced: bool = True) -> str:
        return self.scheduler.step(what, writes=writes, server=server, fenced=fenced) if self.scheduler is not None else ""

    def advance(self, seconds: float, beating: Sequence[Process]) -> None:
        """Let time pass, after which these processes have refreshed their locks."""
        self.clock += seconds
        for path in [path for process in beating for path in process.beats]:
            if (file := self.files.get(path)) is not None:
                self.serial += 1
                self.files[path] = File(file.content, f"{file.version}+{self.serial}", self.clock)

    def observe(self, *what: object) -> None:
        if self.scheduler is not None:
            self.scheduler.observe(*what)
