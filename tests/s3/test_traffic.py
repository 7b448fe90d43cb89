"""Counts of what is fetched, against the answers of a real server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import fault_proxy
import pytest
from traffic_cases import CASES, made

from reshard.cli import main
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server


@pytest.mark.parametrize("verification", ["none", "sample"])
@pytest.mark.parametrize("case", CASES)
def test_the_server_sends_what_is_counted(
    server: s3_server.Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
    verification: str,
) -> None:
    made(tmp_path, case)
    base = server.upload(bucket, tmp_path, "in")
    sides = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt", "--target-strategy", f"{base}/target.ckpt"]
    plan = fault_proxy.Plan()
    with fault_proxy.between(server.endpoint, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        client.client_of.cache_clear()
        assert main(["transform", *sides, "--target", f"s3://{bucket}/out", "--verification", verification, "--json"]) == 0
        client.client_of.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    found = json.loads(capsys.readouterr().out)
    assert found["bytes_fetched"] + found["other_bytes_fetched"] == sum(plan.objects)
    assert found["requests"] + found["other_requests"] == len(plan.objects)
    assert found["bytes_distinct"] <= found["bytes_needed"]
    assert found["bytes_distinct"] <= found["bytes_fetched"] <= 1.05 * found["bytes_distinct"]
    manifest = json.loads((server.download(f"s3://{bucket}/out", tmp_path / "out") / "reshard-manifest.json").read_text())
    assert sum(file["bytesFetched"] for file in manifest["files"]) == found["bytes_fetched"]
    assert sum(file["requests"] for file in manifest["files"]) == found["requests"]
