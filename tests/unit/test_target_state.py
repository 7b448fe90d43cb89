"""State of a target after runs meet, are killed, or find leftovers of others: nothing is lost, and no partial checkpoint is
called complete."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import disk
import msgspec
import numpy as np
import pytest
import rawfiles
from disk import rank_file, right, run
from killing import killed_after

import reshard
from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import main
from reshard.engine import rankfile
from reshard.errors import BugError, DataError, LockedError, MissingInputError, RequestError, UsageError
from reshard.mindspore import transform_checkpoint_by_rank
from reshard.progress import Cancellation, Silent
from reshard.spec.request import Options, Request
from reshard.storage.local import LocalStore
from reshard.storage.local.writer import LocalNewFile
from reshard.target.documents import LOCK
from reshard.target.folder import TargetFolder
from reshard.target.lock import locked
from reshard.target.task import TaskState
from reshard.transform.commit import finish_interrupted
from reshard.transform.complete import commit_checkpoint, commit_if_complete
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def listed(target: Path) -> list[int]:
    return [record["rank"] for record in json.loads((target / MANIFEST_NAME).read_text())["files"]]


def test_a_commit_needs_all_ranks(made: disk.Checkpoint, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever ranks earlier processes were asked to write."""
    assert run(made, target, "--no-commit", "--only-ranks", "0-2") == 0
    assert main(["commit", str(target)]) == 66
    assert "3 of 6 ranks are not finished or have changed: 3-5" in capsys.readouterr().err
    assert run(made, target, "--no-commit", "--only-ranks", "3-5") == 0
    assert main(["commit", str(target)]) == 0
    assert listed(target) == list(range(6))
    assert right(made, target)


def test_a_checkpoint_is_complete_when_all_ranks_exist_and_no_process_writes(made: disk.Checkpoint, target: Path) -> None:
    request = Request(str(made.source), str(target), str(made.source_strategy), str(made.target_strategy))
    digest = ""
    for ranks in ("0-2", "3-5"):
        assert digest == "" or commit_if_complete(str(target), digest, ranks=range(6)) is None
        some = msgspec.structs.replace(request, options=Options(only_ranks=ranks))
        digest = transform_checkpoint(some, commit=False).digest
    with locked(LocalStore(str(target)), LOCK, owner=f"task-{digest}", mode=0o640):
        assert commit_if_complete(str(target), digest, ranks=range(6)) is None
    for _ in range(2):
        manifest = commit_if_complete(str(target), digest, ranks=range(6))
        assert manifest is not None
        assert manifest.ranks == "0-5"
    assert right(made, target)


@pytest.mark.parametrize("staged", [False, True])
def test_a_commit_refuses_a_file_that_has_changed_since_it_was_recorded(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, *, staged: bool
) -> None:
    if staged:
        assert run(other, target) == 0
    request = Request(made.source, target, made.source_strategy, made.target_strategy)
    request = msgspec.structs.replace(request, options=Options(overwrite="Replace" if staged else "Never"))
    transform_checkpoint(request, commit=False)
    (file,) = target.glob(".reshard/*/staging/rank_2/*" if staged else "rank_2/*")
    file.chmod(0o600)
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(MissingInputError, match=r"RanksUnfinished.*1 of 6 ranks are not finished or have changed: 2;"):
        commit_checkpoint(str(target))
    assert transform_checkpoint(request).complete
    assert right(made, target)


def test_a_program_sees_how_far_a_verification_is(made: disk.Checkpoint, target: Path) -> None:
    phases: list[tuple[str, int, str]] = []
    done: list[int] = []

    class Told(Silent):
        def begin(self, what: str, total: int, unit: str) -> None:
            phases.append((what, total, unit))

        def advance(self, count: int) -> None:
            done.append(count)

    assert run(made, target) == 0
    result = reshard.verify_checkpoint(str(target), workers=1, progress=Told())
    assert phases == [("Verifying", sum(done), "bytes")]
    assert sum(done) == result.manifest.nbytes == result.bytes_fetched


def test_a_commit_of_named_ranks(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target, "--no-commit", "--only-ranks", "0-2") == 0
    assert main(["commit", str(target), "--only-ranks", "1-2"]) == 0
    assert listed(target) == [1, 2]


