"""Identity of a target's source: its content decides, and its files' times show when to compare it."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pipelines
import pytest
import rawfiles
from definition import Cut
from disk import rank_file, right, run

import reshard
from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import main
from reshard.engine.rankfile import compare
from reshard.errors import DataError
from reshard.spec.request import Options, Request
from reshard.transform import preflight
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.engine.task import Task

FILE = "rank_0/net-1_100.ckpt"


def touch(made: disk.Checkpoint) -> None:
    """Give the source's files other times, like those of a copy or a restored backup."""
    for path in made.source.rglob("*.ckpt"):
        os.utime(path, ns=(7, 7))


def replace_unseen(adapted: disk.Checkpoint, by: float, *, in_place: bool = True) -> None:
    """Change bytes that no sample reads, and restore the file's time."""
    path, held = adapted.source / FILE, adapted.model.source()[0]
    before = path.stat()
    content = rawfiles.ckpt(held | {"adapter": held["adapter"] + np.float32(by)})
    if in_place:
        path.write_bytes(content)
    else:
        path.with_suffix(".tmp").write_bytes(content)
        path.with_suffix(".tmp").replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_a_source_that_was_copied_again_is_the_same_source(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target) == 0
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*.ckpt")}
    touch(made)
    assert run(made, target) == 0
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*.ckpt")} == before
    assert right(made, target)


