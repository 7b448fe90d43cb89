"""Progress shown to users who wait."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import disk

if TYPE_CHECKING:
    from pathlib import Path


def run(arguments: list[str], *, terminal: bool) -> tuple[str, str]:
    """Standard output and standard error of a command; standard error is a terminal or not."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    said = bytearray()

    def listen() -> None:
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # a terminal that no other process has open
                return
            if not part:
                return
            said.extend(part)

    listener = threading.Thread(target=listen)
    listener.start()
    command = [sys.executable, "-m", "reshard", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=theirs, check=True, text=True, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    listener.join()
    os.close(ours)
    return done.stdout, said.decode()


def test_a_terminal_gets_a_bar_with_rate_and_time_left(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    _, said = run(made.arguments(tmp_path / "out"), terminal=True)
    assert "Resharding" in said
    assert "/s" in said
    assert "0:00:00" in said
    assert "\x1b[" in said


def test_a_log_gets_plain_lines(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out, said = run(made.arguments(tmp_path / "out"), terminal=False)
    assert said.splitlines()[0] == "Reading headers: 4 files"
    assert "\nResharding: " in said
    assert "\x1b" not in said + out
