"""Pipelines stage by stage, by MindSpore and by us; and the parts of a rank loaded as one, each by the other."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import contents
import deviations
import pytest
from transforms import COUNT, Case, make

from reshard.mindspore import load_segmented_checkpoints, transform_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PREFIX = "checkpoint_"


def names(case: Case, stage: int | None) -> set[str]:
    """Return the names by which MindSpore distinguishes a stage from a whole."""
    cut = {t.name for t in case.tensors if t.source is not None and (stage is None or stage in t.source_stages)}
    return {name for name in cut if not name.startswith(("accu_grads", "adam_v", "adam_m"))}


def is_by_stage(case: Case) -> bool:
    """Return whether MindSpore does so: for `.ckpt` and between several devices, to one stage."""
    if case.source_format != "ckpt" or case.source_stages == 1 or not case.target_named or case.target_stages > 1:
        return False
    return all(names(case, stage) < names(case, None) for stage in range(case.source_stages))


CASES = [case for case in map(make, range(COUNT)) if is_by_stage(case)]


@pytest.fixture(scope="session")
def by_stage(once: Callable[..., Path]) -> Path:
    return once("stages", *(case.number for case in CASES))


def part_of(case: Case, rank: int, stage: int) -> dict[str, contents.Found]:
    """Return the expected contents of a target rank's part."""
    held, types = case.source(stage * case.source_devices).keys(), case.types()
    return {name: (types[name], array.shape, array.tobytes()) for name, array in case.target(rank).items() if name in held}


def made(folder: Path, case: Case, target: Path, order: list[int]) -> None:
    for stage in order:
        file = folder / "source_stages" / f"strategy_{stage}.{'json' if case.json else 'ckpt'}"
        after = folder / f"target_strategy.{'json' if case.json else 'ckpt'}"
        transform_checkpoints(str(folder / "source"), str(target), PREFIX, str(file), str(after))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_parts_are_right_and_equal_mindspores(case: Case, by_stage: Path, tmp_path: Path) -> None:
    folder = by_stage / str(case.number)
    made(folder, case, tmp_path, list(range(case.source_stages))[:: 1 if case.number % 2 else -1])
    odd = {t.name for t in case.tensors if t.dtype == "Int4" or any(map(deviations.ignores_device_order, (t.source, t.target)))}
    for rank in range(case.target_ranks):
        for stage in range(case.source_stages):
            path = f"rank_{rank}/{PREFIX}{rank}_part{stage}.ckpt"
            ours, theirs = (tmp_path / path).read_bytes(), (folder / "mindspore" / path).read_bytes()
            assert contents.tensors(ours, "ckpt") == part_of(case, rank, stage)
            mine, other = contents.messages(ours), contents.messages(theirs)
            assert mine.keys() == other.keys()
            assert {n: mine[n] for n in mine if n not in odd} == {n: other[n] for n in other if n not in odd}
            if not odd & mine.keys() and list(mine) == list(other):
                assert ours == theirs
    assert (tmp_path / "reshard-manifest.json").exists()


def test_parts_are_loaded_as_one_checkpoint(oracle: Callable[..., Any], by_stage: Path, tmp_path: Path) -> None:
    """Ours by MindSpore, and MindSpore's by us."""
    ranks = []
    for case in CASES[::4]:
        made(by_stage / str(case.number), case, tmp_path / str(case.number), list(range(case.source_stages)))
        ranks.append((case, tmp_path / str(case.number) / "rank_0", by_stage / str(case.number) / "mindspore" / "rank_0"))
    found = oracle("segments", *(ours for _, ours, _ in ranks))
    for case, ours, theirs in ranks:
        right = {name: array.tobytes() for name, array in case.target(0).items()}
        digests = {name: digest for name, (_, _, digest) in found[str(ours)].items()}
        assert digests == {name: hashlib.sha256(content).hexdigest() for name, content in right.items()}
        if not any(deviations.ignores_device_order(cut) for t in case.tensors for cut in (t.source, t.target)):
            assert {name: array.tobytes() for name, array in load_segmented_checkpoints(str(theirs)).items()} == right


def test_enough_cases_are_tested() -> None:
    assert len(CASES) >= 20
