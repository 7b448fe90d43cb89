"""Every source layout to every target layout, from and to S3, against numpy slices of the whole tensor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import disk
import models
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from reshard.cli import main

if TYPE_CHECKING:
    import s3_server

PAIRS = [("s3", "s3"), ("local", "s3"), ("s3", "local")]


def transformed(
    server: s3_server.Server, bucket: str, made: disk.Checkpoint, sides: tuple[str, str], folder: Path, *more: str
) -> Path:
    """The target that a transform makes, as a folder."""
    base = str(made.folder)
    if sides[0] == "s3":
        base = server.upload(bucket, made.folder, f"in/{made.folder.name}")
    target = f"s3://{bucket}/out/{made.folder.name}" if sides[1] == "s3" else str(folder / "out")
    names = {"--source": "src", "--source-strategy": "source.ckpt", "--target-strategy": "target.ckpt"}
    arguments = [word for option, name in names.items() for word in (option, f"{base}/{name}")]
    assert main(["transform", *arguments, "--target", target, *more]) == 0
    assert main(["verify", target]) == 0
    assert server.uploads(bucket) == []
    return server.download(target, folder / "fetched") if sides[1] == "s3" else Path(target)


@pytest.mark.parametrize("sides", PAIRS, ids="-to-".join)
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_every_rank_gets_exactly_its_slices(
    server: s3_server.Server, bucket: str, tmp_path: Path, sides: tuple[str, str], kind: str
) -> None:
    number = iter(range(10**6))

    @settings(max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(models.models(8), st.sampled_from(["sample", "full"]))
    def check(model: models.Model, verification: str) -> None:
        writable = kind == "safetensors" or all(model.target(rank) for rank in range(model.target_ranks))
        assume(writable and all(model.source()) and any(tensor.source for tensor in model.tensors))
        assume(model.source_stages == model.target_stages == 1)  # stages are a matter of strategy files, not of storage
        place = tmp_path / str(next(number))
        place.mkdir()
        made = disk.write(place, model, kind)
        found = transformed(server, bucket, made, sides, tmp_path, "--verify", verification)
        assert disk.differences(model, found, kind) == []
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    check()


@pytest.mark.parametrize("sides", PAIRS, ids="-to-".join)
def test_large_tensors_go_in_many_requests(server: s3_server.Server, bucket: str, tmp_path: Path, sides: tuple[str, str]) -> None:
    model = disk.example(rows=4800, columns=1920)
    (tmp_path / "made").mkdir()
    made = disk.write(tmp_path / "made", model)
    found = transformed(server, bucket, made, sides, tmp_path, "--verify", "full")
    assert disk.differences(model, found, "ckpt") == []


def test_a_rank_to_which_nothing_falls(server: s3_server.Server, bucket: str, tmp_path: Path) -> None:
    whole = models.Cut((3,), ((),))
    tensors = tuple(models.Tensor(name, "Float32", (8,), whole, 0, whole, 0) for name in ("a", "b"))
    model = models.Model(3, 1, 3, 1, tensors, 1, remove_redundancy=False)
    (tmp_path / "made").mkdir()
    made = disk.write(tmp_path / "made", model)
    thin = transformed(server, bucket, made, ("local", "s3"), tmp_path, "--remove-redundancy", "--verify", "full")
    assert (thin / "rank_2" / "checkpoint_2.ckpt").read_bytes() == b""
    source = ["--source", f"s3://{bucket}/out/made", "--source-strategy", str(made.source_strategy)]
    back = ["--target-strategy", str(made.target_strategy), "--target", str(tmp_path / "back")]
    assert main(["transform", *source, *back, "--verify", "full"]) == 0
    assert disk.differences(model, tmp_path / "back", "ckpt") == []
