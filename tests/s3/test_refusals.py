"""Refusals by servers or on the way to them: one line with the server's code, a remedy, and the matching exit code."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import disk
import pytest
import s3_server
import yaml

from reshard.cli import main
from reshard.errors import AccessError
from reshard.spec.storage_options import StorageOptions
from reshard.storage import open_store
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def fresh(bucket: str) -> None:
    """Clients that know what this test has put into the environment."""
    del bucket
    client.client_of.cache_clear()


REFUSALS = [
    ({"bucket": "no-such-bucket"}, 66, "BucketMissing", "NoSuchBucket"),
    ({"AWS_ACCESS_KEY_ID": "someone-else"}, 77, "CredentialsRefused", "access key"),
    ({"AWS_SECRET_ACCESS_KEY": "not-the-secret"}, 77, "CredentialsRefused", "SignatureDoesNotMatch"),
    ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 77, "CredentialsMissing", "credentials"),
    ({"AWS_PROFILE": "nobody"}, 77, "CredentialsMissing", "nobody"),
    ({"AWS_ENDPOINT_URL_S3": "not an address"}, 2, "InvalidAddress", "not an address"),
]


@pytest.mark.parametrize(("environment", "code", "reason", "says"), REFUSALS, ids=[f"{r[2]}-{r[3]}" for r in REFUSALS])
def test_a_refusal_states_a_remedy(
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    code: int,
    reason: str,
    says: str,
) -> None:
    place = environment.get("bucket", bucket)
    for name, value in environment.items():
        if name.startswith("AWS") and value:
            monkeypatch.setenv(name, value)
        elif name.startswith("AWS"):
            monkeypatch.delenv(name)
    assert main(["verify", f"s3://{place}/x"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"reshard: {reason}: ")
    assert says in line
    assert s3_server.SECRET not in line
    assert "not-the-secret" not in line


@pytest.mark.usefixtures("_two_tries")
def test_an_unreachable_endpoint_fails_in_bounded_time(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{s3_server.free_port()}")
    began = time.monotonic()
    assert main(["verify", f"s3://{bucket}/x"]) == 74
    assert time.monotonic() - began < 30
    assert capsys.readouterr().err.startswith("reshard: Unreachable: ")


@pytest.mark.usefixtures("_two_tries")
def test_a_server_with_an_untrusted_certificate_is_refused(
    server: s3_server.Server, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint.replace("http:", "https:"))
    assert main(["verify", f"s3://{bucket}/x"]) == 78
    assert capsys.readouterr().err.startswith("reshard: CertificateRefused: ")


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "s3://a//b", "s3://a/../b"])
def test_an_invalid_address_is_a_usage_error(address: str) -> None:
    assert main(["verify", address]) == 2


def credentials(folder: Path, key: str, secret: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "accessKeyId").write_text(f"{key}\n")
    (folder / "secretAccessKey").write_text(f"{secret}\n")


def test_credentials_in_a_folder_are_followed_when_they_rotate(
    server: s3_server.Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    folder = tmp_path / "credentials"
    credentials(folder, s3_server.KEY, s3_server.SECRET)
    store = open_store(f"s3://{bucket}/x", StorageOptions(endpoint=server.endpoint, credentials=str(folder)))
    store.write("a", b"1", mode=0o640)
    credentials(folder, "old", "old")
    with pytest.raises(AccessError, match="CredentialsRefused"):
        store.read("a", 1)
    (folder / "secretAccessKey").unlink()
    with pytest.raises(AccessError, match="CredentialsMissing"):
        store.read("a", 1)
    credentials(folder, s3_server.KEY, s3_server.SECRET)
    assert store.read("a", 1) == b"1"


def test_a_resource_with_buckets_is_run_with_its_own_credentials_on_each_side(
    server: s3_server.Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = disk.write(tmp_path, disk.example())
    server.upload(bucket, tmp_path, "in")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name)
    credentials(tmp_path / "secret", s3_server.KEY, s3_server.SECRET)

    def side(prefix: str, secret: str) -> dict[str, object]:
        reach = {"endpoint": server.endpoint, "region": "us-east-1", "addressingStyle": "Path"}
        return {"s3": {"bucket": bucket, "prefix": prefix, "credentialsSecretRef": {"name": secret}, **reach}}

    resource = {
        "apiVersion": "reshard.dev/v1alpha1",
        "kind": "CheckpointTransform",
        "metadata": {"name": "a"},
        "spec": {
            "source": {"storage": side("in/src", "reads"), "strategy": {"path": "in/source.ckpt"}},
            "target": {"storage": side("out", "writes"), "strategy": {"path": "in/target.ckpt"}},
        },
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(resource))
    run = ["run", str(tmp_path / "a.yaml"), "--json", "--secret", f"reads={tmp_path}/secret"]
    assert main(run) == 77  # writing is not allowed
    assert "CredentialsMissing" in capsys.readouterr().err
    assert main([*run, "--secret", f"writes={tmp_path}/secret"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]
    assert disk.differences(made.model, server.download(f"s3://{bucket}/out", tmp_path / "out"), "ckpt") == []
