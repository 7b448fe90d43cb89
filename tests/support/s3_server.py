"""Real S3 servers on this machine's loopback, with their objects in a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY, SECRET = "reshard-test", "reshard-test-secret"
# Where their programs are.
PROGRAMS = {"versitygw": "RESHARD_S3_SERVER", "minio": "RESHARD_MINIO"}


@dataclass(frozen=True)
class Server:
    """A server that is running.

    Attributes:
        endpoint: its URL.
        folder: where its buckets are folders.
        key: of its owner.
        secret: of its owner.
        authority: the file with the certificate that vouches for it; None: it has no TLS.
    """

    endpoint: str
    folder: Path
    key: str = KEY
    secret: str = SECRET
    authority: Path | None = None

    @lru_cache(maxsize=8)  # noqa: B019 - servers are few, and making a client takes longer than a request
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
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            verify=self.authority and str(self.authority),
            config=config,
        )

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def uploads(self, bucket: str) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted. Both servers list them so, of a whole bucket."""
        return [u["Key"] for u in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    def upload(self, bucket: str, folder: Path, prefix: str) -> str:
        """Upload a folder. Returns its address."""
        client = self.client()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}"

    def download(self, address: str, folder: Path) -> Path:
        """Download the files at an address into an empty folder."""
        client = self.client()
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        shutil.rmtree(folder, ignore_errors=True)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
            for found in page.get("Contents", ()):
                path = folder / found["Key"].removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read())
        return folder

    def administer(self, *arguments: str) -> None:
        """Change its users, such as `create-user --access KEY --secret SECRET --role admin` and `delete-user --access KEY`."""
        owner = ["--access", self.key, "--secret", self.secret, "--endpoint-url", self.endpoint]
        subprocess.run([os.environ["RESHARD_S3_SERVER"], "admin", *owner, *arguments], check=True, capture_output=True)

    def environment(self) -> dict[str, str]:
        """Return the environment variables by which a program reaches it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port without a listener."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    folder: Path,
    host: str = "127.0.0.1",
    key: str = KEY,
    secret: str = SECRET,
    *,
    certificates: Path | None = None,
    within: tuple[str, ...] = (),
) -> Iterator[Server]:
    """A versitygw while the body runs; with TLS, if it is given a folder of `cluster.certificates`.

    Its buckets are also hosts below `localhost`. `within` is a command before its own, which puts it elsewhere.
    """
    port = free_port("127.0.0.1" if within else host)
    users = folder.with_name(f"{folder.name}-users")
    for place in (folder, users):
        place.mkdir(parents=True, exist_ok=True)
    options = ["--access", key, "--secret", secret, "--port", f"{host}:{port}", "--iam-dir", str(users)]
    options += ["--keep-alive", "--quiet", "--virtual-domain", "localhost"]
    if certificates is not None:
        options += ["--cert", str(certificates / "server.crt"), "--key", str(certificates / "server.key")]
    command = [*within, os.environ[PROGRAMS["versitygw"]], *options, "posix", str(folder)]
    authority = certificates and certificates / "authority.crt"
    with _listening(command, host, port):
        yield Server(f"{'https' if certificates else 'http'}://{host}:{port}", folder, key, secret, authority)


@contextmanager
def running_minio(folder: Path) -> Iterator[Server]:
    """A MinIO while the body runs."""
    folder.mkdir(parents=True, exist_ok=True)
    host, port = "127.0.0.1", free_port()
    environment = {"MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
    command = [os.environ[PROGRAMS["minio"]], "server", "--quiet", "--address", f"{host}:{port}", str(folder)]
    with _listening(command, host, port, HOME=str(folder.parent), **environment):
        found = Server(f"http://{host}:{port}", folder)
        for _ in range(200):  # it listens before it is ready
            with contextlib.suppress(ClientError):
                found.client().list_buckets()
                break
            time.sleep(0.05)
        yield found


@contextmanager
def _listening(command: list[str], host: str, port: int, **environment: str) -> Iterator[None]:
    """A program that listens while the body runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | environment)
    try:
        for _ in range(1200):
            with socket.socket() as probe:
                if probe.connect_ex((host, port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise TimeoutError(command)
        yield
    finally:
        process.terminate()
        process.wait()
