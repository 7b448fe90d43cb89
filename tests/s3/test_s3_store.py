"""The S3 store, on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import s3_server
from store_contract import StoreContract

from reshard.storage import open_store

if TYPE_CHECKING:
    from reshard.storage.protocol import Store


@pytest.mark.parametrize("server", s3_server.PROGRAMS, indirect=True)
class TestS3(StoreContract):
    @pytest.fixture
    def store(self, bucket: str) -> Store:
        return open_store(f"s3://{bucket}/some/prefix")