def test_a_transform_reports_that_only_a_part_exists(
    made: disk.Checkpoint, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(made, target, "--only-ranks", "1") == 0
    assert "(ranks 1 of 6)" in capsys.readouterr().out
    assert run(made, target) == 0
    assert right(made, target)


def test_a_commit_includes_ranks_of_other_processes(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target, "--no-commit", "--only-ranks", "0-2") == 0
    assert run(made, target, "--only-ranks", "4") == 0
    assert listed(target) == [0, 1, 2, 4]


@pytest.mark.parametrize("more", [[], ["--no-commit"]])
def test_a_part_never_replaces_a_whole(made: disk.Checkpoint, other: disk.Checkpoint, target: Path, more: list[str]) -> None:
    assert run(made, target) == 0
    code = run(other, target, "--overwrite", "--only-ranks", "0", *more)
    if more:
        assert code == 0
        assert main(["commit", str(target), "--only-ranks", "0"]) == 78
    else:
        assert code == 78
    assert right(made, target)


@pytest.mark.parametrize("overwrite", [False, True])
def test_undescribed_files_are_never_changed(made: disk.Checkpoint, target: Path, *, overwrite: bool) -> None:
    """A training run's own folder as the target."""
    old = target / "rank_0" / "net-1_100.ckpt"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"the only copy")
    assert run(made, target, *["--overwrite"] * overwrite) == 78
    assert old.read_bytes() == b"the only copy"
    assert [path.name for path in target.iterdir()] == ["rank_0"]


def test_a_replacement_keeps_a_document_that_the_unfinished_transform_has_not_written(
    made: disk.Checkpoint, target: Path
) -> None:
    whole = ["transform", "--source", str(made.source), "--source-strategy", str(made.source_strategy), "--target", str(target)]
    assert main([*whole, "--output", "unified", "--no-commit"]) == 0
    (target / "param_name_map.json").write_text("mine")
    assert disk.run(made, target, "--overwrite") == 0
    assert (target / "param_name_map.json").read_text() == "mine"


