from __future__ import annotations

from typing import TYPE_CHECKING

import places
import pytest
import s3_server

from reshard.storage.s3 import client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    with s3_server.running(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_client_stays() -> None:
    """Clients are kept for as long as a process runs, with the environment that they were made in."""
    client.client_of.cache_clear()


@pytest.fixture
def bucket(server: s3_server.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and the environment in which programs find the server."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server.bucket()


@pytest.fixture(params=[("s3", "s3"), ("local", "s3"), ("s3", "local")], ids="-to-".join)
def sides(request: pytest.FixtureRequest, server: s3_server.Server, bucket: str, tmp_path: Path) -> places.Sides:
    """Where source and target are."""
    known = {"s3": places.Bucket(server, bucket, tmp_path), "local": places.Folder(tmp_path)}
    source, target = request.param
    return places.Sides(known[source], known[target])
