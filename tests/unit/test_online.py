"""Online load: every rank's slices in memory, from any source, against numpy slices of the whole tensor."""

from __future__ import annotations

import gc
import inspect
import os
from typing import TYPE_CHECKING

import disk
import ml_dtypes
import models
import msgspec
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_tasks import task
from rawfiles import same

import reshard
from reshard.checkpoint.arrays import array_of, array_type
from reshard.checkpoint.dtypes import DTYPES
from reshard.cli import main
from reshard.errors import DataError, ReshardError
from reshard.online.load import tensors_of
from reshard.progress import CancelledError
from reshard.storage.traffic import Meter

if TYPE_CHECKING:
    from pathlib import Path


def arguments(made: disk.Checkpoint, rank: int = 0) -> tuple[str, str, str, int]:
    return str(made.source), str(made.source_strategy), str(made.target_strategy), rank


@examples(100)
@given(models.models(), st.sampled_from(["ckpt", "safetensors"]), st.data())
def test_every_rank_gets_exactly_its_slices(model: models.Model, kind: str, data: st.DataObject) -> None:
    made, _ = task(model, kind, kind)
    for rank in data.draw(st.lists(st.integers(0, model.target_ranks - 1), min_size=1, max_size=4, unique=True)):
        content = Meter()
        found = dict(tensors_of(made, rank, content))
        assert same(found, model.target(rank))
        assert all(array.flags.writeable and array.flags.c_contiguous for array in found.values())
        assert len({array.__array_interface__["data"][0] for array in found.values() if array.size}) == sum(
            1 for array in found.values() if array.size
        )
        needed = sum(array.nbytes for array in found.values())
        assert content.traffic.nbytes <= max(1.25 * needed, needed + (4096 << 10))


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_load_from_files(kind: str, tmp_path: Path) -> None:
    made = disk.write(tmp_path, disk.example(rows=480, columns=240), kind)
    before = sorted(tmp_path.rglob("*"))
    for rank in range(made.model.target_ranks):
        assert same(reshard.load(*arguments(made, rank)), made.model.target(rank))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "how", [["--output", "unified", "--max-file-size-bytes", "1024"], ["--remove-redundancy"]], ids=lambda how: how[-1]
)
@pytest.mark.parametrize("by", ["headers", "index"])
def test_a_load_from_files_that_reshard_wrote(how: list[str], by: str, tmp_path: Path) -> None:
    made = disk.write(tmp_path, disk.example(), "safetensors")
    source, strategy = str(tmp_path / "made"), str(made.target_strategy)
    without = [] if how[0] == "--output" else ["--target-strategy", strategy]
    sides = ["--source", str(made.source), "--source-strategy", str(made.source_strategy)]
    assert main(["transform", *sides, *without, "--target", source, *how]) == 0
    places = {"source_strategy": strategy if without else None, "target_strategy": strategy}
    if by == "index":
        given = ["--source", source, *(["--source-strategy", strategy] if without else []), "--target-strategy", strategy]
        assert main(["transform", *given, "--output", "index", "--target", str(tmp_path / "index")]) == 0
        places = {"index": str(tmp_path / "index")}
    for rank in range(made.model.target_ranks):
        assert same(reshard.load(source, rank=rank, **places), made.model.target(rank))


def test_without_strategies_a_file_is_loaded_whole(tmp_path: Path) -> None:
    whole = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array(1.5, ml_dtypes.bfloat16)}
    (tmp_path / "net.safetensors").write_bytes(rawfiles.safetensors(whole))
    assert same(reshard.load(str(tmp_path / "net.safetensors")), whole)
    assert same(reshard.load(str(tmp_path)), whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "SourceChanged"),
        (lambda path: os.utime(path, (1, 1)), "SourceChanged"),
        (lambda path: path.unlink(), "SourceChanged.*was deleted"),
    ],
)
@pytest.mark.parametrize("after", [0, 1])
def test_a_source_that_changes_during_a_run_is_an_error(tmp_path: Path, change: object, said: str, after: int) -> None:
    made = disk.write(tmp_path, disk.example())
    tensors = reshard.iter_tensors(*arguments(made))
    for _ in range(after):
        next(tensors)
    change(made.source / "rank_0" / "net-1_100.ckpt")
    with pytest.raises(DataError, match=said):
        list(tensors)