def test_a_replacement_deletes_a_document_that_an_interrupted_commit_has_written(
    made: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    whole = ["transform", "--source", str(made.source), "--source-strategy", str(made.source_strategy), "--target", str(target)]
    with monkeypatch.context() as patched:
        patched.setattr(TargetFolder, "write_manifest", interrupted)
        assert main([*whole, "--output", "unified"]) != 0
    assert (target / "param_name_map.json").exists()
    assert disk.run(made, target, "--overwrite") == 0
    assert not (target / "param_name_map.json").exists()


def test_a_started_task_with_its_documents_reads_no_manifest_of_the_source(
    made: disk.Checkpoint, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk.run(made, target) == 0
    further = ["transform", "--source", str(target), "--target", str(tmp_path / "next"), "--no-commit", "--only-ranks", "0"]
    assert main([*further, "--target-strategy", str(made.source_strategy)]) == 0
    monkeypatch.setattr("reshard.transform.start.expected_fingerprints", None)
    further[-1] = "1"
    assert main([*further, "--target-strategy", str(made.source_strategy)]) == 0


def test_a_damaged_file_is_written_again_with_overwrite(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target) == 0
    content = bytearray(rank_file(target, 2).read_bytes())
    content[-1] ^= 1
    rank_file(target, 2).write_bytes(content)
    assert main(["verify", str(target)]) == 65
    assert run(made, target, "--overwrite") == 0
    assert right(made, target)


def test_a_file_that_was_changed_between_sampled_blocks_is_written_again(tmp_path: Path, target: Path) -> None:
    """Its modification time shows which files to compare completely. A copy with another time is equal."""
    made = disk.write(tmp_path / "large", disk.example(rows=480, columns=240))
    assert run(made, target) == 0
    path = rank_file(target, 2)
    content = path.read_bytes()
    at = len(content) // 8
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert main(["verify", str(target)]) == 65
    assert run(made, target) == 0
    assert right(made, target)
    assert path.read_bytes() == content
    os.utime(path, (1, 1))
    assert run(made, target) == 0
    assert path.stat().st_mtime == 1


def test_records_of_another_task_do_not_count(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert run(made, target, "--no-commit", "--only-ranks", "0-4") == 0
    assert run(other, tmp_path / "b", "--no-commit", "--only-ranks", "5") == 0
    (own,) = target.glob(".reshard/*/records")
    (foreign,) = tmp_path.glob("b/.reshard/*/records/rank_5.json")
    shutil.copy(foreign, own)
    shutil.copytree(tmp_path / "b" / "rank_5", target / "rank_5")
    assert "have changed: 5" in refused(66, "RanksUnfinished", "commit", str(target))
    assert run(made, target) == 0
    assert right(made, target)


ROOMS: dict[str, tuple[int, Callable[[Path], object]]] = {
    "a rank more": (65, lambda target: shutil.copytree(target / "rank_5", target / "rank_6")),
    "a file more": (65, lambda target: shutil.copy(rank_file(target, 5), target / "rank_5" / "net-1_200.ckpt")),
    "a rank less": (66, lambda target: shutil.rmtree(target / "rank_5")),
    "a file less": (66, lambda target: rank_file(target, 5).unlink()),
    "other files": (0, lambda target: (target / "rank_6").mkdir() or (target / "rank_5" / "notes.txt").touch()),
}


@pytest.mark.parametrize("change", ROOMS)
def test_a_checkpoint_has_exactly_the_files_of_its_manifest(made: disk.Checkpoint, target: Path, change: str) -> None:
    assert run(made, target) == 0
    code, act = ROOMS[change]
    act(target)
    assert main(["verify", str(target)]) == code


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        (lambda path: path.unlink(), 66, "FileMissing"),
        (lambda path: path.write_bytes(b"longer" + path.read_bytes()), 65, "ContentChanged"),
    ],
)
def test_a_commit_of_a_complete_checkpoint_checks_its_files(
    made: disk.Checkpoint, target: Path, refused: Callable[..., str], change: Callable[[Path], object], code: int, reason: str
) -> None:
    assert run(made, target) == 0
    assert main(["commit", str(target)]) == 0
    change(rank_file(target, 2))
    assert "rank_2" in refused(code, reason, "commit", str(target))


def test_a_commit_of_a_complete_checkpoint_checks_its_ranks(
    made: disk.Checkpoint, target: Path, refused: Callable[..., str]
) -> None:
    assert run(made, target, "--only-ranks", "0-2") == 0
    assert main(["commit", str(target), "--only-ranks", "1-2"]) == 0
    assert "have changed: 3" in refused(66, "RanksUnfinished", "commit", str(target), "--only-ranks", "2-3")


@pytest.mark.parametrize(
    ("output", "name"),
    [("index", "reshard-index.json"), ("unified", "param_name_map.json")],
)
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_deleted_or_changed_index_file_is_written_again(
    made: disk.Checkpoint, target: Path, refused: Callable[..., str], output: str, name: str, more: list[str]
) -> None:
    arguments = made.arguments(target, "--output", output)
    if output == "unified":
        arguments = [text for text in arguments if text not in {"--target-strategy", str(made.target_strategy)}]
    assert main(arguments) == 0
    path = target / name
    content = path.read_bytes()
    path.unlink()
    assert name in refused(66, "FileMissing", "verify", str(target))
    assert main([*arguments, *more]) == 0
    assert path.read_bytes() == content
    path.write_bytes(content + b" ")
    assert name in refused(65, "ContentChanged", "verify", str(target))
    assert name in refused(65, "ContentChanged", "commit", str(target))
    assert main([*arguments, *more]) == main(["verify", str(target)]) == 0


def test_a_manifest_states_the_ranks_that_it_lists(made: disk.Checkpoint, target: Path, refused: Callable[..., str]) -> None:
    assert run(made, target) == 0
    path = target / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"ranks": "0-6"}))
    assert "ranks 0-6 as complete, but lists the files of ranks 0-5" in refused(65, "DocumentInvalid", "verify", str(target))


def interrupted(made: disk.Checkpoint, target: Path, after: int) -> None:
    """A replacement whose process is killed after it has published some files."""
    with killed_after(after):
        assert run(made, target, "--overwrite") == 130


def test_an_interrupted_replacement_is_finished_by_the_next_run(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path
) -> None:
    assert run(made, target, "--no-commit") == 0
    interrupted(other, target, after=3)
    assert not (target / MANIFEST_NAME).exists()
    assert run(made, target) == 78  # by now there is another checkpoint, whole
    assert right(other, target)


def test_an_unfinished_checkpoint_is_refused_as_a_source(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, tmp_path: Path
) -> None:
    assert run(made, target) == 0
    interrupted(other, target, after=3)
    again = ["transform", "--source", str(target), "--source-strategy", str(made.target_strategy)]
    assert main([*again, "--target", str(tmp_path / "next")]) == 66
    assert main(["inspect", str(target)]) == 66
    finish_interrupted(TargetFolder(LocalStore(target), 0o640), Cancellation())
    assert main([*again, "--target", str(tmp_path / "next")]) == 0


