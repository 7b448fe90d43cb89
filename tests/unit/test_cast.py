"""Parameters that are cast to another floating-point type."""

from __future__ import annotations

import json
import re
import struct
from bisect import bisect_left
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from math import inf, isinf, isnan
from typing import TYPE_CHECKING, Any

import disk
import ml_dtypes
import models
import numpy as np
import pipelines
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_tasks import task, written

import reshard
from reshard.checkpoint.manifest import FileRecord, Loss
from reshard.cli import main
from reshard.engine.cast import cast
from reshard.errors import BugError, UsageError
from reshard.spec.request import Options, Request
from reshard.spec.rules import CastRule
from reshard.storage import open_store
from reshard.target.cast_losses import CastLosses, LossSums
from reshard.target.folder import TargetFolder

if TYPE_CHECKING:
    from pathlib import Path

TYPES: dict[str, Any] = {
    "Float64": np.float64,
    "Float32": np.float32,
    "Float16": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
}


def quiet() -> np.errstate:
    """References overflow on purpose, and have signaling NaNs."""
    return np.errstate(all="ignore")


def cast_array(values: np.ndarray, after: str) -> tuple[np.ndarray, Loss]:
    """Cast an array with the function under test."""
    before = next(name for name, kind in TYPES.items() if values.dtype == kind)
    content = bytearray(values.size * np.dtype(TYPES[after]).itemsize)
    loss = cast(memoryview(values.tobytes()), before, memoryview(content), after)
    return np.frombuffer(content, TYPES[after]), loss


