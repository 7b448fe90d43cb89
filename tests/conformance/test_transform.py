"""Random transforms, by MindSpore and by us, and both against slices of the whole tensor."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import contents
import deviations
import numpy as np
import pytest
import rawfiles
from deviations import DEVIATIONS, Difference
from transforms import COUNT, Case, make

from reshard import Options, Request, transform_checkpoint
from reshard.errors import DataError
from reshard.mindspore import rank_list_for_transform, transform_checkpoint_by_rank, transform_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deviations import Deviation, RankLists

    Transformed = Callable[[int], Path]

PREFIX = "checkpoint_"
ALL = [make(number) for number in range(COUNT)]
BY_RANK = [case for case in ALL if case.source_format == case.target_format == "ckpt"]


def strategy(folder: Path, case: Case, side: str, *, merged: bool = True) -> str | None:
    """A side's strategy: as MindSpore merged it, or the folder with the files of all stages."""
    if not getattr(case, f"{side}_named"):
        return None
    if not merged and getattr(case, f"{side}_stages") > 1:
        return str(folder / f"{side}_stages")
    return str(folder / f"{side}_strategy.{'json' if case.json else 'ckpt'}")


def reshard_case(case: Case, source: Path, target: Path, before: str | None, after: str | None, *, workers: int = 1) -> None:
    """Transform a case's source by MindSpore's function; where copies differ it refuses, and they are accepted by ours."""

    def transform() -> None:
        transform_checkpoints(str(source), str(target), PREFIX, before, after, workers, case.target_format)

    if not case.inconsistent:
        transform()
        return
    with pytest.raises(DataError, match="RanksDisagree"):
        transform()
    kind = "Ckpt" if case.target_format == "ckpt" else "Safetensors"
    options = Options(format=kind, file_prefix=PREFIX, allow_inconsistent=case.inconsistent)
    transform_checkpoint(Request(str(source), str(target), before, after, options), workers=workers)


def refused_by_rank(
    case: Case, rank: int, files: dict[int, str], made: Path | str, before: str | None, after: str | None
) -> bool:
    """Write a target rank from these files, unless copies in them differ."""
    if case.inconsistent and len(files) > 1:
        with pytest.raises(DataError, match="RanksDisagree"):
            transform_checkpoint_by_rank(rank, files, str(made), before, after)
        return True
    transform_checkpoint_by_rank(rank, files, str(made), before, after)
    return False


def outcome(folder: Path, case: Case) -> dict[str, Any]:
    """Return MindSpore's result; it may fail in known ways only."""
    found: dict[str, Any] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    assert not found["error"] or deviations.refuses(case, found["error"]), found["error"]
    return found


def file_of(folder: Path, rank: int, kind: str) -> bytes:
    path = folder / f"rank_{rank}" / f"{PREFIX}{rank}.{kind}"
    return path.read_bytes() if path.exists() else b""


def paths(folder: Path, case: Case, ranks: list[int]) -> dict[int, str]:
    return {rank: str(folder / "source" / f"rank_{rank}" / case.file_name(rank)) for rank in ranks}


def defined(case: Case, rank: int, read: list[int] | None = None) -> dict[str, contents.Found]:
    """Return the expected contents of a target rank's file, made from the files of all or some source ranks."""
    types = case.types()
    return {name: (types[name], array.shape, array.tobytes()) for name, array in case.target(rank, read).items()}


def differences(case: Case, rank: int, theirs: bytes) -> Iterator[Difference]:
    """Return the differences of MindSpore's output from the definition."""
    right, found = defined(case, rank), contents.tensors(theirs, case.target_format)
    for tensor in case.tensors:
        one, other = right.get(tensor.name), found.get(tensor.name)
        if one is None or other is None:
            if one is not other:
                yield Difference("missing" if other is None else "extra", rank, tensor)
            continue
        if one[0] != other[0]:
            yield Difference("type", rank, tensor)
        if one[1:] != other[1:]:
            yield Difference("content", rank, tensor)