def test_the_manifest_defines_the_files_of_a_source(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert run(made, target) == 0
    (target / "rank_0" / "stray.txt").write_bytes(b"")
    (target / "rank_99").mkdir()
    whole = ["transform", "--source", str(target), "--source-strategy", str(made.target_strategy)]
    assert main([*whole, "--target", str(tmp_path / "whole")]) == 0


@pytest.mark.parametrize("path", ["../victim", "rank_0/..", "/etc/passwd", "rank_0/a/b", "rank_x/a"])
def test_a_foreign_manifest_reaches_no_files_outside(made: disk.Checkpoint, target: Path, path: str) -> None:
    assert run(made, target) == 0
    victim = target.parent / "victim"
    victim.mkdir()
    manifest: dict[str, Any] = json.loads((target / MANIFEST_NAME).read_text())
    manifest["files"].append(manifest["files"][0] | {"path": path, "rank": 6})
    manifest["digest"] = "0" * 64
    (target / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert run(made, target, "--overwrite") == 65
    assert victim.is_dir()


def test_a_manifest_of_another_schema_is_ignored(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target) == 0
    text = (target / MANIFEST_NAME).read_text().replace("manifest/v1", "manifest/v9")
    (target / MANIFEST_NAME).write_text(text)
    assert main(["verify", str(target)]) == 65


def test_a_store_never_leaves_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="UnsafePath"):
        LocalStore(tmp_path / "inner").delete("../x")


def test_rank_folders_that_are_links_are_refused(made: disk.Checkpoint, target: Path) -> None:
    target.mkdir()
    (target / "rank_0").symlink_to(made.source / "rank_0")
    before = sorted(path.read_bytes() for path in made.source.rglob("*.ckpt"))
    assert run(made, target, "--overwrite") == 78
    assert sorted(path.read_bytes() for path in made.source.rglob("*.ckpt")) == before


def test_one_rank_is_never_written_over_its_source(made: disk.Checkpoint) -> None:
    files = {rank: str(next((made.source / f"rank_{rank}").iterdir())) for rank in range(4)}
    with pytest.raises(RequestError, match="TargetOverlapsSource"):
        transform_checkpoint_by_rank(0, files, files[0], str(made.source_strategy), str(made.target_strategy))


@pytest.mark.parametrize("files", [{}, {0: "a.ckpt", 1: "s3://bucket/b.ckpt"}, {0: "s3://one/a.ckpt", 1: "s3://two/a.ckpt"}])
def test_one_rank_is_written_from_files_in_one_place(files: dict[int, str], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="MixedStorage"):
        transform_checkpoint_by_rank(0, files, str(tmp_path / "made.ckpt"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"overwrite": False},
        {"format": "CKPT"},
        {"source_only": "keep"},
        {"verification": "full"},
        {"file_prefix": "../../x_"},
        {"file_prefix": ".hidden_"},
        {"file_prefix": "net-3_"},
        {"file_prefix": "é" * 100},
        {"file_mode": 0o7777},
        {"step": "7"},
    ],
)
def test_wrong_options_are_refused_and_not_taken_for_others(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**options)


def test_paths_may_be_paths(made: disk.Checkpoint, target: Path) -> None:
    assert Request(source=made.source, target=target).source == str(made.source)
    with pytest.raises(UsageError, match="source"):
        Request(source=None, target="x")


def test_missing_records_of_a_started_task_are_written_again(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target, "--no-commit", "--only-ranks", "0") == 0
    for name in ("draft.json", "inventory.json"):
        next((target / ".reshard").glob(f"*/{name}")).unlink()
    with pytest.raises(MissingInputError, match="PlanMissing"):
        commit_checkpoint(str(target))
    assert run(made, target) == 0
    assert right(made, target)


def test_files_may_be_closed_to_their_writer(made: disk.Checkpoint, target: Path) -> None:
    """MindSpore's own mode: the folders stay writable, so that a next run can continue."""
    assert run(made, target, "--file-mode", "0400") == 0
    assert (target / "rank_0").stat().st_mode & 0o777 == 0o700


