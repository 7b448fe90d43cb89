"""A cancelled transform ends soon in every phase, and can be retried."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import disk
import numpy as np
import pytest
import rawfiles

import reshard
from reshard.cli import main
from reshard.errors import StorageError
from reshard.progress import Cancellation, CancelledError, Silent
from reshard.spec.request import Options, Request
from reshard.storage.local import LocalReader, LocalStore
from reshard.target.documents import LOCK
from reshard.target.folder import TargetFolder
from reshard.target.lock import locked, serialized
from reshard.target.task import TaskState
from reshard.transform.complete import commit_checkpoint
from reshard.transform.run import transform_checkpoint
from reshard.transform.verify import verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Reads:
    """Counts the reads of files, and may cancel the work at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cancellation = Cancellation()
        self.count = 0
        self._cancel_at: int | None = None
        for name in ("read", "read_into", "read_runs"):
            monkeypatch.setattr(LocalReader, name, self._counted(getattr(LocalReader, name)))

    def _counted(self, usual: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            self.count += 1
            if self._cancel_at is not None and self.count >= self._cancel_at:
                self.cancellation.cancel()
            return usual(*arguments)

        return read

    def cancel_after(self, reads: int) -> None:
        """Cancel at the read that many reads from now, and count those from now on."""
        self.count, self._cancel_at = 0, reads


class Phases(Silent):
    """Cancels soon after a phase has started."""

    def __init__(self, phase: str, reads: Reads) -> None:
        self._phase, self._reads = phase, reads

    def begin(self, what: str, total: int, unit: str) -> None:
        del total, unit
        if what == self._phase:
            self._reads.cancel_after(3)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Whole files of 9 MiB that carry a CRC, and a parameter that all ranks hold."""
    for rank in range(3):
        path = tmp_path / "src" / f"rank_{rank}" / "net-1_100.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(rawfiles.ckpt({"w": np.zeros(9 << 20, np.int8)}, crc=True))
    return Request(str(tmp_path / "src"), str(tmp_path / "out"), options=Options(output="Same", verification="Full"))


@pytest.mark.parametrize("phase", ["Reading headers", "Checking CRCs", "Resharding"])
def test_every_phase_ends_when_it_is_cancelled(request_: Request, reads: Reads, phase: str) -> None:
    with pytest.raises(CancelledError):
        transform_checkpoint(request_, workers=1, progress=Phases(phase, reads), cancellation=reads.cancellation)
    assert 3 <= reads.count < 16
    again = transform_checkpoint(request_, workers=1, cancellation=Cancellation())
    assert again.complete


@pytest.mark.parametrize(
    ("work", "nothing"),
    [
        ("reshard.transform.prepare.check_copies", ".reshard"),
        ("reshard.engine.rankfile.check_file", ".reshard/*/records/*"),
        ("reshard.transform.run.commit_task", "reshard-manifest.json"),
    ],
)
def test_comparison_verification_and_commit_end_when_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, nothing: str
) -> None:
    module, _, name = work.rpartition(".")
    usual, cancellation = getattr(import_module(module), name), Cancellation()

    def cancelled(*arguments: Any, **named: Any) -> Any:
        cancellation.cancel()
        return usual(*arguments, **named)

    made = disk.write(tmp_path / "in", disk.example())
    out = tmp_path / "out"
    request = Request(str(made.source), str(out), str(made.source_strategy), str(made.target_strategy))
    with monkeypatch.context() as patch:
        patch.setattr(work, cancelled)
        with pytest.raises(CancelledError):
            transform_checkpoint(request, workers=1, cancellation=cancellation)
    assert list(out.glob(nothing)) == []
    assert transform_checkpoint(request).complete


def test_a_separate_commit_and_a_check_of_a_complete_target_end_too(request_: Request, reads: Reads) -> None:
    transform_checkpoint(request_, commit=False)
    cancelled = Cancellation()
    cancelled.cancel()
    with pytest.raises(CancelledError):
        commit_checkpoint(request_.target, cancellation=cancelled)
    with pytest.raises(CancelledError):
        reshard.plan_transform(request_, cancellation=cancelled)
    commit_checkpoint(request_.target)
    with pytest.raises(CancelledError):
        verify_checkpoint(request_.target, workers=1, progress=Phases("Verifying", reads), cancellation=reads.cancellation)
    assert reads.count < 16
    verify_checkpoint(request_.target)


def test_waiting_for_a_lock_ends(tmp_path: Path) -> None:
    store, cancellation = LocalStore(tmp_path), Cancellation()
    timer = threading.Timer(0.2, cancellation.cancel)
    with locked(store, LOCK, owner=None, mode=0o640):
        timer.start()
        began = time.monotonic()
        with pytest.raises(CancelledError), serialized(TargetFolder(store, 0o640), LOCK, cancellation.check):
            pass
    assert time.monotonic() - began < 10  # without, a minute


def test_a_failed_rank_leaves_the_callers_cancellation_alone(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation = Cancellation()
    with monkeypatch.context() as patch:
        patch.setattr(TaskState, "record", fail)
        with pytest.raises(StorageError):
            transform_checkpoint(request_, cancellation=cancellation)
    assert transform_checkpoint(request_, cancellation=cancellation).complete


def fail(*_: object) -> None:
    raise StorageError("WriteFailed", "the network is down")


def test_a_rank_that_fails_in_a_pod_is_retried_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.cli.step._FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr("reshard.spec.mounts.VOLUMES", str(tmp_path))
    made = disk.write(tmp_path / "source", disk.example())
    (tmp_path / "target").mkdir()
    spec = {
        "source": {"storage": {"persistentVolumeClaim": {"claimName": "a", "path": "src"}}, "strategy": {"path": "source.ckpt"}},
        "target": {"storage": {"persistentVolumeClaim": {"claimName": "b", "path": "dst"}}},
    }
    text = json.dumps(spec)
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "000").write_text(text)
    variables = {
        "SPEC": str(tmp_path / "spec"),
        "SPEC_SHA256": hashlib.sha256(text.encode()).hexdigest(),
        "OWNER": "uid",
        "TARGET_RANKS": "1",
        "GROUPING": '{"run": 1, "count": 1, "stride": 1}',
        "TERMINATION_LOG": str(tmp_path / "no"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"RESHARD_{name}", value)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    usual, failures = TaskState.record, [1]

    def record(self: TaskState, *arguments: Any) -> None:
        if failures:
            failures.pop()
            fail()
        usual(self, *arguments)

    monkeypatch.setattr(TaskState, "record", record)
    assert main(["step", "ranks"]) == 0
    assert not failures
    assert (tmp_path / "target" / "dst" / "rank_0").is_dir()
    assert made.source.is_dir()
