"""Shell completion, in the shells themselves."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

_START = {  # each shell without configuration, and the command that loads the completion
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(reshard completion bash)"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit && compinit -u -d zcompdump && source <(reshard completion zsh)"),
    "fish": (["fish", "--no-config", "-i"], "reshard completion fish | source"),
}
_LONGEST_SECONDS = 120  # on a machine that is busy with other tests


class Shell:
    """An interactive shell on a terminal of its own, with completion loaded."""

    def __init__(self, name: str, folder: Path) -> None:
        command, load = _START[name]
        self.process, self._terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = {"HOME": str(folder), "TERM": "xterm", "LINES": "50", "LANG": "C.UTF-8", "PATH": programs}
            os.execvpe(command[0], command, environment)  # noqa: S606 - the command is a shell of this test
        self.enter(f"{load}; echo loa''ded\n", "loaded")

    def enter(self, keys: str, expected: str) -> str:
        """Type, and return the shell's output once that contains the expected text."""
        os.write(self._terminal, keys.encode())
        shown, deadline = "", time.monotonic() + _LONGEST_SECONDS
        while expected not in shown:
            ready = select.select([self._terminal], [], [], max(deadline - time.monotonic(), 0))[0]
            assert ready, f"{expected!r} not in {shown!r}"
            shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(self._terminal, 1 << 16).decode(errors="replace"))
        return shown

    def end(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self._terminal)


@pytest.mark.parametrize("name", _START)
def test_completion(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    (tmp_path / "checkpoint_0.ckpt").touch()
    (tmp_path / "results").mkdir()
    shell = Shell(name, tmp_path)
    try:
        for typed, completed in (
            ("reshard conv", "convert "),
            ("reshard strategy mer", "merge "),
            ("reshard transform --outp", "--output "),
            ("reshard transform --max-f", "--max-file-size-bytes "),
            ("reshard transform --output un", "unified "),
            ("reshard plan --format saf", "safetensors "),
            ("reshard verify --addressing-style pa", "path "),
            ("reshard inspect check", "checkpoint_0.ckpt"),
            ("reshard verify res", "results/"),
            ("reshard completion fi", "fish "),
        ):
            shell.enter(f"{typed}\t", completed)
            shell.enter("\x15", "")
        listed = shell.enter("reshard transform --\t\t", "--file-mode")
        assert "pipeline stage of the source" not in listed
    finally:
        shell.end()
