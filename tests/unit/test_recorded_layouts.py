"""Sources that Reshard wrote, without a source strategy: their manifests state the layouts, and the files must match them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disk
import layout_example
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut
from disk import run
from safetensors.numpy import load_file

import reshard
from reshard.cli import main
from reshard.errors import DataError
from reshard.mindspore import transform_checkpoints
from reshard.spec.request import Options, Request
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    import thin_s3

CORPUS = Path(__file__).parents[1] / "conformance" / "corpus"
MANIFEST = "reshard-manifest.json"


def transform(source: Path, target: Path, *more: object) -> int:
    return main(["transform", "--source", str(source), "--target", str(target), *map(str, more)])


def digest(target: Path) -> str:
    return str(json.loads((target / MANIFEST).read_bytes())["digest"])


def ranks(folder: Path) -> dict[str, bytes]:
    return disk.contents(folder)


def edit(target: Path, *keys: str | int, value: Any) -> None:
    """Change a value in a manifest."""
    content = json.loads((target / MANIFEST).read_bytes())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (target / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize("more", [(), ("--remove-redundancy",), ("--output", "unified")])
def test_a_target_is_read_as_with_its_strategy(
    more: tuple[str, ...], made: disk.Checkpoint, target: Path, tmp_path: Path
) -> None:
    assert run(made, target) == 0
    sides = ["--target-strategy", made.source_strategy] if "unified" not in more else []
    given, found = tmp_path / "given", tmp_path / "found"
    assert transform(target, given, "--source-strategy", made.target_strategy, *sides, *more) == 0
    assert transform(target, found, *sides, *more) == 0
    assert ranks(found) == ranks(given)
    assert digest(found) == digest(given)
    assert transform(target, found, *sides, *more) == 0  # already complete


def test_a_target_without_redundancy_is_read(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert run(made, target, "--remove-redundancy") == 0
    assert transform(target, tmp_path / "back", "--target-strategy", made.source_strategy) == 0
    assert transform(tmp_path / "back", tmp_path / "again", "--target-strategy", made.target_strategy) == 0
    assert disk.differences(made.model, tmp_path / "again", "ckpt") == []


def test_pipeline_stages_are_read(tmp_path: Path) -> None:
    pipeline, one = CORPUS / "pipeline", CORPUS / "pipeline" / "dst_strategy.ckpt"
    one_stage, two_stages, again = (tmp_path / name for name in ("one", "two", "again"))
    given = ["--source-strategy", pipeline / "src_strategy", "--target-strategy", one]
    assert transform(pipeline / "src", one_stage, *given) == 0
    assert transform(one_stage, two_stages, "--target-strategy", pipeline / "src_strategy", "--allow-missing") == 0
    assert transform(two_stages, again, "--target-strategy", one) == 0
    assert ranks(again) == ranks(one_stage)


def test_a_checkpoint_goes_from_mesh_to_mesh(tmp_path: Path) -> None:
    whole = layout_example.write(tmp_path)
    names = [tmp_path / name for name in ("first", "second", "third", "joined")]
    assert transform(tmp_path / "model.safetensors", names[0], "--target-strategy", tmp_path / "layout.yaml") == 0
    for before, after, scale in zip(names, names[1:], ("dp/2", "tp*2", None), strict=False):
        assert transform(before, after, *(["--scale", scale] if scale else [])) == 0
    joined = load_file(names[-1] / "rank_0" / "checkpoint_0.safetensors")
    assert {name: array.tobytes() for name, array in joined.items()} == {n: a.tobytes() for n, a in whole.items()}
    checked = ["--checkpoint", str(names[0])]
    assert main(["layout", "check", str(tmp_path / "layout.yaml"), *checked]) == 0


def test_a_parameter_that_no_strategy_names_is_copied_to_every_rank(tmp_path: Path) -> None:
    """The target is divided by rows, without a strategy. The scalar is not divided, so the next strategy need not name it."""
    layout_example.write(tmp_path)
    rows, next_target = tmp_path / "rows", tmp_path / "next"
    assert transform(tmp_path / "model.safetensors", rows, "--target-ranks", 2) == 0
    assert (
        transform(
            tmp_path / "model.safetensors", tmp_path / "named", "--target-strategy", tmp_path / "layout.yaml", "--write-strategy"
        )
        == 0
    )
    assert transform(rows, next_target, "--target-strategy", tmp_path / "named" / "reshard-strategy.ckpt") == 0
    assert ranks(next_target) == ranks(tmp_path / "named")


def test_a_rank_is_loaded_and_indexed(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert run(made, target) == 0
    source, strategy, index = str(target), str(made.target_strategy), tmp_path / "index"
    assert transform(target, index, "--target-strategy", made.source_strategy, "--output", "index") == 0
    for rank in range(4):
        expected = reshard.load(source, strategy, str(made.source_strategy), rank)
        for found in (
            reshard.load(source, None, str(made.source_strategy), rank),
            reshard.load(source, index=str(index), rank=rank),
        ):
            assert found.keys() == expected.keys()
            assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())


def test_mindspores_function_needs_no_source_strategy(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    assert run(made, target) == 0
    transform_checkpoints(str(target), str(tmp_path / "found"), "checkpoint_", None, str(made.source_strategy))
    assert (
        transform(
            target, tmp_path / "given", "--source-strategy", made.target_strategy, "--target-strategy", made.source_strategy
        )
        == 0
    )
    assert ranks(tmp_path / "found") == ranks(tmp_path / "given")


def test_separate_processes_use_the_layouts_of_the_plan(
    made: disk.Checkpoint, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of the source is read once, by the plan."""
    assert run(made, target) == 0
    sides = ["--source", str(target), "--target", str(tmp_path / "out"), "--target-strategy", str(made.source_strategy)]
    assert main(["plan", *sides, "--write"]) == 0

    def fail(*_: object) -> None:
        pytest.fail("the manifest was read again")

    with monkeypatch.context() as patched:
        patched.setattr("reshard.transform.inputs.recorded_strategy", fail)
        for some in ("0-1", "2-3"):
            assert main(["transform", *sides, "--no-commit", "--only-ranks", some]) == 0
    assert main(["commit", str(tmp_path / "out")]) == 0
    assert transform(target, tmp_path / "given", "--source-strategy", made.target_strategy, *sides[4:]) == 0
    assert ranks(tmp_path / "out") == ranks(tmp_path / "given")


