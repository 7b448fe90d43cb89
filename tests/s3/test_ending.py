"""Runs killed or cancelled at any moment or started twice, and changing objects: no partial checkpoint, no leftover uploads."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import disk
import pytest
import s3_server
from interrupted import ended_by, start

from reshard.cli import main
from reshard.errors import DataError, OutputError
from reshard.progress import CancelledError
from reshard.storage import open_store

if TYPE_CHECKING:
    from pathlib import Path

both = pytest.mark.parametrize("server", s3_server.PROGRAMS, indirect=True)


def arguments_of(base: str, target: str, *more: str) -> list[str]:
    sides = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt", "--target-strategy", f"{base}/target.ckpt"]
    return ["transform", *sides, "--target", target, *more]


@pytest.fixture
def large(server: s3_server.Server, bucket: str, tmp_path: Path) -> tuple[disk.Checkpoint, str]:
    """A source whose target's files take several parts each."""
    (tmp_path / "large").mkdir()
    made = disk.write(tmp_path / "large", disk.example(rows=9600, columns=1920))
    return made, server.upload(bucket, tmp_path / "large", "in")


@both
def test_killed_at_random_moments_it_is_exact_the_next_time(
    server: s3_server.Server, bucket: str, tmp_path: Path, large: tuple[disk.Checkpoint, str]
) -> None:
    rng = random.Random(server.endpoint)
    made, base = large
    (tmp_path / "old").mkdir()
    disk.write(tmp_path / "old", disk.example(seed=7))
    old = server.upload(bucket, tmp_path / "old", "old")
    for moment in range(4):
        target = f"s3://{bucket}/out{moment}"
        if moment % 2:
            assert main(arguments_of(old, target)) == 0
        arguments = arguments_of(base, target, "--overwrite")
        process = start(arguments)
        time.sleep(rng.uniform(0.8, 3.0))
        process.kill()
        process.communicate()
        manifest = open_store(target).stat("reshard-manifest.json")
        if manifest is not None:
            assert main(["verify", target]) == 0
        assert main(arguments) == 0
        assert disk.differences(made.model, server.download(target, tmp_path / "out"), "ckpt") == []
        assert server.uploads(bucket) == []
        assert open_store(target).stat(".reshard") is None


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_run_leaves_no_upload(
    server: s3_server.Server, bucket: str, tmp_path: Path, large: tuple[disk.Checkpoint, str], number: signal.Signals
) -> None:
    made, base = large
    target = f"s3://{bucket}/out"
    code, said = ended_by(number, server, arguments_of(base, target))
    assert code == 128 + number
    error = CancelledError()
    expected = f"reshard: {error}. See {error.documentation}"
    assert [line for line in said.splitlines() if line.startswith("reshard: ")] == [expected]
    assert open_store(target).stat("reshard-manifest.json") is None
    assert server.uploads(bucket) == []
    assert main(arguments_of(base, target)) == 0
    assert disk.differences(made.model, server.download(target, tmp_path / "out"), "ckpt") == []


@both
def test_uploads_of_a_killed_pod_are_aborted_by_the_commit(
    server: s3_server.Server, bucket: str, tmp_path: Path, large: tuple[disk.Checkpoint, str]
) -> None:
    made, base = large
    target = f"s3://{bucket}/out"
    pod = arguments_of(base, target, "--no-commit", "--only-ranks", "0-2", "--owner", "a-transform")
    assert ended_by(signal.SIGKILL, server, pod)[0] == -signal.SIGKILL
    assert server.uploads(bucket)
    for ranks in ("0-2", "3-5"):
        assert main(arguments_of(base, target, "--no-commit", "--only-ranks", ranks, "--owner", "a-transform")) == 0
    assert main(["commit", target, "--owner", "a-transform"]) == 0
    assert server.uploads(bucket) == []
    assert disk.differences(made.model, server.download(target, tmp_path / "out"), "ckpt") == []


@both
def test_the_second_of_two_concurrent_runs_is_refused(
    server: s3_server.Server, bucket: str, tmp_path: Path, large: tuple[disk.Checkpoint, str]
) -> None:
    made, base = large
    target = f"s3://{bucket}/out"
    both = [start(arguments_of(base, target, "--verification", "full")) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 75], [0, 0]), errors
    assert disk.differences(made.model, server.download(target, tmp_path / "out"), "ckpt") == []


@both
def test_an_object_that_changes_under_the_reader_is_an_error(bucket: str) -> None:
    store = open_store(f"s3://{bucket}/a")
    store.write("x", b"1" * 100, mode=0o640)
    found = store.open("x")
    store.write("x", b"2" * 100, mode=0o640)
    with pytest.raises(DataError, match="SourceChanged"):
        found.read(0, 10)


@both
def test_a_replaced_checkpoint_is_incomplete_until_the_new_one_is_complete(
    server: s3_server.Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    disk.write(tmp_path / "old", disk.example(seed=7))
    made = disk.write(tmp_path / "new", disk.example(seed=8))
    old, new = server.upload(bucket, tmp_path / "old", "old"), server.upload(bucket, tmp_path / "new", "new")
    target = f"s3://{bucket}/out"
    assert main(arguments_of(old, target, "--file-prefix", "old_")) == 0
    assert main(arguments_of(new, target)) == 78

    def full(*_: object) -> None:
        raise OutputError("CannotWrite", "as the test wants it")

    with monkeypatch.context() as patched:
        patched.setattr("reshard.transform.run.commit_task", full)
        assert main(arguments_of(new, target, "--overwrite")) == 73
    assert main(["verify", target]) == 66
    assert main(["inspect", target]) == 66
    assert main(arguments_of(new, target, "--overwrite")) == 0
    found = server.download(target, tmp_path / "out")
    assert disk.differences(made.model, found, "ckpt") == []
    assert [path.name for path in found.rglob("old_*")] == []