def identity(path: Path) -> tuple[int, int]:
    """Return what differs if a file was written again."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def test_ranks_that_were_written_from_an_earlier_copy_are_kept(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target, "--only-ranks", "0-3", "--no-commit") == 0
    first = identity(rank_file(target, 0))
    touch(made)
    reshard.plan_transform(Request(made.source, target, made.source_strategy, made.target_strategy), write=True)
    assert run(made, target, "--only-ranks", "4", "--no-commit") == 0  # from the plan, which names the new times
    assert run(made, target) == 0
    assert identity(rank_file(target, 0)) == first
    assert right(made, target)


def test_ranks_are_written_from_a_source_copied_again_after_the_plan(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target, "--only-ranks", "0-3", "--no-commit") == 0
    first = identity(rank_file(target, 0))
    touch(made)
    assert run(made, target, "--only-ranks", "4-5", "--no-commit") == 0
    assert main(["commit", str(target)]) == 0
    assert identity(rank_file(target, 0)) == first
    assert right(made, target)


@pytest.fixture
def adapted(tmp_path: Path) -> disk.Checkpoint:
    """A large frozen model with a small trained parameter that no sample of a file reads."""
    rows, columns, few = Cut((4,), ((0,), ())), Cut((4,), ((), (0,))), Cut((4,), ((0,),))
    tensors = (
        models.Tensor("a", "Float32", (300, 240), rows, 0, columns, 0),
        models.Tensor("adapter", "Float32", (64,), few, 0, few, 0),
        models.Tensor("b", "Float32", (500, 240), rows, 0, rows, 0),
    )
    return disk.write(tmp_path / "adapted", models.Model(4, 1, 4, 1, tensors, 1, remove_redundancy=False))


def test_a_change_that_no_sample_shows_is_found_by_comparing(adapted: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert run(adapted, target) == 0
    before = disk.contents(target)
    path = adapted.source / "rank_0" / "net-1_100.ckpt"
    held = adapted.model.source()[0]
    path.write_bytes(rawfiles.ckpt(held | {"adapter": held["adapter"] + np.float32(1)}))
    assert run(adapted, target) == 78
    assert disk.contents(target) == before
    assert run(adapted, target, "--overwrite") == 0
    assert run(adapted, target) == 0
    assert run(adapted, tmp_path / "again") == 0
    assert disk.contents(tmp_path / "again") == disk.contents(target) != before


@pytest.mark.parametrize("verification", ["none", "sample", "full"])
@pytest.mark.parametrize("replaced", ["in place", "by another file"])
def test_an_undetected_replacement_of_a_source_is_found_each_time(
    adapted: disk.Checkpoint, target: Path, replaced: str, verification: str
) -> None:
    """The replaced file keeps its length, its time, and all blocks that samples read."""
    how = ("--verification", verification)
    assert run(adapted, target, *how) == 0
    made = []
    for turn in range(3):
        made.append(disk.contents(target))
        replace_unseen(adapted, 1.0 + turn, in_place=replaced == "in place")
        assert run(adapted, target, *how) == 78
        assert disk.contents(target) == made[-1]
        assert run(adapted, target, *how, "--overwrite") == 0
        assert run(adapted, target, *how) == 0
    assert len({tuple(sorted(each.items())) for each in made}) == 3
    assert main(["verify", str(target)]) == 0


def test_ranks_of_an_undetected_replacement_are_not_mixed(adapted: disk.Checkpoint, target: Path) -> None:
    assert run(adapted, target, "--only-ranks", "0-1", "--no-commit") == 0
    replace_unseen(adapted, 1.0)
    request = Request(adapted.source, target, adapted.source_strategy, adapted.target_strategy, options=Options(only_ranks="2"))
    with pytest.raises(DataError, match=r"SourceChanged: rank_0/.*without --no-commit"):
        transform_checkpoint(request, commit=False)
    assert run(adapted, target) == 0
    fresh = target.parent / "fresh"
    assert run(adapted, fresh) == 0
    assert disk.contents(fresh) == disk.contents(target)


def test_another_process_may_start_the_same_task_while_headers_are_read(
    made: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = preflight.prepare

    def slowly(*arguments: Any, **named: Any) -> Task:
        monkeypatch.undo()
        assert run(made, target, "--only-ranks", "0-1", "--no-commit") == 0
        return usual(*arguments, **named)

    monkeypatch.setattr(preflight, "prepare", slowly)
    request = Request(made.source, target, made.source_strategy, made.target_strategy)
    assert transform_checkpoint(request).skipped_ranks == (0, 1)
    assert right(made, target)


def test_ranks_that_another_process_writes_from_another_content_while_headers_are_read_are_not_mixed(
    adapted: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = preflight.prepare

    def slowly(*arguments: Any, **named: Any) -> Task:
        monkeypatch.undo()
        assert run(adapted, target, "--only-ranks", "0-1", "--no-commit") == 0
        replace_unseen(adapted, 1.0)
        return usual(*arguments, **named)

    monkeypatch.setattr(preflight, "prepare", slowly)
    transform_checkpoint(Request(adapted.source, target, adapted.source_strategy, adapted.target_strategy))
    assert run(adapted, target.parent / "fresh") == 0
    assert disk.contents(target.parent / "fresh") == disk.contents(target)


ATTRIBUTES: dict[str, Callable[[Path], object]] = {
    "mode": lambda path: path.chmod(0o600),
    "link": lambda path: path.with_name("other").hardlink_to(path),
}


@pytest.mark.parametrize("what", ATTRIBUTES)
def test_changed_attributes_cost_one_comparison(
    adapted: disk.Checkpoint, target: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(adapted, target) == 0
    compared: list[int] = []
    monkeypatch.setattr(
        "reshard.transform.identify.compare", lambda task, plan, *rest: (compared.append(plan.rank), compare(task, plan, *rest))
    )
    assert run(adapted, target) == 0
    assert compared == []
    ATTRIBUTES[what](adapted.source / FILE)
    assert run(adapted, target) == 0
    assert sorted(compared) == [0, 1, 2, 3]
    assert run(adapted, target) == 0
    assert len(compared) == 4
    assert main(["verify", str(target)]) == 0


@pytest.mark.parametrize("what", ATTRIBUTES)
def test_changed_attributes_do_not_prevent_the_writing_of_ranks(adapted: disk.Checkpoint, target: Path, what: str) -> None:
    assert run(adapted, target, "--only-ranks", "0-1", "--no-commit") == 0
    first = identity(rank_file(target, 0))
    ATTRIBUTES[what](adapted.source / FILE)
    assert run(adapted, target, "--only-ranks", "2-3", "--no-commit") == 0
    assert main(["commit", str(target)]) == 0
    assert identity(rank_file(target, 0)) == first
    assert right(adapted, target)


@pytest.fixture
def by_index(adapted: disk.Checkpoint, target: Path) -> Callable[[str], int]:
    """Function that writes some ranks from an index of the source."""
    index = target.parent / "index"
    assert run(adapted, index, "--output", "index") == 0
    start = ["transform", "--source", str(adapted.source), "--index", str(index), "--target", str(target)]
    return lambda ranks: main([*start, "--only-ranks", ranks])


def test_ranks_of_an_undetected_replacement_are_not_mixed_by_an_index(
    adapted: disk.Checkpoint, target: Path, by_index: Callable[[str], int]
) -> None:
    assert by_index("0") == 0
    before = disk.contents(target)
    replace_unseen(adapted, 1.0)
    assert by_index("1-3") == 78
    assert disk.contents(target) == before


@pytest.mark.parametrize("what", ATTRIBUTES)
def test_changed_attributes_cost_one_comparison_by_an_index(
    adapted: disk.Checkpoint, target: Path, what: str, by_index: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    monkeypatch.setattr(
        "reshard.transform.identify.compare", lambda task, plan, *rest: (compared.append(plan.rank), compare(task, plan, *rest))
    )
    assert by_index("0") == by_index("1") == 0
    assert compared == []
    ATTRIBUTES[what](adapted.source / FILE)
    assert by_index("2") == 0
    assert sorted(compared) == [0, 1]
    assert by_index("3") == 0
    assert sorted(compared) == [0, 1]
    assert right(adapted, target)


def test_changed_attributes_do_not_change_an_index(made: disk.Checkpoint, target: Path) -> None:
    request = Request(made.source, target, made.source_strategy, made.target_strategy, options=Options(output="Index"))
    assert transform_checkpoint(request).bytes_written > 0
    for path in made.source.rglob("*.ckpt"):
        path.chmod(0o600)
    assert transform_checkpoint(request).bytes_written == 0
    assert reshard.load(str(made.source), index=str(target), rank=0)


def test_sources_of_equal_size_and_time_are_distinguished(made: disk.Checkpoint, other: disk.Checkpoint, target: Path) -> None:
    """Archives and mounts of object stores leave such files."""
    for checkpoint in (made, other):
        for path in checkpoint.source.rglob("*.ckpt"):
            os.utime(path, ns=(1, 1))
    assert run(made, target) == 0
    assert run(other, target) == 78


def test_a_source_that_was_replaced_with_equal_times(made: disk.Checkpoint, other: disk.Checkpoint, target: Path) -> None:
    for checkpoint in (made, other):
        for path in checkpoint.source.rglob("*.ckpt"):
            os.utime(path, ns=(1, 1))
    request = Request(made.source, target, made.source_strategy, made.target_strategy)
    reshard.plan_transform(request, write=True)
    shutil.copytree(other.source, made.source, dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"SourceChanged.*without --no-commit"):
        transform_checkpoint(request, commit=False)
    transform_checkpoint(request)
    assert right(other, target)


def test_a_checkpoint_written_by_stage_records_the_times_of_each_stage(tmp_path: Path, target: Path) -> None:
    made = pipelines.write(tmp_path / "made", pipelines.pipeline())

    def versions() -> list[str]:
        return [stage["source"]["versions"] for stage in json.loads((target / MANIFEST_NAME).read_text())["stages"]]

    assert made.run(0, target) == made.run(1, target) == 0
    first = versions()
    next((made.made.source / "rank_0").iterdir()).chmod(0o600)
    assert made.run(0, target) == made.run(1, target) == 0
    assert [found == before for found, before in zip(versions(), first, strict=True)] == [False, True]
