"""An S3 client that accepts every part at once, to measure the cost of writing without that of sending."""

from __future__ import annotations

import time
from unittest import mock

from reshard.storage.buffers import BufferPool
from reshard.storage.s3 import upload
from reshard.storage.s3.checksums import Checksums

PART_BYTES = 4096


class InstantClient:
    """Accepts everything at once."""

    def create_multipart_upload(self, **_: object) -> dict[str, str]:
        return {"UploadId": "1"}

    def upload_part(self, **_: object) -> dict[str, str]:
        return {"ETag": '"1"'}

    def complete_multipart_upload(self, **named: object) -> None:
        self.completed = named


def _part_size(_: int | None) -> int:
    return PART_BYTES


def processor_seconds(count: int) -> float:
    """The processor time of this process to write an object in so many parts."""
    client = InstantClient()
    with mock.patch.object(upload, "part_size", _part_size):
        named, checksums = {"Bucket": "b", "Key": "k"}, Checksums("None", client, {})
        writer = upload.S3Writer(client, named, checksums, BufferPool(), size=None, memory=1 << 16, copies=False)
        before = time.process_time()
        for _ in range(count):
            writer.write(bytes(PART_BYTES))
        writer.finish()
        seconds = time.process_time() - before
    assert len(client.completed["MultipartUpload"]["Parts"]) == count
    return seconds
