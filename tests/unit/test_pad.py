"""Parameters that are padded with zeros, or from which zeros are trimmed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import boxes_format
import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import held
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryReader
from memory_tasks import task, written

import reshard
from reshard.cli import main
from reshard.engine.verify import check_file
from reshard.errors import BugError, RequestError, UsageError
from reshard.formats import registry
from reshard.layout.box import Box
from reshard.pictures.traffic import count_traffic
from reshard.plan.pad import beyond, within
from reshard.spec.request import Options, Request
from reshard.spec.rules import PadRule

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.engine.task import Task

SMALL = st.integers(0, 6)


@given(st.lists(st.tuples(SMALL, SMALL, SMALL), max_size=3))
def test_a_box_is_what_is_inside_and_what_is_beyond(dimensions: list[tuple[int, int, int]]) -> None:
    box = Box(tuple(a for a, _, _ in dimensions), tuple(n for _, n, _ in dimensions))
    shape = tuple(m for _, _, m in dimensions)
    counts = np.zeros((13,) * len(dimensions), int)
    for each in (within(box, shape), *beyond(box, shape)):
        counts[each.slices()] += 1
    expected = np.zeros_like(counts)
    expected[box.slices()] = 1
    assert counts.tolist() == expected.tolist()
    inside = np.zeros_like(counts)
    inside[tuple(map(slice, shape))] = 1
    assert all(not inside[each.slices()].any() for each in beyond(box, shape))


def resized(content: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array of a new shape, with zeros where there was nothing."""
    found = np.zeros(shape, content.dtype)
    common = tuple(map(slice, map(min, shape, content.shape)))
    found[common] = content[common]
    return found


def compare(made: Task, rank: int, content: bytes, level: Any) -> None:
    """Compare the file of a rank with the source."""
    reader = MemoryReader("x.safetensors", content)
    described = made.output.entries(reader, made.tensors(rank))
    check_file(reader, made.planner.plan(rank), made.model, made.source_files(), level, described)


@examples(500)
@given(model=models.models(), kind=st.sampled_from(["ckpt", "safetensors"]), data=st.data())
def test_every_rank_gets_its_slices_of_the_new_shape(model: models.Model, kind: str, data: st.DataObject) -> None:
    shapes, rules = {}, []
    model = model.repeated(data.draw(st.sampled_from([1, 1, 1, 6])))
    for tensor in model.tensors:
        lengths = list(tensor.shape)
        for dimension, parts in enumerate(models.parts(tensor.target, len(lengths))):
            if data.draw(st.booleans()):
                lengths[dimension] = parts * data.draw(st.integers(1, 4))
                rules.append(PadRule(tensor.name, dimension, lengths[dimension]))
        shapes[tensor.name] = tuple(lengths)
    made, _ = task(model, kind, "safetensors", pad=tuple(rules))
    for rank in data.draw(st.lists(st.integers(0, model.target_ranks - 1), min_size=1, max_size=4, unique=True)):
        content = written(made, rank)
        expected = {}
        for tensor in model.tensors:
            whole = resized(model.whole(tensor), shapes[tensor.name])
            if tensor.target is None:
                expected[tensor.name] = whole
            elif tensor.target_stage == rank // model.target_devices:
                indexes = held(whole.shape, tensor.target)[rank % model.target_devices]
                expected[tensor.name] = whole.reshape(-1)[indexes.reshape(-1)].reshape(indexes.shape)
        assert rawfiles.same(rawfiles.read("safetensors", content), expected)
        for level in ("Sample", "Full"):
            compare(made, rank, content, level)
    count_traffic(made.planner, range(model.target_ranks), 64)


def test_padding_that_is_not_zero_is_noticed() -> None:
    made, _ = task(disk.example(), "ckpt", "safetensors", pad=(PadRule("w", 0, 60),))
    content = bytearray(written(made, 0))
    compare(made, 0, bytes(content), "Full")
    (entry,) = [e for e in made.output.entries(MemoryReader("x", bytes(content)), made.tensors(0)) if e.name == "w"]
    offset, length = entry.extents[0]
    content[offset + length - 1] = 1
    with pytest.raises(BugError, match=r"VerificationFailed.*w has padding that is not zero"):
        compare(made, 0, bytes(content), "Full")


