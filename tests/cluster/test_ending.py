"""A cluster inside this one's namespaces, ended in every way, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster.layout import program
from kubernetes_objects import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = Path("/sys/fs/cgroup")

# Its pod is running when it says where its state is.
BUSY = """
kubectl run busy --image localhost/reshard-base:tests --image-pull-policy Never --command -- sleep 1000 >&2
until kubectl wait --for condition=ready pod/busy --timeout 60s >&2; do sleep 0.2; done
echo "$RESHARD_CLUSTER"
"""


def _processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdecimal())


def _left(state: Path) -> list[str]:
    """Return the traces of a cluster. All its processes see its mounts, and only they hold its namespaces."""
    found = [str(state)] if state.exists() else []
    found += [str(group) for pattern in (state.name, f"*/{state.name}") for group in GROUPS.glob(pattern)]
    for process in _processes():
        try:
            if str(state) in (process / "mountinfo").read_text():
                found.append(f"mount seen by {process}")
            if str(state) in (process / "cmdline").read_text():
                found.append(f"process: {(process / 'cmdline').read_text()}")
        except OSError:
            continue  # it ended meanwhile
    return found


def _start(folder: Path, command: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "cluster", "run", "--", "sh", "-c", command]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_cluster_ended_by_a_signal_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with _start(tmp_path, f"{BUSY}exec sleep 1000") as process:
        assert process.stdout is not None
        state = Path(process.stdout.readline().strip())
        assert len(_left(state)) > 10  # so the test can detect it

        process.send_signal(number)

        assert process.wait(timeout=120) != 0
        wait_for(lambda: not _left(state))
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_ends_with_its_command_and_its_exit_code(tmp_path: Path) -> None:
    with _start(tmp_path, f"{BUSY}exit 7") as process:
        said, _ = process.communicate(timeout=120)

    assert process.returncode == 7
    assert _left(Path(said.strip())) == []
    assert list(tmp_path.iterdir()) == []


def test_a_component_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    broken = tmp_path / "programs"
    broken.mkdir()
    (broken / "kube-scheduler").write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    (broken / "kube-scheduler").chmod(0o755)
    environment = {**os.environ, "RESHARD_PROGRAMS": f"{broken}:{os.environ['RESHARD_PROGRAMS']}"}

    run = [sys.executable, "-m", "cluster", "run", "--", program("true")]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)

    assert done.returncode == 1
    assert done.stderr == "cluster: kube-scheduler ended with 3\nno such luck\n"