def test_a_source_in_an_object_store_is_identified_by_its_listing(
    made: disk.Checkpoint, target: Path, tmp_path: Path, server: thin_s3.ThinServer
) -> None:
    assert run(made, target) == 0
    for path in target.rglob("*"):
        if path.is_file():
            server.put("bucket", f"in/{path.relative_to(target)}", path.read_bytes())
    request = Request("s3://bucket/in", str(tmp_path / "out"), None, str(made.source_strategy), Options())
    assert transform_checkpoint(request).bytes_written > 0
    assert transform_checkpoint(request).bytes_written == 0
    edit(target, "parameters", "kinds", 0, "shape", value=[48, 48])  # the listing of the files is the same
    server.put("bucket", f"in/{MANIFEST}", (target / MANIFEST).read_bytes())
    with pytest.raises(DataError, match="ManifestInvalid"):
        transform_checkpoint(request)


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("parameters", "kinds", 0, "shape"), [48, 48], "but the manifest states [48, 48]"),
        (("parameters", "records", 0, "name"), "other", "but the manifest states no shape"),
        (("parameters", "kinds", 0, "target", "deviceMatrix"), [3, 2], "but the manifest states"),
        (("parameters", "kinds", 0, "target", "deviceMatrix"), [5], "do not match its ranks"),
        (("parameters", "kinds", 0, "target", "stages"), [1], "do not match its ranks"),
        (("targetRanks",), 7, "do not match its ranks"),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_refused(
    keys: tuple[str | int, ...], value: Any, told: str, made: disk.Checkpoint, target: Path, refused: Callable[..., str]
) -> None:
    assert run(made, target) == 0
    edit(target, *keys, value=value)
    if keys == ("targetRanks",):
        edit(target, "files", value=[*json.loads((target / MANIFEST).read_bytes())["files"]])
    sides = ["--source", str(target), "--target", str(target.parent / "out")]
    if keys == ("targetRanks",):
        assert "only 6 of 7 files" in refused(66, "FileMissing", "transform", *sides)
    else:
        assert told in refused(65, "ManifestInvalid", "transform", *sides)
    assert not (target.parent / "out").exists()


@pytest.fixture
def square(tmp_path: Path) -> Path:
    """A folder with a checkpoint that Reshard wrote, the same strategy with exchanged axes, and layout files of both."""
    for name, axes in (("target", (0, 1)), ("exchanged", (1, 0))):
        cuts = [Cut((2, 2), ((axis,), (1 - axis,))) for axis in axes]
        whole = Cut((4,), ((0,), ()))
        tensors = [models.Tensor(w, "Float32", (8, 16), whole, 0, cut, 0) for w, cut in zip("vw", cuts, strict=True)]
        written = disk.write(tmp_path / f"made_{name}", models.Model(4, 1, 4, 1, tuple(tensors), 1, remove_redundancy=False))
        assert run(written, tmp_path / name) == 0
        out = ["--mesh", "dp=2,tp=2", "-o", tmp_path / f"{name}.yaml"]
        assert main(list(map(str, ["layout", "infer", written.target_strategy, *out]))) == 0
        shutil.copy(written.target_strategy, tmp_path / f"{name}.ckpt")
    return tmp_path