@pytest.fixture(params=["ckpt", "safetensors"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "made", disk.example(), request.param)


def whole(made: disk.Checkpoint, name: str) -> np.ndarray:
    (tensor,) = [tensor for tensor in made.model.tensors if tensor.name == name]
    return made.model.whole(tensor)


def test_trimming_reverses_padding(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    longer = ["--pad", "w:0=50", "--pad", "w:1=30", "--pad", "b:0=30", "--verification", "full"]
    assert disk.run(checkpoint, tmp_path / "padded", *longer) == 0
    document = json.loads((tmp_path / "padded" / "reshard-manifest.json").read_text())
    shapes = {name: (p["shape"], p["sourceShape"]) for name, p in disk.parameters_of(document).items()}
    assert shapes == {"w": ([50, 30], [48, 24]), "b": ([30], [24]), "m": ([48, 24], None), "step": ([], None)}
    assert document["options"]["pad"][0] == {"name": "w", "dimension": 0, "length": 50}
    padded = reshard.load(str(tmp_path / "padded"), str(checkpoint.target_strategy))
    assert rawfiles.equal(padded["w"], resized(whole(checkpoint, "w"), (50, 30)))
    sides = ["--source", str(tmp_path / "padded"), "--source-strategy", str(checkpoint.target_strategy)]
    shorter = ["--pad", "w:0=48", "--pad", "w:1=24", "--pad", "b:0=24", "--target", str(tmp_path / "trimmed")]
    assert main(["transform", *sides, *shorter, "--verification", "full"]) == 0
    trimmed = reshard.load(str(tmp_path / "trimmed"))
    assert rawfiles.same({n: a for n, a in trimmed.items() if n != "step"}, {n: whole(checkpoint, n) for n in ("w", "m", "b")})
    assert main(["transform", *sides, *shorter]) == 0


@pytest.mark.parametrize("rule", ["w:0=47", "w:1=12", "b:0=1"])
@pytest.mark.parametrize("output", ["per-rank", "unified", "index"])
def test_values_other_than_zero_are_not_trimmed(
    checkpoint: disk.Checkpoint, tmp_path: Path, rule: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ["--source", str(checkpoint.source), "--source-strategy", str(checkpoint.source_strategy)]
    target = ["--target", str(tmp_path / "t"), "--output", output]
    for command in ("plan", "transform"):
        assert main([command, *sides, *target, "--pad", rule]) == 65
        assert f"TrimmedNotZero: parameter {rule[0]}" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("output", ["Unified", "Index"])
def test_other_outputs_pad_too(checkpoint: disk.Checkpoint, tmp_path: Path, output: Any) -> None:
    options = Options(output=output, pad=(PadRule("b", 0, 40),))
    request = Request(str(checkpoint.source), str(tmp_path / "t"), str(checkpoint.source_strategy), options=options)
    assert reshard.transform_checkpoint(request).complete
    if output == "Index":
        found = reshard.load(str(checkpoint.source), index=str(tmp_path / "t"))
    else:
        found = reshard.load(str(tmp_path / "t"))
    assert rawfiles.equal(found["b"], resized(whole(checkpoint, "b"), (40,)))


def test_a_target_strategy_divides_the_new_shape(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    assert disk.run(checkpoint, tmp_path / "t", "--pad", "w:1=25") == 65
    assert disk.run(checkpoint, tmp_path / "t", "--pad", "w:1=36", "--cast", "w=float64") == 0


def test_shards_that_metadata_locates_are_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.arange(24, dtype=np.float32).reshape(4, 6)
    boxes_format.write(tmp_path / "source", {"w": ("Float32", content, [Box((0, 0), (4, 2)), Box((0, 2), (4, 4))])})
    others = registry._OWN  # noqa: SLF001 - no package with an entry point is installed for tests
    monkeypatch.setattr(registry, "_OWN", {"raw-boxes": boxes_format.RAW, **others})
    found = reshard.load(str(tmp_path / "source"), pad=(PadRule("w", 0, 7), PadRule("w", 1, 9)))
    assert rawfiles.equal(found["w"], resized(content, (7, 9)))
    assert reshard.load(str(tmp_path / "source"), pad=(PadRule("w", 0, 4),))["w"].shape == (4, 6)
    with pytest.raises(reshard.ReshardError, match="TrimmedNotZero"):
        reshard.load(str(tmp_path / "source"), pad=(PadRule("w", 1, 3),))


@pytest.mark.parametrize(
    ("rule", "code", "reason"),
    [
        ("nobody:0=3", 66, "PaddedMissing: parameter nobody"),
        ("step:0=3", 78, "CannotPad: parameter step: dimension 0 does not exist"),
        ("w=3", 2, "InvalidPad"),
        ("w:0=0", 2, "InvalidPad"),
        ("w:64=3", 2, "InvalidPad"),
        ("w:0=999999999999999999", 2, "InvalidPad"),
        ("w:-1=3", 2, "InvalidPad"),
    ],
)
def test_invalid_rules(
    checkpoint: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, code: int, reason: str
) -> None:
    assert disk.run(checkpoint, tmp_path / "t", "--pad", rule) == code
    assert reason in capsys.readouterr().err


def test_rules_that_contradict_the_request_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two rules give dimension 0 of 'a' different lengths"):
        Options(pad=(PadRule("a", 0, 1), PadRule("a", 0, 2)))
    with pytest.raises(UsageError, match="pad: the output Same"):
        Options(pad=(PadRule("a", 0, 1),), output="Same")
    path = tmp_path / "a.ckpt"
    path.write_bytes(rawfiles.message("text", [0], "str", "abc".encode("utf-32-le")))
    with pytest.raises(RequestError, match="CannotPad: parameter text"):
        reshard.load(str(path), pad=(PadRule("text", 0, 1),))


def test_chunks_of_the_new_shape(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    sides = ["--source", str(checkpoint.source), "--source-strategy", str(checkpoint.source_strategy), "--format", "torch-dcp"]
    padding = ["--pad", "w:0=100", "--verification", "full", "--target", str(tmp_path / "t"), "--target-ranks", "7"]
    assert main(["transform", *sides, *padding]) == 0
    assert rawfiles.equal(reshard.load(str(tmp_path / "t"))["w"], resized(whole(checkpoint, "w"), (100, 24)))
    assert main(["verify", str(tmp_path / "t")]) == 0


@pytest.mark.parametrize("place", [(3, 11), (2, 0)])
def test_one_value_in_the_padding_of_one_rank_is_not_trimmed(tmp_path: Path, place: tuple[int, int]) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    for single in (True, False):
        for number in range(4):
            path = made.source / f"rank_{number}" / "net-1_100.ckpt"
            tensors = rawfiles.read("ckpt", path.read_bytes())
            slice_ = tensors["w"].copy()
            slice_[:, 18:] = 0
            if single and number == place[0]:
                slice_[place[1], 23] = 1
            path.write_bytes(rawfiles.ckpt(tensors | {"w": slice_}))
        assert disk.run(made, tmp_path / "t", "--pad", "w:1=18") == (65 if single else 0)


@pytest.mark.parametrize("cast", [(), ("--cast", "w=bfloat16")])
def test_padding_in_buffers_that_are_reused(tmp_path: Path, cast: tuple[str, ...]) -> None:
    path = tmp_path / "a.safetensors"
    content = np.full((600, 1200), 3.0, np.float32)
    path.write_bytes(rawfiles.safetensors({"w": content}))
    arguments = ["--source", str(path), "--target", str(tmp_path / "t"), "--pad", "w:0=700", "--pad", "w:1=1201", *cast]
    assert main(["transform", *arguments, "--verification", "none"]) == 0
    found = reshard.load(str(tmp_path / "t"))["w"]
    assert np.array_equal(found.astype(np.float32), resized(content, (700, 1201)))
