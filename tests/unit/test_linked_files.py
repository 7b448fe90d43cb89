"""Files of replicas that are clones or hard links of one file."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from traffic_cases import made

from reshard.checkpoint.manifest import LinkRecord
from reshard.errors import BugError
from reshard.spec.request import LinkReplicas, Options, Overwrite, Request, Verification
from reshard.storage import open_store
from reshard.storage.local import links
from reshard.storage.local.writer import LocalNewFile
from reshard.target.folder import TargetFolder
from reshard.transform.run import transform_checkpoint
from reshard.transform.verify import verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import disk

    from reshard.checkpoint.manifest import Manifest
    from reshard.storage.protocol import Store
    from reshard.transform.run import Result

LIKE_0, LIKE_1 = (0, 2, 4, 6), (1, 3, 5, 7)
HARD_LINKS = "equal files are hard links to one file; a program that changes one of them in place changes all of them"


@pytest.fixture
def checkpoint(tmp_path: Path) -> disk.Checkpoint:
    return made(tmp_path / "in", "replicas")


@pytest.fixture
def cloning(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A file system that can clone: the call copies the content."""
    calls: list[int] = []

    def ioctl(new: int, request: int, file: int) -> int:
        assert request == links._FICLONE  # noqa: SLF001 - the number of the call
        calls.append(file)
        content = os.pread(file, os.fstat(file).st_size, 0)
        assert os.pwrite(new, content, 0) == len(content)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return calls


def run(
    checkpoint: disk.Checkpoint,
    target: Path,
    how: LinkReplicas,
    *,
    verification: Verification = "Sample",
    overwrite: Overwrite = "Never",
    only_ranks: str | None = None,
) -> Result:
    options = Options(link_replicas=how, verification=verification, overwrite=overwrite, only_ranks=only_ranks)
    before, after = str(checkpoint.source_strategy), str(checkpoint.target_strategy)
    return transform_checkpoint(Request(str(checkpoint.source), str(target), before, after, options), workers=2)


def inodes(target: Path) -> list[int]:
    return [next((target / f"rank_{rank}").iterdir()).stat().st_ino for rank in range(8)]


def contents(target: Path) -> list[bytes]:
    return [next((target / f"rank_{rank}").iterdir()).read_bytes() for rank in range(8)]


def checkpoint_of(url: str) -> Manifest:
    found = TargetFolder(open_store(url), None).manifest()
    assert found is not None
    return found


