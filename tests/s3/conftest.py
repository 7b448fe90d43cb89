from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server]:
    with s3_server.running(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def bucket(server: s3_server.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and the environment in which programs find the server."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server.bucket()
