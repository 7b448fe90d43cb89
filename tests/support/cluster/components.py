"""Start components in parallel, wait until all are ready, and report which one is not and why."""

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.layout import ClusterError, search_path


@dataclass
class Component:
    """A program that runs as long as the cluster does, or one with a task, which is ready when the task is done."""

    name: str
    command: list[str]
    ready: Callable[[], object] | None  # false, or an OSError, until it is; none for a task
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        """Start it, apart from the terminal: Ctrl-C is for the command that the cluster is there for."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            environment = {**os.environ, "PATH": search_path()}
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def check(self) -> bool:
        """Return whether it is ready."""
        code = self.process.poll()
        if self.ready is None and code in {None, 0}:
            return code == 0
        if self.ready is None or code is not None:
            raise ClusterError(f"{self.name} ended with {code}\n{self.last_words()}")
        try:
            return bool(self.ready())
        except OSError:
            return False

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])


def wait(components: list[Component], seconds: float) -> None:
    """Wait until all of them are ready."""
    end = time.monotonic() + seconds
    waiting = components
    while waiting := [component for component in waiting if not component.check()]:
        if time.monotonic() > end:
            late = waiting[0]
            raise ClusterError(f"{late.name} is not ready after {seconds:.0f} s\n{late.last_words()}")
        time.sleep(0.05)