def commands(folder: Path, strategy: Path | None) -> list[list[str]]:
    """The commands that read the layouts of a checkpoint."""
    layout, out, checkpoint = folder / "target.yaml", folder / "out", ["--checkpoint", folder / "target"]
    given = [] if strategy is None else ["--source-strategy", strategy]
    found: list[list[object]] = [
        ["transform", "--source", folder / "target", *given, "--target", out],
        ["layout", "check", layout, *checkpoint, *given],
        ["layout", "export", layout, *checkpoint, *given, "-o", out],
        ["layout", "derive", *given[1:], "--source-mesh", "dp=2,tp=2", "--mesh", "dp=2,tp=2", *checkpoint, "-o", out],
    ]
    if strategy is not None and strategy.suffix == ".ckpt":  # `infer` reads no layout file
        found.append(["layout", "infer", *given[1:], "--mesh", "dp=2,tp=2", *checkpoint, "-o", out])
    return [list(map(str, each)) for each in found]


@pytest.mark.parametrize("kind", ["ckpt", "yaml"])
def test_every_command_refuses_a_strategy_that_contradicts_the_manifest(
    kind: str, square: Path, refused: Callable[..., str]
) -> None:
    for words in commands(square, square / f"exchanged.{kind}"):
        assert "the file of rank 1" in refused(65, "StrategyMismatch", *words)
        assert not (square / "out").exists()
    for words in commands(square, square / f"target.{kind}")[1:]:
        assert main(words) == 0
        if (square / "out").exists():
            (square / "out").rename(square / words[1])


def test_every_command_refuses_a_manifest_that_contradicts_the_files(square: Path, refused: Callable[..., str]) -> None:
    edit(square / "target", "parameters", "kinds", 0, "shape", value=[16, 16])
    for words in commands(square, None):
        assert "the manifest states [16, 16]" in refused(65, "ManifestInvalid", *words)
        assert not (square / "out").exists()


def test_what_no_manifest_describes_needs_a_strategy(
    made: disk.Checkpoint, target: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert run(made, target) == 0
    sides = ["transform", "--target", str(tmp_path / "out"), "--source"]
    refused(78, "SourceStrategyMissing", *sides, str(target), "--files", "checkpoint_*")
    assert main(["convert", str(target), str(tmp_path / "same"), "--format", "safetensors"]) == 0
    refused(78, "SourceStrategyMissing", *sides, str(tmp_path / "same"))  # a conversion does not know the layouts
    path = disk.rank_file(target, 2)
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    refused(65, "SourceChanged", *sides, str(target))
    path.write_bytes(content)
    (target / MANIFEST).unlink()
    refused(78, "SourceStrategyMissing", *sides, str(target))
    shutil.rmtree(target)
    assert run(made, target, "--only-ranks", "0-3") == 0
    assert "only 4 of 6 files" in refused(66, "FileMissing", *sides, str(target))


def test_a_target_of_which_no_parameter_is_divided_needs_no_strategy(tmp_path: Path) -> None:
    target, scalars = tmp_path / "target", tmp_path / "scalars"
    (tmp_path / "scalars.safetensors").write_bytes(rawfiles.safetensors({"step": np.array(5, np.int64)}))
    assert transform(tmp_path / "scalars.safetensors", scalars, "--target-ranks", 3) == 0
    assert transform(scalars, target) == 0
    assert rawfiles.read("safetensors", (target / "rank_0/checkpoint_0.safetensors").read_bytes()).keys() == {"step"}


def test_slices_of_different_lengths_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    layout_example.write(tmp_path)
    assert transform(tmp_path / "model.safetensors", tmp_path / "uneven", "--target-ranks", 3) == 0
    told = refused(78, "LayoutUneven", "transform", "--source", str(tmp_path / "uneven"), "--target", str(tmp_path / "out"))
    assert "--format torch-dcp" in told
    assert transform(tmp_path / "model.safetensors", tmp_path / "dcp", "--target-ranks", 3, "--format", "torch-dcp") == 0
    assert transform(tmp_path / "dcp", tmp_path / "out") == 0