def check(case: Case, rank: int, ours: bytes, theirs: bytes, lists: RankLists) -> None:
    """Our file is right, and equals MindSpore's except for known deviations."""
    assert contents.tensors(ours, case.target_format) == defined(case, rank)
    found = list(differences(case, rank, theirs))
    assert [d for d in found if deviations.explained(case, d, lists) is None] == []
    if case.target_format == "ckpt":
        mine, other = contents.messages(ours), contents.messages(theirs)
        alike = mine.keys() & other.keys() - {d.tensor.name for d in found}
        assert {name: mine[name] for name in alike} == {name: other[name] for name in alike}
        if not found and not (deviations.may_reorder(case) and list(mine) != list(other)):
            assert ours == theirs
    elif not found:
        assert contents.same_safetensors(ours, theirs)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_a_transform_is_right_and_equals_mindspores(case: Case, transformed: Transformed, tmp_path: Path) -> None:
    folder = transformed(case.number)
    merged = case.number % 2 == 0
    before, after = (strategy(folder, case, side, merged=merged) for side in ("source", "target"))
    reshard_case(case, folder / "source", tmp_path, before, after, workers=1 + case.number % 3)
    found = outcome(folder, case)
    for rank in range(case.target_ranks):
        ours = file_of(tmp_path, rank, case.target_format)
        assert contents.tensors(ours, case.target_format) == defined(case, rank)
        if not found["error"]:
            check(case, rank, ours, file_of(folder / "mindspore", rank, case.target_format), found["rank_lists"])


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_the_ranks_to_read_are_enough_and_no_more_than_mindspore_names(
    case: Case, transformed: Transformed, tmp_path: Path
) -> None:
    folder = transformed(case.number)
    before, after = strategy(folder, case, "source"), strategy(folder, case, "target")
    rank = case.number % case.target_ranks
    needed = rank_list_for_transform(rank, before, after)
    assert needed == sorted(set(needed))
    found = outcome(folder, case)
    if not found["error"]:
        assert len(needed) <= len(found["rank_lists"][rank])
    made = tmp_path / f"made.{case.target_format}"
    if refused_by_rank(case, rank, paths(folder, case, needed), made, before, after):
        return
    cut = {tensor.name for tensor in case.tensors if tensor.source is not None or tensor.target is not None}
    ours = contents.tensors(made.read_bytes(), case.target_format)
    right = defined(case, rank)
    assert {name: value for name, value in ours.items() if name in cut} == {n: v for n, v in right.items() if n in cut}
    assert ours.keys() - cut == {name for r in needed for name in case.source(r)} - cut


@pytest.mark.parametrize("case", BY_RANK, ids=lambda case: case.name)
def test_a_single_rank_is_transformed_as_by_mindspore(case: Case, transformed: Transformed, tmp_path: Path) -> None:
    folder = transformed(case.number)
    before, after = strategy(folder, case, "source"), strategy(folder, case, "target")
    found = outcome(folder, case)
    rank = case.number % case.target_ranks
    read = sorted(found["rank_lists"][rank]) if not found["error"] else list(range(case.source_ranks))
    if any(deviations.ignores_device_order(cut) for tensor in case.tensors for cut in (tensor.source, tensor.target)):
        read = sorted({*read, *rank_list_for_transform(rank, before, after)})  # it then names the wrong ranks
    made = tmp_path / "made.ckpt"
    if refused_by_rank(case, rank, paths(folder, case, read), made, before, after):
        return
    ours, held = made.read_bytes(), {name for r in read for name in case.source(r)}
    assert contents.tensors(ours, "ckpt") == {name: value for name, value in defined(case, rank, read).items() if name in held}
    if not found["error"]:
        theirs = (folder / "by_rank.ckpt").read_bytes()
        unlike = list(differences(case, rank, theirs))
        assert [d for d in unlike if deviations.explained(case, d, found["rank_lists"]) is None] == []
        mine, other = contents.messages(ours), contents.messages(theirs)
        alike = mine.keys() & other.keys() - {d.tensor.name for d in unlike}
        assert {name: mine[name] for name in alike} == {name: other[name] for name in alike}


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: deviation.name)
def test_every_known_deviation_occurs(deviation: Deviation, transformed: Transformed) -> None:
    case = ALL[deviation.example]
    folder = transformed(case.number)
    lists = outcome(folder, case)["rank_lists"]
    seen = {
        deviations.explained(case, found, lists)
        for rank in range(case.target_ranks)
        for found in differences(case, rank, file_of(folder / "mindspore", rank, case.target_format))
    }
    assert deviation in seen


def test_a_wrong_bit_is_detected() -> None:
    case = next(case for case in ALL if case.target_format == "ckpt")
    tensors = {name: array.copy() for name, array in case.target(0).items()}

    def written() -> bytes:
        return b"".join(rawfiles.message(n, list(a.shape), case.types()[n], a.tobytes()) for n, a in tensors.items())

    assert list(differences(case, 0, written())) == []
    next(iter(tensors.values())).reshape(-1).view(np.uint8)[-1] ^= 1
    assert [found.kind for found in differences(case, 0, written())] == ["content"]
