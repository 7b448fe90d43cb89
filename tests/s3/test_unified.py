"""Unified safetensors in buckets: written there, cut from there, and exchanged with rank files in both directions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import disk
import models
import pytest
import rawfiles

from reshard.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server

MANIFEST, MAP = "reshard-manifest.json", "param_name_map.json"


@pytest.mark.parametrize("copy", ["client", "server"])
def test_unified_in_a_bucket_and_ranks_from_it(server: s3_server.Server, bucket: str, tmp_path: Path, copy: str) -> None:
    cuts = models.Cut((4,), ((0,), ())), models.Cut((2,), ((0,), ()))
    tensors = [models.Tensor(f"w{i}", "Float32", (6144, 1024), cuts[0], 0, cuts[1], 0) for i in range(3)]
    step = models.Tensor("step", "Int32", (), None, 0, None, 0)
    model = models.Model(4, 1, 2, 1, (*tensors, step), 1, remove_redundancy=False)
    disk.write(tmp_path / "made", model, "safetensors")
    base, target = server.upload(bucket, tmp_path / "made", "in"), f"s3://{bucket}/out"
    source = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt"]
    unify = [*source, "--output", "unified", "--max-file-size-bytes", str(30 << 20), "--target", target, "--copy-mode", copy]
    assert main(["transform", *unify]) == 0
    assert main(["verify", target]) == 0
    found = server.download(target, tmp_path / "found")
    held = {}
    for path in found.glob("*.safetensors"):
        held |= {name: array.tobytes() for name, array in rawfiles.read("safetensors", path.read_bytes()).items()}
    assert held == {tensor.name: model.whole(tensor).tobytes() for tensor in model.tensors}
    assert json.loads((found / MAP).read_text())["weight_map"].keys() == {"w0", "w1", "w2"}

    cut = ["--source", target, "--target-strategy", f"{base}/target.ckpt", "--target", f"s3://{bucket}/ranks"]
    assert main(["transform", *cut, "--copy-mode", copy]) == 0
    assert disk.differences(model, server.download(f"s3://{bucket}/ranks", tmp_path / "ranks"), "safetensors") == []
    assert server.uploads(bucket) == []


def test_unified_files_and_ranks_replace_each_other(server: s3_server.Server, bucket: str, tmp_path: Path) -> None:
    made, target = disk.write(tmp_path / "made", disk.example(), "safetensors"), f"s3://{bucket}/out"
    unify = ["--source", str(made.source), "--source-strategy", str(made.source_strategy), "--output", "unified"]
    assert main(["transform", *unify, "--target", target]) == 0
    assert main([*made.arguments(tmp_path), "--target", target]) == 78
    assert main([*made.arguments(tmp_path), "--target", target, "--overwrite", "--write-strategy"]) == 0
    ranks = {f"rank_{rank}" for rank in range(6)}
    written = {path.name for path in server.download(target, tmp_path / "ranks").iterdir()}
    assert written == {MANIFEST, "reshard-strategy.ckpt", *ranks}
    assert main(["transform", *unify, "--target", target, "--overwrite"]) == 0
    assert main(["verify", target]) == 0
    names = {path.name for path in server.download(target, tmp_path / "unified").iterdir()}
    assert names == {MANIFEST, MAP, "hyper_param.safetensors", "part0.safetensors"}
