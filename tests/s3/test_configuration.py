"""Configuration of access to a bucket: settings of the AWS command line work here."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import disk
import pytest
import s3_server

from cluster import certificates
from reshard.cli import main
from reshard.errors import AccessError, RequestError
from reshard.spec.storage_options import StorageOptions
from reshard.storage import open_store
from reshard.storage.s3 import client, retries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(autouse=True)
def fresh(bucket: str, _two_tries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that know what this test has put into the environment, and give up soon."""
    del bucket
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    client.client_of.cache_clear()


def works(bucket: str, storage_options: StorageOptions | None = None) -> None:
    """An object is written, found and read."""
    store = open_store(f"s3://{bucket}/a", storage_options)
    store.write("b/c", b"1", mode=0o640)
    assert [found.name for found in store.list("b")] == ["c"]
    assert store.read("b/c", 1) == b"1"


def configure(folder: Path, monkeypatch: pytest.MonkeyPatch, server: s3_server.Server, *lines: str, name: str = "some") -> None:
    """Add a profile to an AWS configuration file, as the only source of endpoint and credentials."""
    for variable in ("AWS_ENDPOINT_URL_S3", *CREDENTIALS):
        monkeypatch.delenv(variable, raising=False)
    said = (f"endpoint_url = {server.endpoint}", f"aws_access_key_id = {server.key}", f"aws_secret_access_key = {server.secret}")
    with (folder / "config").open("a") as file:
        file.write("\n".join((f"[profile {name}]", *said, *lines, "")))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))


# How buckets are addressed.


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names below `localhost` that were looked up: they are this machine (RFC 6761), which not every resolver knows."""
    seen: list[str] = []
    resolve = socket.getaddrinfo

    def below_localhost(host: Any, *more: Any, **named: Any) -> Any:
        seen.append(host)
        return resolve("127.0.0.1" if str(host).endswith("localhost") else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", below_localhost)
    return seen


@pytest.mark.parametrize("addressing", ["Path", "Virtual"])
def test_buckets_are_addressed_in_the_path_or_in_the_host(
    server: s3_server.Server, bucket: str, hosts: list[str], addressing: Any
) -> None:
    endpoint = server.endpoint.replace("127.0.0.1", "localhost")
    works(bucket, StorageOptions(endpoint=endpoint, addressing=addressing))
    assert set(hosts) == {f"{bucket}.localhost" if addressing == "Virtual" else "localhost"}


def test_a_profile_defines_how_buckets_are_addressed(
    server: s3_server.Server, bucket: str, hosts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = replace(server, endpoint=server.endpoint.replace("127.0.0.1", "localhost"))
    configure(tmp_path, monkeypatch, named, "s3 =", "  addressing_style = virtual")
    works(bucket, StorageOptions(profile="some"))
    assert set(hosts) == {f"{bucket}.localhost"}


# Certificates that the client trusts.


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    """A server with a certificate of its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    certificates.make(folder / "certificates")
    with s3_server.running(folder / "s3", certificates=folder / "certificates") as found:
        yield found


@pytest.mark.parametrize("way", ["access", "environment", "profile"])
def test_a_configured_ca_bundle_is_trusted(
    trusted: s3_server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    bucket, authority, pauses = trusted.bucket(), str(trusted.authority), list[float]()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", trusted.endpoint)
    monkeypatch.setattr(retries, "wait", pauses.append)
    with pytest.raises(RequestError, match="CertificateRefused"):
        works(bucket)
    assert pauses == []  # the same server would be refused again
    client.client_of.cache_clear()
    storage_options = StorageOptions()
    if way == "environment":
        monkeypatch.setenv("AWS_CA_BUNDLE", authority)
    elif way == "profile":
        configure(tmp_path, monkeypatch, trusted, f"ca_bundle = {authority}")
        storage_options = StorageOptions(profile="some")
    else:
        storage_options = StorageOptions(ca_bundle=authority)
    works(bucket, storage_options)


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\x00\xff"])
def test_authorities_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=f"CaBundleInvalid: {path}"):
        open_store("s3://bucket/a", StorageOptions(ca_bundle=str(path)))


