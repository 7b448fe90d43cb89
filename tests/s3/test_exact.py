"""Every source layout to every target layout, from and to S3, against numpy slices of the whole tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import disk
import models
import pytest
import rawfiles
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from reshard.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from places import Sides


def transformed(made: disk.Checkpoint, sides: Sides, *more: str) -> Path:
    """Run a transform and return its target as a folder."""
    base, target = sides.source.put(made.folder), sides.target.new()
    names = {"--source": "src", "--source-strategy": "source.ckpt", "--target-strategy": "target.ckpt"}
    arguments = [word for option, name in names.items() for word in (option, f"{base}/{name}")]
    assert main(["transform", *arguments, "--target", target, *more]) == 0
    assert main(["verify", target]) == 0
    return sides.target.get(target)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("becomes", ["ckpt", "safetensors"])
def test_every_rank_gets_exactly_its_slices(tmp_path: Path, sides: Sides, kind: str, becomes: str) -> None:
    number = iter(range(10**6))

    @settings(max_examples=4, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(models.models(8), st.sampled_from(["sample", "full"]))
    def check(model: models.Model, verification: str) -> None:
        assume(becomes == "safetensors" or all(model.target(rank) for rank in range(model.target_ranks)))
        assume(all(model.source()))
        assume(all(stage for strategy in disk.strategies(model) for stage in strategy.stages))  # a file must name something
        place = tmp_path / str(next(number))
        place.mkdir()
        made = disk.write(place, model, kind)
        found = transformed(made, sides, "--verification", verification, "--format", becomes)
        assert disk.differences(model, found, becomes) == []

    check()


def test_large_tensors_take_many_requests(tmp_path: Path, sides: Sides) -> None:
    model = disk.example(rows=4800, columns=1920)
    (tmp_path / "made").mkdir()
    made = disk.write(tmp_path / "made", model)
    assert disk.differences(model, transformed(made, sides, "--verification", "full"), "ckpt") == []


def test_a_rank_without_parameters(tmp_path: Path, sides: Sides) -> None:
    whole = models.Cut((3,), ((),))
    tensors = tuple(models.Tensor(name, "Float32", (8,), whole, 0, whole, 0) for name in ("a", "b"))
    model = models.Model(3, 1, 3, 1, tensors, 1, remove_redundancy=False)
    (tmp_path / "made").mkdir()
    made = disk.write(tmp_path / "made", model)
    thin = transformed(made, sides, "--remove-redundancy", "--verification", "full")
    assert (thin / "rank_2" / "checkpoint_2.ckpt").read_bytes() == b""
    source, back = sides.target.put(thin), sides.source.new()
    strategies = ["--source-strategy", str(made.source_strategy), "--target-strategy", str(made.target_strategy)]
    assert main(["transform", "--source", source, *strategies, "--target", back, "--verification", "full"]) == 0
    assert disk.differences(model, sides.source.get(back), "ckpt") == []


@pytest.mark.parametrize("mode", list(rawfiles.MAGIC))
def test_encrypted_files_become_encrypted_files(tmp_path: Path, sides: Sides, mode: str) -> None:
    """Blocks have many lengths, and targets several parts."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(16)))
    model = disk.example(rows=4800, columns=240 if mode == "SM4-CBC" else 1920)
    (tmp_path / "made").mkdir()
    made = disk.write(tmp_path / "made", model)
    for number, path in enumerate(sorted(made.source.rglob("*.ckpt"))):
        path.write_bytes(rawfiles.encrypted(path.read_bytes(), mode, key.read_bytes(), (1 << 18) + number))
    options = [f"--{side}-{what}" for side in ("decryption", "encryption") for what in ("key-file", "mode")]
    keys = [word for pair in zip(options, [str(key), mode] * 2, strict=True) for word in pair]
    found = transformed(made, sides, "--verification", "full", *keys)
    for path in found.rglob("*.ckpt"):
        path.write_bytes(rawfiles.decrypted(path.read_bytes(), mode, key.read_bytes()))
    assert disk.differences(model, found, "ckpt") == []
