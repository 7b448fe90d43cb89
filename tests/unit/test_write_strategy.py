"""The strategy file that a transform writes next to the folders of ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disk
import layout_example
import pytest
from disk import right, run

from reshard.cli import main
from reshard.errors import OutputError
from reshard.source.strategies import read_strategy
from reshard.spec.mounts import request_here
from reshard.spec.request import Options, Request
from reshard.spec.resource import parse_spec
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    import thin_s3

    from reshard.strategy import Strategy

CORPUS = Path(__file__).parents[1] / "conformance" / "corpus"
NAME = "reshard-strategy.ckpt"


def cells(strategy: Strategy) -> list[dict[str, Any]]:
    return [{name: (layout.parts, layout.cells) for name, layout in stage.items()} for stage in strategy.stages]


def ranks(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("rank_*/*"))]


@pytest.mark.parametrize("pipeline", [False, True])
def test_the_file_describes_the_layouts_of_the_target(pipeline: bool, tmp_path: Path) -> None:
    """The target is divided by a strategy, which names what the file names."""
    one, several = CORPUS / "pipeline" / "dst_strategy.ckpt", CORPUS / "pipeline" / "src_strategy"
    made, again = tmp_path / "made", tmp_path / "again"
    source = ["--source", str(CORPUS / "pipeline" / "src"), "--source-strategy", str(several)]
    if pipeline:
        assert main(["transform", *source, "--target", str(tmp_path / "one"), "--target-strategy", str(one)]) == 0
        source = ["--source", str(tmp_path / "one"), "--source-strategy", str(one)]
    wanted = several if pipeline else one
    assert main(["transform", *source, "--target", str(made), "--target-strategy", str(wanted), "--write-strategy"]) == 0
    found, expected = read_strategy(str(made / NAME)), read_strategy(str(wanted))
    assert cells(found) == [
        {name: cell for name, cell in stage.items() if not name.startswith("accu_grads")} for stage in cells(expected)
    ]
    assert len(found.stages) == (2 if pipeline else 1)
    source = ["--source", str(made), "--source-strategy", str(made / NAME)]
    assert main(["transform", *source, "--target", str(again), "--target-strategy", str(made / NAME)]) == 0
    assert ranks(again) == ranks(made) != []


def test_the_file_describes_a_layout_file(tmp_path: Path) -> None:
    layout_example.write(tmp_path)
    model, layout, out = tmp_path / "model.safetensors", str(tmp_path / "layout.yaml"), tmp_path / "out"
    arguments = ["--source", str(model), "--target-strategy", layout]
    assert main(["transform", *arguments, "--target", str(out), "--write-strategy"]) == 0
    exported = ["layout", "export", layout, "--checkpoint", str(model), "-o", str(tmp_path / "exported")]
    assert main(exported) == 0
    assert cells(read_strategy(str(out / NAME))) == cells(read_strategy(str(tmp_path / "exported")))


def test_the_file_belongs_to_the_checkpoint(made: disk.Checkpoint, target: Path, refused: Callable[..., str]) -> None:
    """It is verified, restored, and compared with the manifest like an index file."""
    assert run(made, target, "--write-strategy") == 0
    assert right(made, target)
    content = (target / NAME).read_bytes()
    for change in (b"x" * len(content), b""):
        (target / NAME).write_bytes(change)
        assert f"the content of {NAME} has changed" in refused(65, "ContentChanged", "verify", str(target))
        refused(65, "ContentChanged", "commit", str(target))
        assert run(made, target, "--write-strategy") == 0
        assert (target / NAME).read_bytes() == content
    (target / NAME).unlink()
    assert NAME in refused(66, "FileMissing", "verify", str(target))
    assert run(made, target, "--write-strategy") == 0
    assert (target / NAME).read_bytes() == content
    refused(78, "TargetExists", *made.arguments(target))


def test_separate_processes_write_the_ranks_and_the_file(made: disk.Checkpoint, target: Path) -> None:
    for some in ("0-2", "3-5"):
        assert run(made, target, "--write-strategy", "--no-commit", "--only-ranks", some) == 0
    assert not (target / NAME).exists()
    assert main(["commit", str(target)]) == 0
    assert cells(read_strategy(str(target / NAME))) == [
        {name: cell for name, cell in stage.items() if name in {"w", "m", "b"}}
        for stage in cells(read_strategy(str(made.target_strategy)))
    ]
    assert right(made, target)


def test_the_file_describes_ranks_that_are_not_written(made: disk.Checkpoint, target: Path) -> None:
    assert run(made, target, "--write-strategy", "--only-ranks", "1-2") == 0
    assert read_strategy(str(target / NAME)).ranks == 6
    assert main(["verify", str(target)]) == 0
    assert run(made, target, "--write-strategy") == 0
    assert right(made, target)


def test_another_checkpoint_replaces_the_file(made: disk.Checkpoint, other: disk.Checkpoint, target: Path) -> None:
    assert run(made, target, "--write-strategy") == 0
    assert run(other, target, "--overwrite") == 0
    assert not (target / NAME).exists()
    assert right(other, target)
    assert run(made, target, "--overwrite", "--write-strategy") == 0
    assert right(made, target)
    assert (target / NAME).exists()


def test_the_file_of_an_interrupted_commit_is_replaced(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("CannotWrite", "as the test wants it")

    for final in (other, made):
        with monkeypatch.context() as patched:
            patched.setattr("reshard.target.folder.TargetFolder.write_manifest", full)
            assert run(made, target, "--write-strategy") == 73
        assert (target / NAME).exists()
        assert run(final, target, *(["--overwrite"] if final is other else ["--write-strategy"])) == 0
        assert (target / NAME).exists() == (final is made)
        assert right(final, target)
        shutil.rmtree(target)


def test_a_file_of_the_user_is_never_replaced(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, refused: Callable[..., str]
) -> None:
    target.mkdir()
    (target / NAME).write_bytes(b"mine")
    assert NAME in refused(78, "TargetExists", *made.arguments(target, "--write-strategy"))
    assert run(made, target) == 0
    assert NAME in refused(78, "TargetExists", *other.arguments(target, "--write-strategy", "--overwrite"))
    assert run(other, target, "--overwrite") == 0
    assert (target / NAME).read_bytes() == b"mine"


def test_the_file_is_no_checkpoint(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    """Not even without a manifest, or next to the files of ranks."""
    assert run(made, target, "--write-strategy") == 0
    (target / "reshard-manifest.json").unlink()
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in target.glob("rank_*/*"):
        (flat / path.name).write_bytes(path.read_bytes())
    (flat / NAME).write_bytes((target / NAME).read_bytes())
    for folder in (target, flat):
        out = tmp_path / f"{folder.name}-out"
        sides = ["--source-strategy", str(target / NAME), "--target-strategy", str(made.target_strategy)]
        assert main(["transform", "--source", str(folder), *sides, "--target", str(out)]) == 0
        assert disk.differences(made.model, out, "ckpt") == []


def test_an_index_provides_the_layouts(made: disk.Checkpoint, target: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert run(made, index, "--output", "index") == 0
    sides = ["--source", str(made.source), "--index", str(index)]
    assert main(["transform", *sides, "--target", str(target), "--write-strategy"]) == 0
    assert read_strategy(str(target / NAME)).ranks == 6


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--output", "unified"], "write_strategy: the target gets a strategy file only with the output PerRank"),
        (["--output", "same"], "write_strategy: the target gets a strategy file only with the output PerRank"),
        (["--output", "index"], "write_strategy: the target gets a strategy file only with the output PerRank"),
        (["--output", "stage"], "write_strategy: the target gets a strategy file only with the output PerRank"),
        (["--format", "huggingface"], "write_strategy: the target gets a strategy file only with the output PerRank"),
        (["--format", "torch-dcp"], "write_strategy: it does not apply to the format TorchDcp"),
        (["--format", "megatron"], "write_strategy: it does not apply to the format Megatron"),
    ],
)
def test_targets_without_slices_of_ranks_have_no_strategy(
    tmp_path: Path, more: list[str], told: str, refused: Callable[..., str]
) -> None:
    layout_example.write(tmp_path)
    sides = ["--source", str(tmp_path / "model.safetensors"), "--target", str(tmp_path / "out")]
    assert told in refused(2, "InvalidOption", "transform", *sides, *more, "--write-strategy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reason", "more"),
    [
        ("LayoutUneven", ["--target-ranks", "3"]),
        ("StageWithoutParameters", ["--target-strategy", "layout.yaml", "--exclude", "layers.2.*", "--exclude", "layers.3.*"]),
    ],
)
def test_what_no_strategy_file_describes_is_refused_before_anything_is_written(
    tmp_path: Path, reason: str, more: list[str], refused: Callable[..., str]
) -> None:
    layout_example.write(tmp_path)
    more = [str(tmp_path / each) if each.endswith(".yaml") else each for each in more]
    more += ["--exclude", "norm"]
    sides = ["--source", str(tmp_path / "model.safetensors"), "--target", str(tmp_path / "out")]
    assert "omit --write-strategy" in refused(78, reason, "transform", *sides, *more, "--write-strategy")
    assert not (tmp_path / "out").exists()
    assert main(["transform", *sides, *more]) == 0


def test_a_resource_asks_for_the_file(made: disk.Checkpoint, target: Path) -> None:
    def storage(path: str) -> dict[str, Any]:
        return {"persistentVolumeClaim": {"claimName": "runs", "path": path}}

    spec = {
        "source": {"storage": storage("made/src"), "strategy": {"path": "made/source.ckpt"}},
        "target": {"storage": storage("target"), "strategy": {"path": "made/target.ckpt"}, "writeStrategy": True},
    }
    claims = {"runs": str(target.parent)}
    transform_checkpoint(request_here(parse_spec(spec, "x"), claims=claims, config_maps={}, secrets={}))
    assert right(made, target)
    assert json.loads((target / "reshard-manifest.json").read_bytes())["options"]["writeStrategy"]
    assert (target / NAME).exists()


def test_the_file_in_an_object_store(made: disk.Checkpoint, server: thin_s3.ThinServer) -> None:
    sides = (str(made.source), "s3://bucket/out", str(made.source_strategy), str(made.target_strategy))
    request = Request(*sides, Options(write_strategy=True))
    for _ in range(2):
        transform_checkpoint(request)
        assert ("bucket", f"out/{NAME}") in server.objects
        assert main(["verify", "s3://bucket/out"]) == 0
        assert transform_checkpoint(request).bytes_written == 0
        del server.objects["bucket", f"out/{NAME}"]