# Who the client is.


def test_each_side_has_the_server_and_the_keys_of_its_profile(
    server: s3_server.Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    base = server.upload(bucket, made.folder, "in")
    with s3_server.running(tmp_path / "other", key="other") as other:
        target = f"s3://{other.bucket()}/out"
        configure(tmp_path, monkeypatch, server, name="reads")
        configure(tmp_path, monkeypatch, other, name="writes")
        sides = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt", "--source-profile", "reads"]
        sides += ["--target", target, "--target-strategy", str(made.target_strategy), "--target-profile"]
        assert main(["transform", *sides, "reads"]) == 66
        assert main(["transform", *sides, "writes"]) == 0
        assert disk.differences(made.model, other.download(target, tmp_path / "out"), "ckpt") == []


class Issuer(ThreadingHTTPServer):
    """Gives the credentials of a server to whoever has a token of an identity; and is a server that wants a session's token.

    Attributes:
        token: of the identity.
        session: the token of the session that it has opened.
        asked: how often it gave credentials.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.token, self.session, self.asked = "of-this-pod", "session-1", 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Issuer

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        action, token, role = (asked.get(name) for name in ("Action", "WebIdentityToken", "RoleArn"))
        if (action, token, role) != (["AssumeRoleWithWebIdentity"], [self.server.token], ["arn:aws:iam::1:role/reshard"]):
            self._answer(400, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code></Error></ErrorResponse>")
            return
        self.server.asked += 1
        self._answer(
            200,
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
            f"<AccessKeyId>{s3_server.KEY}</AccessKeyId><SecretAccessKey>{s3_server.SECRET}</SecretAccessKey>"
            f"<SessionToken>{self.server.session}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
            "</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>",
        )

    def do_GET(self) -> None:
        if self.headers["x-amz-security-token"] != self.server.session:
            self._answer(403, "<Error><Code>InvalidToken</Code><Message>The token is not valid.</Message></Error>")
        else:
            self._answer(200, "<ListBucketResult/>")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def issuing() -> Iterator[Issuer]:
    with Issuer() as issuer:
        thread = Thread(target=issuer.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield issuer
        finally:
            issuer.shutdown()
            thread.join()


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize("way", ["environment", "folder", "profile"])
def test_a_session_is_known_by_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    storage_options = StorageOptions()
    with issuing() as issuer:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", issuer.url)
        if way == "environment":
            monkeypatch.setenv("AWS_SESSION_TOKEN", "session-1")
        elif way == "folder":
            for name in ("accessKeyId", "secretAccessKey", "sessionToken"):
                (tmp_path / name).write_text("session-1")
            storage_options = StorageOptions(credentials=str(tmp_path))
        else:
            configure(tmp_path, monkeypatch, s3_server.Server(issuer.url, tmp_path), "aws_session_token = session-1")
            storage_options = StorageOptions(profile="some")
        store = open_store("s3://bucket/a", storage_options)
        assert store.list("") == []
        issuer.session = "session-2"
        with pytest.raises(AccessError, match=r"CredentialsRefused.*InvalidToken.*renew the credentials"):
            store.list("")
        if way == "folder":
            (tmp_path / "sessionToken").write_text("session-2")
            assert store.list("") == []


def test_a_pod_is_identified_by_its_token(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    token = tmp_path / "token"
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/reshard")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    with issuing() as issuer:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", issuer.url)
        with pytest.raises(AccessError, match=f"CredentialsMissing.*{token}"):
            works(bucket)
        token.write_text("of another pod")
        with pytest.raises(AccessError, match=r"CredentialsRefused.*InvalidIdentityToken"):
            works(bucket)
        token.write_text(issuer.token)
        issuer.session = ""  # the real server opens no sessions, and refuses their tokens
        works(bucket)
        assert issuer.asked == 1
