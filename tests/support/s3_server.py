"""A real S3 server on this machine's loopback, with its objects in a folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY, SECRET = "reshard-test", "reshard-test-secret"


@dataclass(frozen=True)
class Server:
    """A server that is running.

    Attributes:
        endpoint: its URL.
        folder: where its buckets are folders.
    """

    endpoint: str
    folder: Path

    def client(self) -> Any:
        """A client of its own, as other programs would have it."""
        config = Config(
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=32,
        )
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=config,
        )

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def uploads(self, bucket: str) -> list[str]:
        """The keys of multipart uploads that were neither completed nor called off."""
        return [u["Key"] for u in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    def upload(self, bucket: str, folder: Path, prefix: str) -> str:
        """Upload a folder. Returns its address."""
        client = self.client()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}"

    def download(self, address: str, folder: Path) -> Path:
        """Download what is at an address into an empty folder."""
        client = self.client()
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        shutil.rmtree(folder, ignore_errors=True)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for found in page.get("Contents", ()):
                path = folder / found["Key"].removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read())
        return folder

    def environment(self) -> dict[str, str]:
        """What a program finds in its environment to reach it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server while the body runs."""
    program = os.environ["RESHARD_S3_SERVER"]
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [program, "--access", KEY, "--secret", SECRET, "--port", f"127.0.0.1:{port}", "--keep-alive", "--quiet", "posix", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise TimeoutError(program)
        yield Server(f"http://127.0.0.1:{port}", folder)
    finally:
        process.terminate()
        process.wait()
