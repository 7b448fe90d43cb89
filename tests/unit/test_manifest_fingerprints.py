"""Fingerprints in manifests: those of the whole parameters, however they were written, and their comparison with the source."""

from __future__ import annotations

import json
import os
import tracemalloc
from typing import TYPE_CHECKING, Any

import disk
import models
import msgspec
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import assume, given

from reshard.checkpoint.manifest import (
    SCHEMA,
    KindRecord,
    LayoutRecord,
    Manifest,
    ParameterRecord,
    ParameterTable,
    SourceRecord,
    indented,
)
from reshard.cli import main
from reshard.engine.file_fingerprints import FileFingerprints
from reshard.engine.gather import Gatherer
from reshard.errors import DataError
from reshard.layout.box import Box
from reshard.layout.fingerprint import Fingerprints
from reshard.storage import open_store
from reshard.target.fingerprint_sums import FingerprintSums, SliceFingerprints
from reshard.target.folder import TargetFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def of(content: np.ndarray) -> str:
    """The fingerprint of a whole tensor, as in a manifest."""
    box = Box.whole(content.shape)
    return f"{Fingerprints().of_box(memoryview(content.tobytes()), content.shape, box, content.itemsize):016x}"


def stated(target: Path) -> dict[str, str | None]:
    """The fingerprints in a manifest, by parameter."""
    manifest = json.loads((target / "reshard-manifest.json").read_text())
    return {record["name"]: record.get("fingerprint") for record in manifest["parameters"]["records"]}


def expected(model: models.Model) -> dict[str, str]:
    return {tensor.name: of(model.whole(tensor)) for tensor in model.tensors}


@pytest.mark.parametrize(
    "options",
    [
        ("--workers", "1"),
        ("--workers", "3"),
        ("--format", "safetensors"),
        ("--output", "unified"),
        ("--output", "unified", "--max-file-size-bytes", "2000"),
        ("--format", "torch-dcp"),
        ("--format", "huggingface"),
        ("--crc",),
        ("--format", "safetensors", "--crc"),
        ("--link-replicas", "hard-link"),
        ("--remove-redundancy",),
    ],
    ids=" ".join,
)
def test_manifest_states_those_of_whole_parameters(made: disk.Checkpoint, target: Path, options: tuple[str, ...]) -> None:
    arguments = [str(each) for each in made.arguments(target, *options)]
    if "unified" in options or "huggingface" in options:
        at = arguments.index("--target-strategy")
        del arguments[at : at + 2]
    assert main(arguments) == 0
    assert stated(target) == expected(made.model)


@examples(100)
@given(models.models())
def test_manifest_of_any_model(tmp_path_factory: pytest.TempPathFactory, model: models.Model) -> None:
    for stage in range(model.source_stages):
        assume(any(tensor.source is not None and tensor.source_stage == stage for tensor in model.tensors))
    for stage in range(model.target_stages):
        assume(any(tensor.target is not None and tensor.target_stage == stage for tensor in model.tensors))
    folder = tmp_path_factory.mktemp("any")
    made = disk.write(folder, model)
    target = folder / "target"
    assert disk.run(made, target, "--allow-equal-slices") == 0
    assert stated(target) == expected(model)


def test_parameters_of_several_parts_add_up(tmp_path: Path, target: Path) -> None:
    made = disk.write(tmp_path / "large", disk.example(rows=4800, columns=480))
    assert disk.run(made, target, "--workers", "1") == 0
    assert stated(target) == expected(made.model)


