"""Online load and fetch from a bucket: the right bytes, with requests that do not grow with the number of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import disk
import fault_proxy
import models
import pytest
from rawfiles import same

import reshard
from reshard.cli import main
from reshard.errors import DataError
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server


def halves(ranks: int, rows: int = 256) -> models.Model:
    """A model of so many ranks that becomes one of half as many: every target rank is made of two source ranks' files."""
    cuts = disk.Cut((ranks,), ((0,), ())), 0, disk.Cut((ranks // 2,), ((0,), ())), 0
    tensors = (models.Tensor("w", "Float32", (rows, 64), *cuts), models.Tensor("step", "Int32", (), None, 0, None, 0))
    return models.Model(ranks, 1, ranks // 2, 1, tensors, 1, remove_redundancy=False)


def uploaded(server: s3_server.Server, bucket: str, model: models.Model, folder: Path) -> str:
    """Write a model and its index to a bucket; return the common prefix of their addresses."""
    folder.mkdir()
    disk.write(folder, model, "safetensors")
    base = server.upload(bucket, folder, folder.name)
    sides = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt", "--target-strategy", f"{base}/target.ckpt"]
    assert main(["transform", *sides, "--output", "index", "--target", f"{base}/index"]) == 0
    return base


@pytest.mark.parametrize("by", ["headers", "index"])
def test_every_rank_gets_exactly_its_slices(server: s3_server.Server, bucket: str, tmp_path: Path, by: str) -> None:
    model = disk.example(rows=4800, columns=1920)
    base = uploaded(server, bucket, model, tmp_path / "made")
    strategies = {"source_strategy": f"{base}/source.ckpt", "target_strategy": f"{base}/target.ckpt"}
    for rank in range(model.target_ranks):
        how = {"index": f"{base}/index"} if by == "index" else strategies
        assert same(reshard.load(f"{base}/src", rank=rank, **how), model.target(rank))


def test_requests_do_not_grow_with_the_number_of_ranks(
    server: s3_server.Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for ranks in (8, 64):
        model = halves(ranks)
        base = uploaded(server, bucket, model, tmp_path / str(ranks))
        plan = fault_proxy.Plan()
        with fault_proxy.between(server.endpoint, plan) as endpoint, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
            client.client_of.cache_clear()
            assert same(reshard.load(f"{base}/src", index=f"{base}/index", rank=3), model.target(3))
            loaded = len(plan.requests)
            fetch = ["fetch", "--source", f"{base}/src", "--index", f"{base}/index", "--rank", "3"]
            assert main([*fetch, "--target", str(tmp_path / f"out-{ranks}")]) == 0
        client.client_of.cache_clear()
        counts.append((loaded, len(plan.requests) - loaded))
    assert counts[0] == counts[1]
    assert 0 < counts[0][0] <= 8  # the source, its index, and metadata and bytes of each of two files


def test_an_object_that_has_changed_since_is_to_be_indexed_again(server: s3_server.Server, bucket: str, tmp_path: Path) -> None:
    model = halves(8)
    base = uploaded(server, bucket, model, tmp_path / "made")
    key = f"{base.partition(bucket)[2][1:]}/src/rank_6/net-1_100.safetensors"
    content = server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    server.client().put_object(Bucket=bucket, Key=key, Body=content[:-1] + bytes([content[-1] ^ 1]))
    assert same(reshard.load(f"{base}/src", index=f"{base}/index", rank=0), model.target(0))  # it reads others
    with pytest.raises(DataError, match=r"SourceChanged: rank_6/.* since the source was indexed"):
        reshard.load(f"{base}/src", index=f"{base}/index", rank=3)
