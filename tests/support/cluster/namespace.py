"""Run a program in its own namespaces. When it or its parent ends, by any signal, all processes in there end."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.layout import Layout, program


def run(command: list[str], options: list[str], *, keep: bool) -> int:
    """Run `python -m cluster.inside OPTIONS STATE -- COMMAND` and return its exit code. STATE goes with it unless kept."""
    layout = Layout(Path(tempfile.mkdtemp(prefix="reshard-cluster-")))
    if keep:
        print(f"cluster: logs and all else are kept in {layout.state}", file=sys.stderr)
    ending, running = os.pipe()
    cleanup = subprocess.Popen(
        [sys.executable, "-m", "cluster.cleanup", str(layout.state), *(["--keep"] if keep else [])],
        stdin=ending,
        start_new_session=True,  # it outlives a signal to this process' group
    )
    os.close(ending)
    try:
        process = _enter([*options, str(layout.state), "--", *command], running)
        _end_with_signals(process, terminal=not command)
        _tell_process(layout, process)
        code = process.wait()
        return 128 - code if code < 0 else code
    finally:
        os.close(running)
        cleanup.wait()


def _enter(arguments: list[str], running: int) -> subprocess.Popen[bytes]:
    # When this process is killed, setpriv ends unshare, and unshare ends the rest.
    death = [program("setpriv"), "--pdeathsig", "KILL"]
    spaces = [program("unshare"), "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    inside = [sys.executable, "-m", "cluster.inside", *arguments]
    return subprocess.Popen([*death, *spaces, *inside], pass_fds=[running])


def _end_with_signals(process: subprocess.Popen[bytes], *, terminal: bool) -> None:
    # The terminal sends Ctrl-C to a command too, which then ends by itself; without a command it ends the cluster.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: process.kill())
    signal.signal(signal.SIGINT, lambda *_: process.kill() if terminal else None)


def _tell_process(layout: Layout, process: subprocess.Popen[bytes]) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        if first := children.read_text().split()[:1]:
            layout.process.write_text(first[0])
            return
        time.sleep(0.01)
