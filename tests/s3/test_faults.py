"""Faults of networks and servers: the result is exact, or a clear error after bounded time leaves nothing that looks complete."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import disk
import fault_proxy
import pytest

from reshard.cli import main
from reshard.storage.s3 import client, reader

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server

_LONGEST_SECONDS = 240


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less, for the test's sake."""
    monkeypatch.setattr(client, "_READ_SECONDS", 1)
    monkeypatch.setattr(reader, "_PATIENCE_SECONDS", 1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("share", [0.01, 0.2])
@pytest.mark.parametrize("fault", fault_proxy.FAULTS)
def test_a_fault_never_makes_a_wrong_checkpoint(
    server: s3_server.Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    share: float,
) -> None:
    made = disk.write(tmp_path, disk.example(rows=4800, columns=1920))
    base = server.upload(bucket, tmp_path, "in")
    target = f"s3://{bucket}/out"
    arguments = [
        *("transform", "--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt"),
        *("--target-strategy", f"{base}/target.ckpt", "--target", target, "--verification", "full"),
    ]
    plan = fault_proxy.Plan(fault, share)
    client.client_of.cache_clear()
    with fault_proxy.between(server.endpoint, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        began = time.monotonic()
        code = main(arguments)
        taken = time.monotonic() - began
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    client.client_of.cache_clear()
    said = capsys.readouterr().err
    assert taken < _LONGEST_SECONDS
    assert plan.done or share < 0.1
    if fault == "expired" and plan.done:
        assert code == 77
        assert "CredentialsExpired" in said
    elif fault == "wrong":
        assert code in (0, 65, 70, 74), said
    else:
        assert code in ((0,) if share < 0.1 else (0, 74, 75)), said
    assert "Traceback" not in said
    assert "reshard-test-secret" not in said
    if code:
        assert server.client().list_objects_v2(Bucket=bucket, Prefix="out/reshard-manifest")["KeyCount"] == 0
        assert main(arguments) == 0
    assert disk.differences(made.model, server.download(target, tmp_path / "out"), "ckpt") == []
    assert server.uploads(bucket) == []