def every(name: str) -> np.ndarray:
    """Every value of a type of 16 bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(TYPES[name])


def finite(name: str) -> list[float]:
    """The finite values of a type of 16 bits that are not negative, in order. Their positions are their bits."""
    return every(name)[: {"Float16": 0x7C00, "BFloat16": 0x7F80}[name]].astype(np.float64).tolist()


FINITE = {name: finite(name) for name in ("Float16", "BFloat16")}


def nearest(value: float, name: str) -> float:
    """Round to the nearest value, ties to even, by exact arithmetic."""
    known, size = FINITE[name], abs(value)
    at = bisect_left(known, size)
    if isinf(value) or at == len(known):
        step = Fraction(known[-1]) - Fraction(known[-2])
        result = inf if isinf(value) or Fraction(size) >= Fraction(known[-1]) + step / 2 else known[-1]
    elif known[at] == size or not at:
        result = known[at]
    else:
        below, above = Fraction(size) - Fraction(known[at - 1]), Fraction(known[at]) - Fraction(size)
        result = known[at if above < below or (above == below and not at % 2) else at - 1]
    return -result if value < 0 else result


@pytest.mark.parametrize("before", FINITE)
@pytest.mark.parametrize("after", ["Float32", "Float64"])
def test_longer_types_have_the_same_values(before: str, after: str) -> None:
    values = every(before)
    found, loss = cast_array(values, after)
    assert loss == Loss()
    with quiet():
        assert np.array_equal(found, values.astype(TYPES[after]), equal_nan=True)
    assert np.array_equal(np.signbit(found), np.signbit(values))


@pytest.mark.parametrize(("before", "after"), [*permutations(FINITE, 2)])
def test_every_value_of_16_bits_is_rounded(before: str, after: str) -> None:
    with quiet():
        values = np.array([value for value in every(before) if not np.isnan(value)])
    found, loss = cast_array(values, after)
    expected = [nearest(float(value), after) for value in values]
    assert found.astype(np.float64).tolist() == expected
    assert loss.rounded == sum(a != float(b) for a, b in zip(expected, values, strict=True))
    assert loss.overflowed == sum(isinf(a) and not isinf(b) for a, b in zip(expected, values.tolist(), strict=True))


def halfway(name: str) -> st.SearchStrategy[float]:
    """Values around the middle between two neighbours of a type of 16 bits, where a second rounding would be wrong."""
    known = FINITE[name]
    middles = st.integers(0, len(known) - 2).map(lambda at: (known[at] + known[at + 1]) / 2)
    return st.tuples(middles, st.sampled_from((-2, -1, 0, 1, 2)), st.sampled_from((1.0, -1.0))).map(
        lambda each: each[2] * (each[0] + each[1] * float(np.spacing(each[0])))
    )


@examples(3000)
@given(st.data(), st.sampled_from(["Float64", "Float32"]), st.sampled_from([*FINITE]))
def test_values_are_rounded_once_to_the_nearest_even(data: st.DataObject, before: str, after: str) -> None:
    value = data.draw(st.floats(allow_nan=False) | st.floats(width=32, allow_nan=False) | halfway(after))
    with quiet():
        values = np.array([value], TYPES[before])
    found, loss = cast_array(values, after)
    expected = nearest(float(values[0]), after)
    assert struct.pack("d", float(found[0])) == struct.pack("d", -0.0 if not expected and np.signbit(values[0]) else expected)
    assert loss == Loss(int(expected != values[0]), int(isinf(expected) and not isinf(values[0])))


@examples(500)
@given(st.floats())
def test_float64_is_rounded_to_float32(value: float) -> None:
    found, loss = cast_array(np.array([value]), "Float32")
    with quiet():
        expected = float(np.float32(value))
    assert isnan(found[0]) if isnan(value) else found[0] == expected
    assert loss == Loss(int(expected != value and not isnan(value)), int(isinf(expected) and not isinf(value)))


NANS = [("Float64", 0x7FF0000000000001), ("Float64", 0xFFF8000000000000), ("Float32", 0x7F800001), ("Float32", 0xFFC12345)]


@pytest.mark.parametrize(("before", "bits"), [*NANS, ("Float16", 0x7C01), ("Float16", 0xFE55), ("BFloat16", 0xFF81)])
@pytest.mark.parametrize("after", TYPES)
def test_a_nan_keeps_its_sign_and_becomes_quiet(before: str, bits: int, after: str) -> None:
    if after == before:
        return
    values = np.array([bits], f"u{np.dtype(TYPES[before]).itemsize}").view(TYPES[before])
    found, loss = cast_array(np.repeat(values, 3), after)
    assert loss == Loss()
    mantissa = {"Float64": 52, "Float32": 23, "Float16": 10, "BFloat16": 7}[after]
    (result,) = set(found.view(f"u{found.itemsize}").tolist())
    assert np.isnan(found).all()
    assert np.signbit(found[0]) == np.signbit(values[0])
    assert result >> (mantissa - 1) & 1


def as_cast(tensors: rawfiles.Tensors, to: str) -> rawfiles.Tensors:
    """Tensors of which those of floating-point types are cast by ml_dtypes."""
    with quiet():
        return {n: a.astype(TYPES[to]) if a.dtype in [*TYPES.values()] else a for n, a in tensors.items()}


def equal_values(found: rawfiles.Tensors, expected: rawfiles.Tensors) -> bool:
    """Whether tensors have the same types, shapes and values. NaNs are equal."""
    with quiet():
        return found.keys() == expected.keys() and all(
            (found[n].dtype, found[n].shape) == (a.dtype, a.shape)
            and np.array_equal(found[n].astype(np.complex128), a.astype(np.complex128), equal_nan=True)
            if a.dtype in [*TYPES.values()]
            else rawfiles.equal(found[n], a)
            for n, a in expected.items()
        )


@examples(300)
@given(models.models(), st.sampled_from(["ckpt", "safetensors"]), st.sampled_from([*TYPES]), st.sampled_from([1, 1, 1, 12]))
def test_every_rank_gets_its_slices_in_the_new_type(model: models.Model, kind: str, to: Any, times: int) -> None:
    model = model.repeated(times)
    made, _ = task(model, kind, "safetensors", cast=(CastRule("*", to),))
    for rank in range(min(4, model.target_ranks)):
        found = rawfiles.read("safetensors", written(made, rank))
        assert equal_values(found, as_cast(model.target(rank), to))


@pytest.mark.parametrize(("before", "after"), [("Float64", "BFloat16"), ("Float32", "BFloat16"), ("BFloat16", "Float64")])
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_tensors_of_several_tiles(tmp_path: Path, before: str, after: Any, kind: str) -> None:
    made = disk.example(rows=600, columns=1200)
    made = replace(made, tensors=tuple(replace(tensor, dtype=before) for tensor in made.tensors))
    checkpoint = disk.write(tmp_path / "made", made, kind)
    word = after.lower()
    assert disk.run(checkpoint, tmp_path / "t", "--cast", f"*={word}", "--verification", "full", "--crc") == 0
    for rank in range(6):
        (path,) = (tmp_path / "t" / f"rank_{rank}").iterdir()
        assert equal_values(rawfiles.read(kind, path.read_bytes()), as_cast(made.target(rank), after))


@pytest.fixture
def single(tmp_path: Path) -> str:
    """A file with values that no shorter type has, and values that are too large for one."""
    path = tmp_path / "model.safetensors"
    values = np.array([1.0, 1 / 3, 1e6, -1e39, np.inf, np.nan])
    with quiet():
        halves = values.astype(np.float16)
    tensors = {"net.w": values, "net.h": halves, "adam.m": values, "step": np.array(3, np.int64)}
    path.write_bytes(rawfiles.safetensors(tensors))
    return str(path)


def test_the_manifest_and_notes_name_what_is_lost(single: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    casts = ["--cast", "net.*=float16", "--cast", "adam.*=float32", "--cast", "step=float32", "--verification", "full"]
    casts += ["--cast", "net.h=float32"]  # which the first rule matches
    arguments = ["--source", single, "--target", str(tmp_path / "t"), *casts]
    assert main(["transform", *arguments]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert notes == [
        "note: casts round the values of 2 parameters: adam.m, net.w",
        "note: the cast of step applies to no floating-point parameter",
        "note: the cast of net.h applies to no floating-point parameter",
        "note: casts changed 5 elements: adam.m (2), net.w (3)",
        "note: casts made finite elements infinite, as they are too large for the new type: adam.m (1), net.w (2)",
    ]
    document = json.loads((tmp_path / "t" / "reshard-manifest.json").read_text())
    types = {name: (p["dtype"], p["sourceDtype"]) for name, p in disk.parameters_of(document).items()}
    assert types == {
        "net.w": ("Float16", "Float64"),
        "net.h": ("Float16", None),
        "adam.m": ("Float32", "Float64"),
        "step": ("Int64", None),
    }
    (record,) = document["files"]
    assert (record["rounded"], record["overflowed"]) == (5, 3)  # 1/3 and -1e39 in both, 1e6 in float16 only
    assert lost(tmp_path / "t") == {"net.w": (3, 2), "net.h": (None, None), "adam.m": (2, 1), "step": (None, None)}
    assert document["options"]["cast"][0] == {"pattern": "net.*", "to": "Float16"}
    assert main(["transform", *arguments]) == 0
    shown = capsys.readouterr()
    assert "nothing to do" in shown.out
    assert notes[2] in shown.err
    assert notes[3] in shown.err
    assert main(["inspect", str(tmp_path / "t")]) == 0
    assert re.search(r"changed by casts +5 elements of 2 parameters", capsys.readouterr().out)
    assert main(["verify", str(tmp_path / "t")]) == 0
    assert main(["transform", *arguments[:4], "--cast", "net.*=bfloat16"]) == 78


def test_the_first_matching_rule_applies_to_names_in_the_source(single: str) -> None:
    rules = (CastRule("net.h", "Float32"), CastRule("*", "BFloat16"))
    found = reshard.load(single, cast=rules, rename=(reshard.RenameRule("net.h", name="adam.m"),), exclude=("net.h",))
    assert {name: str(array.dtype) for name, array in found.items()} == {
        "net.w": "bfloat16",
        "net.h": "bfloat16",
        "step": "int64",
    }
    assert found["net.w"][3] == -np.inf


def lost(target: Path) -> dict[str, tuple[int | None, int | None]]:
    """The changes of casts that a manifest states for each parameter."""
    document = json.loads((target / "reshard-manifest.json").read_text())
    return {name: (p.get("rounded"), p.get("overflowed")) for name, p in disk.parameters_of(document).items()}


def counted(model: models.Model, to: str) -> dict[str, tuple[int | None, int | None]]:
    """The changes in the files of all target ranks, counted by ml_dtypes."""
    found: dict[str, tuple[int | None, int | None]] = {}
    for rank in range(model.target_ranks):
        before, after = model.target(rank), as_cast(model.target(rank), to)
        for name, values in before.items():
            if values.dtype == after[name].dtype:
                found[name] = None, None
                continue
            with quiet():
                new, old = after[name].astype(np.float64), values.astype(np.float64)
                rounded = np.count_nonzero((new != old) & ~np.isnan(old))
                overflowed = np.count_nonzero(np.isinf(new) & np.isfinite(old))
            known = found.get(name, (0, 0))
            found[name] = known[0] + rounded, known[1] + overflowed
    return found


CASTS = ("--cast", "*=bfloat16")


@pytest.mark.parametrize(
    "runs",
    [[()], [("--only-ranks", "1,3"), ("--only-ranks", "0-3"), ()]],
    ids=["all ranks", "one after another"],
)
def test_each_parameter_states_the_changes_in_all_files(made: disk.Checkpoint, target: Path, runs: list[tuple[str, ...]]) -> None:
    for more in runs:
        assert disk.run(made, target, *CASTS, *more) == 0
    expected = counted(made.model, "BFloat16")
    assert sum(rounded or 0 for rounded, _ in expected.values()) > 100
    assert lost(target) == expected
    files = json.loads((target / "reshard-manifest.json").read_text())["files"]
    assert sum(file["rounded"] for file in files) == sum(rounded or 0 for rounded, _ in expected.values())


def test_a_file_that_is_written_again_is_counted_once(made: disk.Checkpoint, target: Path) -> None:
    assert disk.run(made, target, *CASTS) == 0
    disk.rank_file(target, 2).unlink()
    assert disk.run(made, target, *CASTS) == 0
    assert lost(target) == counted(made.model, "BFloat16")


def test_changes_are_unknown_after_a_commit_has_left_out_ranks(made: disk.Checkpoint, target: Path) -> None:
    assert disk.run(made, target, *CASTS) == 0
    disk.rank_file(target, 0).unlink()
    disk.rank_file(target, 3).unlink()
    assert disk.run(made, target, *CASTS, "--only-ranks", "0") == 66  # rank 3 is missing
    assert main(["commit", str(target), "--only-ranks", "0-2"]) == 0
    assert {*lost(target).values()} == {(None, None)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("target_stages", [1, 2])
def test_stages_state_the_changes_in_all_of_them(
    tmp_path: Path, target: Path, order: tuple[int, ...], target_stages: int
) -> None:
    pipeline = pipelines.write(tmp_path / "made", pipelines.pipeline(target_stages=target_stages))
    for stage in order:
        assert pipeline.run(stage, target, *CASTS) == 0
    expected = counted(pipeline.made.model, "BFloat16")
    assert sum(rounded or 0 for rounded, _ in expected.values()) > 10
    found = lost(target)
    assert {name: found[name] for name in expected if expected[name] != (None, None)} == {
        name: each for name, each in expected.items() if each != (None, None)
    }
    next((target / "rank_0").iterdir()).unlink()
    for stage in order:
        assert pipeline.run(stage, target, *CASTS) == 0
    assert lost(target) == found


def test_the_changes_of_100_000_parameters_fit_into_the_record_of_a_rank(tmp_path: Path) -> None:
    state = TargetFolder(open_store(str(tmp_path)), None).task("0" * 64)
    names = [f"model.layers.{number}.mlp.experts.gate_proj.weight" for number in range(100_000)]
    record = FileRecord(3, "rank_3/x.ckpt", 1, "xxh3-128:0", 1, 1, 0, "Full")
    state.record(record, CastLosses.of(dict.fromkeys(range(100_000), Loss(1 << 40, 2))))
    state.record(FileRecord(4, "rank_4/x.ckpt", 1, "xxh3-128:0", 1, 1, 0, "Full"), CastLosses.of({7: Loss(1, 0)}))
    sums = LossSums(names)
    found = state.records(None, add=lambda record: sums.add(record.file.rank, record.losses))
    assert found == {3: record, 4: FileRecord(4, "rank_4/x.ckpt", 1, "xxh3-128:0", 1, 1, 0, "Full")} == state.records(None)
    total = sums.by_name()
    assert (len(total), total[names[7]], total[names[8]]) == (100_000, Loss((1 << 40) + 1, 2), Loss(1 << 40, 2))


@pytest.mark.parametrize("level", ["Sample", "Full"])
def test_a_written_file_is_compared_with_the_cast_source(
    single: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Any
) -> None:
    def truncated(content: memoryview, before: str, into: memoryview, after: str) -> Loss:
        found = cast(content, before, into, after)
        into[:] = bytes(byte & ~1 if not at % 2 else byte for at, byte in enumerate(into))
        return found

    monkeypatch.setattr("reshard.engine.execute.cast", truncated)
    options = Options(cast=(CastRule("net.w", "BFloat16"),), verification=level)
    with pytest.raises(BugError, match=r"VerificationFailed.*net\.w differs"):
        reshard.transform_checkpoint(Request(single, str(tmp_path / "t"), options=options))


@pytest.mark.parametrize("output", ["unified", "same", "index", "stage"])
def test_every_output_casts(tmp_path: Path, output: str) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    sides = [] if output == "same" else ["--source-strategy", str(made.source_strategy)]
    target = tmp_path / "t"
    arguments = ["--source", str(made.source), *sides, "--target", str(target), "--output", output, "--cast", "w=float16"]
    arguments += ["--stages", "1"] if output == "stage" else []
    assert main(["transform", *arguments]) == 0
    document = json.loads((target / "reshard-manifest.json").read_text())
    assert {name: p["dtype"] for name, p in disk.parameters_of(document).items()} == {
        "w": "Float16",
        "m": "BFloat16",
        "b": "Int8",
        "step": "Int32",
    }
    if output == "index":
        assert reshard.load(str(made.source), index=str(target))["w"].dtype == np.float16
    else:
        assert main(["verify", str(target)]) == 0
        assert reshard.load(str(target), allow_single_rank=True)["w"].dtype == np.float16 if output == "unified" else True


@pytest.mark.parametrize("text", ["bfloat16", "w=int8", "w=", "=float32", "w=BFloat16"])
def test_invalid_casts(single: str, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transform", "--source", single, "--target", str(tmp_path / "t"), "--cast", text]) == 2
    assert "InvalidCast" in capsys.readouterr().err
    with pytest.raises(UsageError, match="InvalidCast"):
        CastRule("w", "Int8")