def test_equal_files_are_hard_links(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    usual = run(checkpoint, tmp_path / "usual", "Never")
    found = run(checkpoint, tmp_path / "out", "HardLink", verification="Full")
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")
    numbers = inodes(tmp_path / "out")
    assert len({numbers[rank] for rank in LIKE_0}) == len({numbers[rank] for rank in LIKE_1}) == 1
    assert len(set(inodes(tmp_path / "usual"))) == 8
    assert HARD_LINKS in found.notes
    assert found.bytes_written == usual.bytes_written // 4
    assert (found.bytes_fetched, found.digest) == (usual.bytes_fetched, usual.digest)
    records = {record.rank: record for record in checkpoint_of(str(tmp_path / "out")).files}
    assert [records[rank].link for rank in (0, 1)] == [None, None]
    assert [records[rank].link for rank in (2, 7)] == [LinkRecord("HardLink", 0), LinkRecord("HardLink", 1)]
    assert {record.verified for record in records.values()} == {"Full"}
    assert not list((tmp_path / "out" / ".reshard").glob("*"))
    verify_checkpoint(str(tmp_path / "out"))


def test_equal_files_are_clones(checkpoint: disk.Checkpoint, tmp_path: Path, cloning: list[int]) -> None:
    run(checkpoint, tmp_path / "usual", "Never")
    assert not cloning
    found = run(checkpoint, tmp_path / "out", "Clone")
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")
    assert len(set(inodes(tmp_path / "out"))) == 8
    assert "equal files are clones of one file" in found.notes
    assert {r.link for r in checkpoint_of(str(tmp_path / "out")).files if r.rank > 1} == {
        LinkRecord("Clone", 0),
        LinkRecord("Clone", 1),
    }
    verify_checkpoint(str(tmp_path / "out"))


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL])
def test_without_support_all_files_are_written(
    checkpoint: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def ioctl(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    found = run(checkpoint, tmp_path / "out", "Clone")
    assert any("does not support clones of files" in note and "written in full" in note for note in found.notes)
    assert len(set(inodes(tmp_path / "out"))) == 8
    assert {record.link for record in checkpoint_of(str(tmp_path / "out")).files} == {None}


def test_a_clone_that_differs_is_kept_and_not_recorded(
    checkpoint: disk.Checkpoint, tmp_path: Path, cloning: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = fcntl.ioctl

    def damaged(new: int, request: int, file: int) -> int:
        usual(new, request, file)
        return os.pwrite(new, b"damage", os.fstat(file).st_size - 6)

    monkeypatch.setattr(fcntl, "ioctl", damaged)
    with pytest.raises(BugError, match="differs from the equal file of another rank"):
        run(checkpoint, tmp_path / "out", "Clone", verification="Full")
    recorded = {path.name for path in tmp_path.glob("out/.reshard/*/records/*")}
    assert recorded <= {"rank_0.json", "rank_1.json"}
    assert list(tmp_path.glob("out/.reshard/*/rejected/rank_*/*"))
    assert cloning


def test_a_killed_run_is_resumed(checkpoint: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process stops after a link was created, and before it is recorded."""

    class Killed(BaseException):
        """The process is killed."""

    finish = LocalNewFile.finish

    def killed(file: LocalNewFile) -> None:
        finish(file)
        if "rank_4/" in file._path:  # noqa: SLF001 - the file that was just completed
            raise Killed

    monkeypatch.setattr(LocalNewFile, "finish", killed)
    with pytest.raises(Killed):
        run(checkpoint, tmp_path / "out", "HardLink")
    assert (tmp_path / "out" / "rank_4").exists()
    monkeypatch.undo()
    found = run(checkpoint, tmp_path / "out", "HardLink")
    assert found.complete
    assert 0 in found.skipped_ranks
    assert 4 not in found.skipped_ranks
    run(checkpoint, tmp_path / "usual", "Never")
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")
    verify_checkpoint(str(tmp_path / "out"))


def test_links_replace_the_files_of_another_checkpoint(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "usual", "Never")
    run(checkpoint, tmp_path / "out", "HardLink")
    other = made(tmp_path / "other", "replicas", seed=2)
    shutil.copytree(tmp_path / "out", tmp_path / "kept", copy_function=os.link)  # a program that still has the old files open
    found = run(other, tmp_path / "out", "HardLink", overwrite="Replace")
    assert found.complete
    assert contents(tmp_path / "kept") == contents(tmp_path / "usual")
    assert contents(tmp_path / "out") != contents(tmp_path / "kept")
    numbers = inodes(tmp_path / "out")
    assert len({numbers[rank] for rank in LIKE_0}) == len({numbers[rank] for rank in LIKE_1}) == 1
    verify_checkpoint(str(tmp_path / "out"))


def test_a_linked_file_that_was_changed_in_place_is_written_again(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "out", "HardLink")
    before = contents(tmp_path / "out")
    (path,) = (tmp_path / "out" / "rank_2").iterdir()
    path.write_bytes(bytes(path.stat().st_size))
    assert contents(tmp_path / "out")[0] == path.read_bytes()  # the danger that docs/redundancy.md describes
    found = run(checkpoint, tmp_path / "out", "HardLink", overwrite="Replace")
    assert {rank.rank for rank in found.ranks} == set(LIKE_0)
    assert contents(tmp_path / "out") == before


def test_linked_files_need_the_space_of_one(checkpoint: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed: list[int] = []

    def check(_: Store, nbytes: int) -> None:
        needed.append(nbytes)

    for module in ("preflight", "run"):
        monkeypatch.setattr(f"reshard.transform.{module}.check_space", check)
    size = run(checkpoint, tmp_path / "usual", "Never").bytes_written
    run(checkpoint, tmp_path / "out", "HardLink")
    assert needed == [size, size, size // 4, size // 4]


@pytest.mark.usefixtures("server")
def test_objects_are_written_in_full(checkpoint: disk.Checkpoint) -> None:
    before, after = str(checkpoint.source_strategy), str(checkpoint.target_strategy)
    options = Options(link_replicas="HardLink")
    found = transform_checkpoint(Request(str(checkpoint.source), "s3://b/out", before, after, options), workers=2)
    assert any("equal files are written in full" in note for note in found.notes)
    assert found.bytes_written == sum(record.size for record in checkpoint_of("s3://b/out").files)
    assert {record.link for record in checkpoint_of("s3://b/out").files} == {None}


def test_the_record_is_in_the_manifest(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "out", "HardLink", only_ranks="1-3")
    document = json.loads((tmp_path / "out" / "reshard-manifest.json").read_bytes())
    assert [file["link"] for file in document["files"]] == [None, None, {"kind": "HardLink", "rank": 1}]
