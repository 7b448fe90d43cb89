"""Fingerprints in manifests: those of the whole parameters, however they were written, and their comparison with the source."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import disk
import models
import msgspec
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import assume, given

from reshard.checkpoint.manifest import ParameterTable
from reshard.cli import main
from reshard.engine.fingerprints import FileFingerprints
from reshard.engine.gather import Gatherer
from reshard.layout.box import Box
from reshard.layout.fingerprint import Fingerprints
from reshard.storage import open_store
from reshard.target.fingerprints import Conflict, FingerprintSums, SliceFingerprints, text_of
from reshard.target.folder import TargetFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def of(content: np.ndarray) -> str:
    """The fingerprint of a whole tensor, as in a manifest."""
    box = Box.whole(content.shape)
    return text_of(Fingerprints().of_box(memoryview(content.tobytes()), content.shape, box, content.itemsize))


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


def test_slices_without_layout_have_none(made: disk.Checkpoint, target: Path) -> None:
    assert main(["transform", "--source", str(made.source), "--output", "same", "--target", str(target)]) == 0
    assert stated(target) == {"w": None, "m": None, "b": None, "step": expected(made.model)["step"]}


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


def test_a_wrong_move_is_found_without_verification(
    made: disk.Checkpoint, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr("reshard.plan.runs.SMALL_BYTES", 0)
    monkeypatch.setattr("reshard.plan.rank.SMALL_BYTES", 0)
    assert disk.run(made, target) == 0
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


def sums(*slices: tuple[int, tuple[int, ...], tuple[int, ...], dict[str, int]]) -> FingerprintSums:
    """Sums of slices of tensors of shape (4, 4): rank, start, lengths, and fingerprints by name."""
    found = FingerprintSums()
    for rank, start, lengths, values in slices:
        found.add(rank, [SliceFingerprints.of((4, 4), Box(start, lengths), values, np.array([*values.values()], np.uint64))])
    return found


def test_sums_are_those_of_exactly_one_copy_of_each_slice() -> None:
    found = sums(
        (0, (0, 0), (2, 4), {"a": 1, "b": 10}),
        (1, (2, 0), (2, 4), {"a": 2, "b": (1 << 64) - 3}),
        (2, (0, 0), (2, 4), {"a": 1, "b": 10}),
    )
    assert (found.whole(), found.conflicts) == ({"a": 3, "b": 7}, [])


def test_files_may_group_parameters_in_different_ways() -> None:
    found = sums((0, (0, 0), (2, 4), {"a": 1, "b": 2}), (1, (2, 0), (2, 4), {"b": 3}), (2, (2, 0), (2, 4), {"a": 4}))
    assert found.whole() == {"a": 5, "b": 5}


@pytest.mark.parametrize("second", [((1, 0), (3, 4)), ((3, 0), (1, 4)), ((1, 0), (2, 4))])
def test_slices_that_overlap_or_leave_gaps_have_no_sum(second: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    assert sums((0, (0, 0), (2, 4), {"a": 1}), (1, *second, {"a": 2})).whole() == {}


def test_copies_that_differ_have_no_sum() -> None:
    found = sums((0, (0, 0), (4, 4), {"a": 1, "b": 2}), (7, (0, 0), (4, 4), {"a": 1, "b": 3}))
    assert (found.whole(), found.conflicts) == ({"a": 1}, [Conflict("b", (0, 7))])