def test_names_without_a_file_are_reported(made: disk.Checkpoint, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = json.loads(_json_form(made.source_strategy, target.parent))
    strategy["parallel_layout_item"]["lost"] = strategy["parallel_layout_item"]["w"]
    path = target.parent / "with-lost.json"
    path.write_text(json.dumps(strategy))
    assert main(["transform", "--source", str(made.source), "--source-strategy", str(path), "--target", str(target)]) == 0
    assert "no source file contains these parameters of the source strategy: lost" in capsys.readouterr().err
    assert json.loads((target / MANIFEST_NAME).read_text())["notInFiles"] == ["lost"]


def _json_form(strategy: Path, folder: Path) -> str:
    out = folder / "as.json"
    assert main(["strategy", "merge", str(strategy), str(out)]) == 0
    return out.read_text()


def test_a_process_that_loses_the_lock_while_writing_publishes_nothing(
    made: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a long pause, another run has taken the target over."""
    usual = TaskState.create

    def create(self: TaskState, *arguments: Any, **options: Any) -> Any:
        self.target.store.write(LOCK, b'{"owner": "another", "host": "h", "pid": 1, "boot": ""}', mode=0o640)
        return usual(self, *arguments, **options)

    monkeypatch.setattr(TaskState, "create", create)
    assert run(made, target, "--workers", "1") == LockedError.exit_code
    assert not list(target.glob("rank_*/*"))


def test_a_process_that_resumes_after_another_finished_publishes_nothing(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that slept, while its target was taken over and completed."""
    usual, woken = TaskState.create, []

    def create(self: TaskState, *arguments: Any, **options: Any) -> Any:
        if not woken:
            woken.append(True)
            self.target.forget_tasks([task.digest for task in self.target.observe().tasks])
            for path in (target / ".reshard").iterdir():
                path.unlink()
            assert run(other, target) == 0
        return usual(self, *arguments, **options)

    monkeypatch.setattr(TaskState, "create", create)
    assert run(made, target, "--only-ranks", "0", "--no-commit") == LockedError.exit_code
    assert right(other, target)


def test_a_process_that_resumes_after_the_check_of_its_lock_publishes_nothing(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run has deleted the temporary file."""
    usual, woken = LocalNewFile._rename, []  # noqa: SLF001 - the moment after the check

    def rename(self: LocalNewFile) -> None:
        if not woken and "rank_0" in self._path:
            woken.append(True)
            shutil.rmtree(target)
            assert run(other, target) == 0
        usual(self)

    monkeypatch.setattr(LocalNewFile, "_rename", rename)
    assert run(made, target, "--only-ranks", "0", "--no-commit") == LockedError.exit_code
    assert right(other, target)


def test_a_process_that_resumes_while_it_verifies_leaves_the_files_of_others(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that slept finds that its file has a difference, or was deleted, and does not touch the file of another run."""
    usual, woken = rankfile.check_file, []

    def check_file(*arguments: Any, **options: Any) -> None:
        if not woken:
            woken.append(True)
            shutil.rmtree(target, ignore_errors=True)  # on NFS, folders with open files remain
            assert run(other, target) == 0
            raise BugError("VerificationFailed", "the file differs", where="", fix="inspect it")
        usual(*arguments, **options)

    monkeypatch.setattr(rankfile, "check_file", check_file)
    assert run(made, target, "--only-ranks", "0", "--no-commit") == LockedError.exit_code
    assert right(other, target)


def test_the_plan_of_one_file_is_not_used_for_the_file_next_to_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        content = rawfiles.write("ckpt", {"w": np.full(4, ord(name), np.uint8)})
        (tmp_path / f"{name}.ckpt").write_bytes(content)
    target = ["--target", str(tmp_path / "target")]
    assert main(["plan", "--source", str(tmp_path / "a.ckpt"), *target, "--write"]) == 0
    assert main(["transform", "--source", str(tmp_path / "b.ckpt"), *target]) == 78
    assert not (tmp_path / "target" / "rank_0").exists()
    assert main(["transform", "--source", str(tmp_path / "b.ckpt"), *target, "--overwrite"]) == 0
    assert b"bbbb" in rank_file(tmp_path / "target", 0).read_bytes()


def test_a_record_that_disappears_after_it_was_listed_is_no_record(
    made: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process completes the target at the same time, and removes the state of its task."""
    assert run(made, target, "--no-commit") == 0
    (folder,) = (path for path in (target / ".reshard").iterdir() if path.is_dir())
    state = TaskState(TargetFolder(LocalStore(str(target)), None), f".reshard/{folder.name}")
    usual = LocalStore.list

    def listed(self: LocalStore, path: str) -> Any:
        found = usual(self, path)
        (folder / "records" / "rank_3.json").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(LocalStore, "list", listed)
    assert sorted(state.records(None)) == [0, 1, 2, 4, 5]
    with pytest.raises(MissingInputError, match="a record was deleted"):
        state.fingerprints(3)