def test_those_of_casts_are_of_the_written_elements(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert disk.run(made, target, "--cast", "m=float32", "--cast", "w=bfloat16") == 0
    found, original = stated(target), expected(made.model)
    assert (found["b"], found["step"]) == (original["b"], original["step"])
    assert not {found["w"], found["m"]} & {None, original["w"], original["m"]}
    assert further(target, tmp_path / "whole", "--format", "safetensors") == 0  # the source states the fingerprints
    tensors = rawfiles.read("safetensors", (tmp_path / "whole" / "rank_0" / "checkpoint_0.safetensors").read_bytes())
    assert {name: of(tensors[name]) for name in found} == found == stated(tmp_path / "whole")


@pytest.mark.parametrize("ranks", [(), ("--only-ranks", "0")], ids=["all", "one"])
def test_slices_without_layout_have_none(made: disk.Checkpoint, target: Path, ranks: tuple[str, ...]) -> None:
    assert main(["transform", "--source", str(made.source), "--output", "same", "--target", str(target), *ranks]) == 0
    assert set(stated(target).values()) == {None}


def test_those_of_encrypted_files_are_of_the_plaintext(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(os.urandom(32))
    assert disk.run(made, target, "--encryption-key-file", str(tmp_path / "key")) == 0
    assert stated(target) == expected(made.model)


def further(source: Path, target: Path, *options: str) -> int:
    """Transform a target again, to one rank unless `options` say otherwise."""
    return main(["transform", "--source", str(source), "--target", str(target), *options])


def test_a_chain_of_transforms_keeps_them(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert disk.run(made, target) == 0
    assert further(target, tmp_path / "one") == 0
    back = ("--target-strategy", str(made.source_strategy), "--format", "safetensors")
    assert further(tmp_path / "one", tmp_path / "four", *back) == 0
    assert further(tmp_path / "four", tmp_path / "dcp", "--format", "torch-dcp") == 0
    assert further(tmp_path / "dcp", tmp_path / "unified", "--output", "unified") == 0
    for name in ("one", "four", "dcp", "unified"):
        assert stated(tmp_path / name) == expected(made.model)


@pytest.mark.parametrize("source_format", ["ckpt", "torch-dcp"])
def test_a_wrong_move_is_found_without_verification(
    source_format: str,
    made: disk.Checkpoint,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    monkeypatch.setattr("reshard.plan.runs.SMALL_BYTES", 0)
    monkeypatch.setattr("reshard.plan.rank.SMALL_BYTES", 0)
    assert disk.run(made, target, "--format", source_format) == 0
    usual = Gatherer.read

    def read(self: Gatherer, rank: int, entry: Any, box: Any, into: np.ndarray) -> None:
        usual(self, rank, entry, box, into)
        if entry.name == "w" and into.shape[0] > 1:
            into[[0, 1]] = into[[1, 0]]  # two rows are exchanged

    monkeypatch.setattr(Gatherer, "read", read)
    arguments = ("transform", "--source", str(target), "--target", str(tmp_path / "next"), "--verification", "none")
    assert " w " in refused(65, "FingerprintsDiffer", *arguments)
    assert not (tmp_path / "next" / "reshard-manifest.json").exists()


def test_a_source_whose_manifest_has_changed_is_refused_before_anything_is_written(
    made: disk.Checkpoint, target: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert disk.run(made, target, "--format", "safetensors") == 0
    manifest = target / "reshard-manifest.json"
    manifest.write_text(manifest.read_text().replace(expected(made.model)["m"], "0" * 16))
    refused(65, "ContentChanged", "transform", "--source", str(target), "--target", str(tmp_path / "next"))
    assert not [path for path in (tmp_path / "next").rglob("*") if path.suffix in {".safetensors", ".ckpt"}]


@pytest.mark.parametrize(
    ("target_format", "index"),
    [("safetensors", "param_name_map.json"), ("huggingface", "model.safetensors.index.json"), ("huggingface", "")],
)
def test_whole_files_that_have_changed_can_be_read_by_their_index(
    target_format: str, index: str, made: disk.Checkpoint, target: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    options = ("--output", "unified", *(("--max-file-size-bytes", "2000") if index else ()), "--format", target_format)
    source = ("--source", str(made.source), "--source-strategy", str(made.source_strategy))
    assert main(["transform", *source, "--target", str(target), *options]) == 0
    path = min(target.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    named = index or path.name
    assert f"use {named} as the source" in refused(65, "SourceChanged", "transform", "--source", str(target), "--target", "x")
    assert further(target / named, tmp_path / "next") == 0
    assert stated(tmp_path / "next") != expected(made.model)


def test_another_selection_of_the_same_files_is_compared_anew(
    made: disk.Checkpoint, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    """The selection is not a part of the task's identity, but decides whether the manifest describes the files."""
    assert disk.run(made, target) == 0
    assert further(target, tmp_path / "unified", "--output", "unified") == 0
    monkeypatch.setattr("reshard.transform.start.expected_fingerprints", lambda _: dict.fromkeys(expected(made.model), "0" * 16))
    source = tmp_path / "unified" / "param_name_map.json"
    refused(65, "FingerprintsDiffer", "transform", "--source", str(source), "--target", str(tmp_path / "next"))
    monkeypatch.undo()
    assert further(source, tmp_path / "next", "--files", "*") == 0


def test_names_of_several_tensors_are_not_compared(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert disk.run(made, target) == 0
    folder = TargetFolder(open_store(str(target)), None)
    manifest = folder.manifest()
    assert manifest is not None
    table = manifest.parameters
    wrong = tuple(msgspec.structs.replace(record, fingerprint="0" * 16) for record in table.records)
    folder.write_manifest(msgspec.structs.replace(manifest, parameters=ParameterTable(table.kinds, table.records + wrong)))
    assert further(target, tmp_path / "next") == 0
    assert stated(tmp_path / "next") == expected(made.model)


@pytest.mark.parametrize("count", [0, 1, 4096, 4097])
def test_a_manifest_is_indented_in_parts(count: int) -> None:
    records = tuple(ParameterRecord(f'"records": [] {number}', 0, fingerprint="0" * 16) for number in range(count))
    kind = KindRecord("Float32", (8,), "cut", None, LayoutRecord((1,), ((),)))
    manifest = Manifest(
        schema=SCHEMA,
        version="1",
        digest="d",
        source=SourceRecord("/source", "ckpt", 1, 8),
        format="ckpt",
        ranks="0",
        target_ranks=1,
        options={"rename": ['"records": []']},
        bytes_needed=8,
        bytes_distinct=8,
        files=(),
        parameters=ParameterTable((kind,), records),
    )
    assert b"".join(indented(manifest)) == msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


@pytest.fixture
def other_copies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these target ranks get other elements of all parameters, as their fingerprints show."""
    usual = FileFingerprints.records

    def change(*ranks: int) -> None:
        def records(self: FileFingerprints) -> tuple[SliceFingerprints, ...]:
            found = usual(self)
            if self._plan.rank not in ranks:
                return found
            return tuple(msgspec.structs.replace(each, sums=bytes(len(each.sums))) for each in found)

        monkeypatch.setattr(FileFingerprints, "records", records)

    return change


def test_ranks_with_different_copies_of_a_slice_are_refused(
    made: disk.Checkpoint, target: Path, other_copies: Callable[..., None], refused: Callable[..., str]
) -> None:
    other_copies(5)
    arguments = made.arguments(target, "--workers", "1")
    assert "target ranks" in refused(65, "ReplicasDiffer", *arguments)


def test_ranks_that_are_added_with_different_copies_are_refused(
    made: disk.Checkpoint, target: Path, other_copies: Callable[..., None], refused: Callable[..., str]
) -> None:
    assert disk.run(made, target, "--only-ranks", "0") == 0
    manifest = (target / "reshard-manifest.json").read_bytes()
    other_copies(1, 2, 3, 4, 5)
    assert "target ranks 0 and 1-5 got" in refused(65, "ReplicasDiffer", *made.arguments(target, "--workers", "1"))
    assert (target / "reshard-manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("changed", [(5,), (1, 2, 3, 4, 5)])
def test_added_ranks_with_different_copies_that_are_accepted_have_none(
    made: disk.Checkpoint, target: Path, other_copies: Callable[..., None], changed: tuple[int, ...]
) -> None:
    assert disk.run(made, target, "--only-ranks", "0", "--allow-inconsistent", "*") == 0
    assert stated(target)["step"] == expected(made.model)["step"]
    other_copies(*changed)
    assert disk.run(made, target, "--allow-inconsistent", "*") == 0
    assert stated(target)["step"] is None


def test_a_file_that_is_written_again_changes_none(made: disk.Checkpoint, target: Path) -> None:
    assert disk.run(made, target) == 0
    disk.rank_file(target, 3).unlink()
    assert disk.run(made, target) == 0
    assert stated(target) == expected(made.model)


def test_ranks_that_are_written_later_complete_them(made: disk.Checkpoint, target: Path) -> None:
    assert disk.run(made, target, "--only-ranks", "0-2") == 0
    some = stated(target)
    assert some == {"w": None, "m": None, "b": expected(made.model)["b"], "step": expected(made.model)["step"]}
    assert disk.run(made, target) == 0
    # The fingerprints of the slices in the first files are not known any more.
    assert stated(target) == some


def test_an_interrupted_transform_keeps_those_of_finished_ranks(made: disk.Checkpoint, target: Path) -> None:
    assert disk.run(made, target, "--only-ranks", "0-2", "--no-commit") == 0
    assert not (target / "reshard-manifest.json").exists()
    assert disk.run(made, target) == 0
    assert stated(target) == expected(made.model)


Slices = tuple[int, tuple[int, ...], tuple[int, ...], dict[int, int]]


def sums(*slices: Slices) -> FingerprintSums:
    """Sums of slices of two tensors of shape (4, 4): rank, start, lengths, and fingerprints by parameter."""
    files: dict[int, list[SliceFingerprints]] = {}
    found = FingerprintSums([(4, 4)], (0, 0), files.__getitem__)
    for rank, start, lengths, values in slices:
        arrays = np.array([*values]), np.array([*values.values()], np.uint64)
        files[rank] = [SliceFingerprints.of(Box(start, lengths), *arrays)]
        found.add(rank, files[rank])
    return found


def whole(found: FingerprintSums) -> dict[int, int]:
    values, valid = found.whole()
    return {number: int(values[number]) for number in np.flatnonzero(valid).tolist()}


def test_sums_are_those_of_exactly_one_copy_of_each_slice() -> None:
    found = sums(
        (0, (0, 0), (2, 4), {0: 1, 1: 10}),
        (1, (2, 0), (2, 4), {0: 2, 1: (1 << 64) - 3}),
        (2, (0, 0), (2, 4), {0: 1, 1: 10}),
    )
    assert (whole(found), found.conflicts) == ({0: 3, 1: 7}, {})


def test_files_may_group_parameters_in_different_ways() -> None:
    first = (0, (0, 0), (2, 4), {0: 1, 1: 2})
    found = sums(first, (1, (2, 0), (2, 4), {1: 3}), (2, (2, 0), (2, 4), {0: 4}), (3, (2, 0), (2, 4), {0: 4, 1: 3}))
    assert (whole(found), found.conflicts) == ({0: 5, 1: 5}, {})
    found = sums(first, (1, (2, 0), (2, 4), {1: 3}), (2, (2, 0), (2, 4), {0: 4, 1: 6}), (3, (2, 0), (2, 4), {0: 7}))
    assert (whole(found), found.conflicts) == ({}, {0: (2, 3), 1: (1, 2)})


@pytest.mark.parametrize("second", [((1, 0), (3, 4)), ((3, 0), (1, 4)), ((1, 0), (2, 4))])
def test_slices_that_overlap_or_leave_gaps_have_no_sum(second: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    assert whole(sums((0, (0, 0), (2, 4), {0: 1}), (1, *second, {0: 2}))) == {}


def test_copies_that_differ_have_no_sum() -> None:
    found = sums((0, (0, 0), (4, 4), {0: 1, 1: 2}), (7, (0, 0), (4, 4), {0: 1, 1: 3}))
    assert (whole(found), found.conflicts) == ({0: 1}, {1: (0, 7)})


def test_parameters_are_recorded_in_ascending_order() -> None:
    box, numbers, values = Box((0,), (1,)), np.array([1, 0]), np.array([5, 6], np.uint64)
    assert SliceFingerprints.of(box, numbers, values) == SliceFingerprints.of(box, numbers[::-1], values[::-1])


def test_copies_are_compared_once_and_each_record_is_read_again_once() -> None:
    """Each rank has two boxes of both parameters, in the same file."""
    again: list[int] = []
    files = {
        rank: [
            SliceFingerprints.of(Box((row, 0), (2, 4)), np.arange(2), np.array([5, rank if row else 5], np.uint64))
            for row in (0, 2)
        ]
        for rank in range(5)
    }

    def read(rank: int) -> list[SliceFingerprints]:
        again.append(rank)
        return files[rank]

    found = FingerprintSums([(4, 4)], (0, 0), read)
    for rank, records in files.items():
        found.add(rank, records)
    assert (whole(found), found.conflicts, again) == ({0: 10}, {1: (0, 1)}, [0])


def test_parameters_of_kinds_with_the_same_shape_are_in_one_record(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    """Metadata locates the shards of each parameter of a distributed checkpoint, which is therefore a kind of its own."""
    assert disk.run(made, tmp_path / "dcp", "--format", "torch-dcp") == 0
    assert further(tmp_path / "dcp", target, "--no-commit") == 0
    (record,) = target.glob(".reshard/*/records/rank_0.json")
    shapes = [tuple(each["lengths"]) for each in json.loads(record.read_text())["fingerprints"]]
    assert len(shapes) == len({*shapes}) < len(made.model.tensors)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,)])
def test_parameters_without_elements_have_none(shape: tuple[int, ...]) -> None:
    found = FingerprintSums([shape, ()], (0, 1), lambda _: ())
    box = Box.whole(shape)
    assert whole(found) == {}
    found.add(0, [SliceFingerprints.of(box, np.array([0]), np.zeros(1, np.uint64))])
    found.add(0, [SliceFingerprints.of(Box((), ()), np.array([1]), np.ones(1, np.uint64))])
    assert whole(found) == {1: 1}


def test_a_canceled_commit_adds_no_fingerprints() -> None:
    def cancel() -> None:
        raise InterruptedError

    found = FingerprintSums([(4, 4)], (0,), lambda _: (), cancel)
    with pytest.raises(InterruptedError):
        found.add(0, [SliceFingerprints.of(Box((0, 0), (4, 4)), np.array([0]), np.ones(1, np.uint64))])
    assert whole(found) == {}


@pytest.mark.parametrize(
    ("start", "lengths", "numbers", "what"),
    [
        ((0, 0), (4, 4), [3], "parameter 3 of 3"),
        ((0, 0), (4, 4), [1, 0], "ascending"),
        ((0, 0), (4, 4), [1, 1], "ascending"),
        ((0, 0), (4, 4), [0, 2], "box of parameter 0"),  # of another shape
        ((0,), (4,), [0], "box of parameter 0"),
        ((1, 0), (4, 4), [0], "box of parameter 0"),
    ],
)
def test_damaged_fingerprints_are_refused(
    start: tuple[int, ...], lengths: tuple[int, ...], numbers: list[int], what: str
) -> None:
    found = FingerprintSums([(4, 4), (4,)], (0, 0, 1), lambda _: ())
    record = SliceFingerprints(start, lengths, np.array(numbers, "<u4").tobytes(), bytes(8 * len(numbers)))
    with pytest.raises(DataError, match=rf"DocumentInvalid.*{what}.*rank 7|rank 7.*{what}"):
        found.add(7, [record])


def test_damaged_records_of_fingerprints_are_refused() -> None:
    record = msgspec.json.encode(SliceFingerprints((0,), (1,), bytes(4), bytes(8)))
    changes = (b"AAAAAAAAAAA", b"AAAAAAA"), (b"[0]", b"[-1]"), (b"[0]", b"[0,0]")
    for damaged in (record.replace(*change) for change in changes):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(damaged, type=SliceFingerprints)


def test_memory_does_not_grow_with_the_fingerprints_of_slices() -> None:
    names, ranks, rng = 1000, 512, np.random.default_rng(0)

    def slices(rank: int) -> list[SliceFingerprints]:
        return [
            SliceFingerprints.of(Box((rank, 0), (1, 4)), np.arange(names), rng.integers(1 << 63, size=names).astype(np.uint64))
        ]

    tracemalloc.start()
    try:
        found = FingerprintSums([(ranks, 4)], (0,) * names, slices)
        for rank in range(ranks):
            found.add(rank, slices(rank))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.whole()[1].all()
    assert peak < (320 + names // 7) * ranks + 128 * names
