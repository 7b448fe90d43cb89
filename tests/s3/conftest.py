from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

import places
import pytest
import s3_server

from reshard.storage.s3 import client, retries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], s3_server.Server]]:
    """Return a server by the name of its program, started at the first request."""
    starts = {"versitygw": s3_server.running, "minio": s3_server.running_minio}
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(starts[name](tmp_path_factory.mktemp(name) / "s3")))


@pytest.fixture
def server(request: pytest.FixtureRequest, servers: Callable[[str], s3_server.Server]) -> s3_server.Server:
    """The server of a test: versitygw, unless the test is parametrized with `server`."""
    return servers(getattr(request, "param", "versitygw"))


@pytest.fixture(autouse=True)
def _no_client_stays() -> None:
    """Clients are kept for as long as a process runs, with the environment that they were made in."""
    client.client_of.cache_clear()


@pytest.fixture
def _two_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that fail are repeated once."""
    monkeypatch.setattr(retries, "TRIES", 2)


@pytest.fixture
def bucket(server: s3_server.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket, and the environment in which programs find the server. Its folder is removed after the test."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    created = server.bucket()
    yield created
    shutil.rmtree(server.folder / created, ignore_errors=True)


@pytest.fixture(params=places.SIDES, ids="-to-".join)
def sides(request: pytest.FixtureRequest, server: s3_server.Server, bucket: str, tmp_path: Path) -> places.Sides:
    """Locations of source and target."""
    known = {"s3": places.Bucket(server, bucket, tmp_path), "local": places.Folder(tmp_path)}
    source, target = request.param
    return places.Sides(known[source], known[target])