def test_files_are_closed_when_iteration_stops_early(tmp_path: Path) -> None:
    made = disk.write(tmp_path, disk.example())
    gc.collect()  # objects left by other tests
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - pathlib has no list of names
    tensors = reshard.iter_tensors(*arguments(made))
    next(tensors)
    assert len(os.listdir("/proc/self/fd")) > len(before)  # noqa: PTH208 - as above
    del tensors
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208 - as above


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"rank": 6}, "NoSuchRank"),
        ({"rank": -1}, "NoSuchRank"),
        ({"step": 3}, "StepMissing"),
        ({"target_strategy": "nowhere"}, "StrategyMissing"),
        ({"index": "nowhere"}, "InvalidOption"),
    ],
)
def test_invalid_requests_are_refused_before_the_first_tensor(tmp_path: Path, how: dict[str, object], reason: str) -> None:
    made = disk.write(tmp_path, disk.example())
    named = dict(zip(("source", "source_strategy", "target_strategy", "rank"), arguments(made), strict=True))
    with pytest.raises(ReshardError, match=reason):
        reshard.iter_tensors(**(named | how))


@pytest.mark.parametrize("name", sorted(name for name in DTYPES if DTYPES[name].array))
def test_each_type_is_from_numpy_or_ml_dtypes(name: str) -> None:
    assert array_type(name).itemsize == DTYPES[name].itemsize
    if name in rawfiles.NUMPY_TYPES:
        assert array_type(name) == np.dtype(rawfiles.NUMPY_TYPES[name])


@pytest.mark.parametrize(
    ("name", "bits", "value"),
    [
        ("Float8E5M2", 0x7B, 57344),
        ("Float8E4M3FN", 0x7E, 448),
        ("F8_E8M0", 0x80, 2),
        ("F8_E5M2FNUZ", 0x7F, 57344),
        ("F8_E4M3FNUZ", 0x7F, 240),
        ("BFloat16", 0x3FC0, 1.5),
    ],
)
def test_small_floats_have_the_values_of_their_formats(name: str, bits: int, value: float) -> None:
    content = bits.to_bytes(DTYPES[name].itemsize, "little")
    assert float(array_of(content, name, (1,))[0]) == value


def test_a_type_that_no_array_can_have_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"UnknownType: parameter w: the type HiFloat8 has no equivalent in numpy or ml_dtypes"):
        array_of(b"a", "HiFloat8", (1,), "w")


@pytest.mark.parametrize("text", ["héllo \U0001f600", "", "a"])
def test_text_is_an_array_without_dimensions(text: str, tmp_path: Path) -> None:
    content = rawfiles.message("a", [2], "Int8", b"xy") + rawfiles.message("t", [0], "str", text.encode("utf-32-le"))
    (tmp_path / "net.ckpt").write_bytes(content)
    found = reshard.load(str(tmp_path))["t"]
    assert (found.shape, found.item()) == ((), text)


def test_invalid_text_is_refused() -> None:
    with pytest.raises(DataError, match="TextInvalid: parameter t"):
        array_of(b"\xff\xff\xff\xff", "str", (1,), "t")


@pytest.mark.parametrize("after", [0, 1])
def test_a_load_ends_at_its_next_read_when_it_is_cancelled(tmp_path: Path, after: int) -> None:
    made, cancellation = disk.write(tmp_path, disk.example()), reshard.Cancellation()
    tensors = reshard.iter_tensors(*arguments(made), cancellation=cancellation)
    for _ in range(after):
        next(tensors)
    cancellation.cancel()
    with pytest.raises(CancelledError):
        list(tensors)  # small tensors that were read together may come first
    with pytest.raises(CancelledError):
        reshard.load(*arguments(made), cancellation=cancellation)


def test_options_that_do_not_apply_to_a_load_are_not_arguments() -> None:
    for name, value in (("layout", "Same"), ("file_prefix", "y")):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            reshard.load("x", **{name: value})
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            reshard.iter_tensors("x", **{name: value})


def test_the_options_of_a_load_are_those_of_its_iterator() -> None:
    parameters = inspect.signature(reshard.iter_tensors).parameters.values()
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert reshard.LoadOptions.__annotations__.keys() == names - {"framework", "out"}  # not for a load into a network
    defaults = {field.name: field.default for field in msgspec.structs.fields(reshard.Options)}
    assert all(p.default == defaults[p.name] for p in parameters if p.name in defaults)
