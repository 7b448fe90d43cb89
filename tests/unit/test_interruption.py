"""Runs killed at any moment or started twice, and changing sources: no partial checkpoint, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from glob import glob
from typing import TYPE_CHECKING

import disk
import effort
import pytest

from reshard.checkpoint.manifest import encode
from reshard.cli import main
from reshard.engine.gather import SourceFiles
from reshard.errors import DataError
from reshard.progress import Cancellation, CancelledError
from reshard.spec.request import Options, Request
from reshard.storage.local import LocalStore
from reshard.target.documents import LOCK
from reshard.target.lock import STALE_SECONDS, LockOwner, locked
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

# Imports everything by a plan, reports that, and runs a command on request.
_WAITING = """
import sys
from reshard.cli import main, program
assert main(["plan", *sys.argv[2:], "--json"]) == 0
print("ready", flush=True)
sys.stdin.readline()
sys.exit(program(sys.argv[1:]))
"""


# Ignores cancellation.
_STUCK = """
import sys, time
import reshard.cli, reshard.transform.verify
def stuck(*_, **__):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
reshard.cli._PATIENCE_SECONDS = 0.2
reshard.transform.verify.verify_checkpoint = stuck
sys.exit(reshard.cli.program(["verify", "."]))
"""

# A process that does other things too: if a stuck command is cancelled, it continues.
_HOST = """
import os, signal, threading, time
import reshard.cli, reshard.transform.verify
def stuck(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException:
        time.sleep(1)
        raise
reshard.cli._PATIENCE_SECONDS = 0.2
reshard.transform.verify.verify_checkpoint = stuck
numbers = (signal.SIGTERM, signal.SIGINT)
signal.signal(signal.SIGINT, signal.SIG_IGN)
before = [signal.getsignal(number) for number in numbers]
codes = [reshard.cli.main(["verify", "."])]
def other():
    codes.append(reshard.cli.main(["inspect", "nothing"]))
    codes.append(reshard.cli.main(["--version"]))
    codes.append(reshard.cli.main(["inspect", "--nonsense"]))
thread = threading.Thread(target=other)
thread.start()
thread.join()
assert [signal.getsignal(number) for number in numbers] == before
print(codes)
"""


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a process that runs a command once a line is written to it, with everything imported by a plan before."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        assert line, process.stderr and process.stderr.read()
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def leftovers(target: Path) -> list[Path]:
    return [path for path in (target / ".reshard").rglob("*") if path.is_file()]


@pytest.mark.parametrize("seed", range(effort.share(10)))
def test_killed_at_random_moments_it_is_exact_the_next_time(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    old = disk.write(tmp_path / "old", disk.example(seed=7))
    new = disk.write(tmp_path / "new", disk.example(rows=1200, columns=960))
    out = tmp_path / "out"
    arguments = new.arguments(out, "--verification", "full", "--overwrite")
    began = time.monotonic()
    assert main(arguments) == 0
    duration = time.monotonic() - began
    finished = 0
    for moment in range(10):
        subprocess.run(["rm", "-rf", str(out)], check=True)
        if moment % 2:
            assert main(old.arguments(out)) == 0
        process = start(arguments)
        go(process)
        time.sleep(rng.uniform(0, 1.2 * duration))
        process.kill()
        process.communicate()
        finished += process.returncode == 0
        if (out / "reshard-manifest.json").exists():
            assert main(["verify", str(out)]) == 0
        assert main(arguments) == 0
        assert disk.differences(new.model, out, "ckpt") == []
        assert leftovers(out) == []
    assert finished < 10


def test_the_second_of_two_concurrent_runs_is_refused(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example(rows=2400, columns=960))
    out = tmp_path / "out"
    both = [start(made.arguments(out, "--verification", "full")) for _ in range(2)]
    for process in both:
        go(process)
    errors = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 75], [0, 0])  # the second may have come when the first was done
    if codes == [0, 75]:
        assert any("reshard: TargetLocked: " in error for error in errors)
    assert disk.differences(made.model, out, "ckpt") == []


def test_a_target_that_another_run_writes_to_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    with locked(LocalStore(str(out)), LOCK, owner=None, mode=0o640):
        assert main(made.arguments(out)) == 75
        assert "TargetLocked" in capsys.readouterr().err
        assert list(out.glob("rank_*")) == []
    assert main(made.arguments(out)) == 0


def test_a_lock_without_a_heartbeat_expires(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    lock = tmp_path / "out" / LOCK
    lock.parent.mkdir(parents=True)
    lock.write_bytes(encode(LockOwner("someone", "elsewhere", "")))
    assert main(made.arguments(tmp_path / "out")) == 75
    os.utime(lock, (time.time() - STALE_SECONDS - 1,) * 2)
    assert main(made.arguments(tmp_path / "out")) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_run_leaves_no_partial_file(tmp_path: Path, number: signal.Signals) -> None:
    made = disk.write(tmp_path / "in", disk.example(rows=4800, columns=960))
    out = tmp_path / "out"
    process = start(made.arguments(out, "--verification", "full"))
    go(process)
    while not glob(f"{out}/.reshard/*/tmp/*/*") and process.poll() is None:  # noqa: PTH207 - pathlib's fails where a folder goes away
        time.sleep(0.001)
    process.send_signal(number)
    said = process.communicate()[1]
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == 128 + number
        assert "Traceback" not in said
        assert [line for line in said.splitlines() if line.startswith("reshard: ")] == [f"reshard: {CancelledError()}"]
        assert not (out / "reshard-manifest.json").exists()
        assert list(out.glob(".reshard/*/tmp/*/*")) == []
    assert main(made.arguments(out)) == 0
    assert disk.differences(made.model, out, "ckpt") == []


def test_the_end_of_a_stuck_process_is_reported() -> None:
    process = subprocess.Popen([sys.executable, "-c", _STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert (process.returncode, said) == (143, f"reshard: {CancelledError()}. See {CancelledError().documentation}\n")


def test_main_never_exits_the_calling_process() -> None:
    ended = subprocess.run([sys.executable, "-c", _HOST], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[143, 66, 0, 2]"


def test_a_source_that_changes_during_a_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    read = SourceFiles.check_unchanged

    def touch(self: SourceFiles) -> None:
        path = made.source / "rank_2" / "net-1_100.ckpt"
        path.write_bytes(path.read_bytes())
        read(self)

    monkeypatch.setattr(SourceFiles, "check_unchanged", touch)
    request = Request(str(made.source), str(out), str(made.source_strategy), str(made.target_strategy))
    with pytest.raises(DataError, match="SourceChanged"):
        transform_checkpoint(request)
    assert list(out.glob("rank_*/*")) == []


def test_a_failed_rank_keeps_the_finished_ones(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    request = Request(str(made.source), str(out), str(made.source_strategy), str(made.target_strategy))

    class Tired(Cancellation):
        def check(self) -> None:
            if all(list(out.glob(f".reshard/*/records/rank_{rank}.json")) for rank in (0, 1)):
                raise CancelledError

    with pytest.raises(CancelledError):
        transform_checkpoint(request, workers=1, cancellation=Tired())
    kept = (out / "rank_0" / "checkpoint_0.ckpt").stat()
    result = transform_checkpoint(request)
    assert result.skipped_ranks[:2] == (0, 1)
    assert (out / "rank_0" / "checkpoint_0.ckpt").stat().st_mtime_ns == kept.st_mtime_ns
    assert disk.differences(made.model, out, "ckpt") == []


def test_processes_of_one_owner_share_a_target(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    assert main(["plan", *made.arguments(out, "--write")[1:]]) == 0
    codes: list[int] = []

    def one(rank: int) -> None:
        request = Request(
            str(made.source),
            str(out),
            str(made.source_strategy),
            str(made.target_strategy),
            options=Options(only_ranks=str(rank)),
        )
        transform_checkpoint(request, commit=False)
        codes.append(rank)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == list(range(6))
    assert main(["commit", str(out)]) == 0
    assert disk.differences(made.model, out, "ckpt") == []


def test_a_record_without_its_file_counts_for_nothing(tmp_path: Path) -> None:
    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    assert main(made.arguments(out, "--no-commit")) == 0
    (out / "rank_3" / "checkpoint_3.ckpt").unlink()
    assert main(["commit", str(out)]) == 66
    assert main(made.arguments(out)) == 0
    assert disk.differences(made.model, out, "ckpt") == []
