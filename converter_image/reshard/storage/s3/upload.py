"""Write one object as a multipart upload. Parts are sent while the next part is being filled."""

from __future__ import annotations

import contextlib
import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore import exceptions as boto

from reshard.storage.cancellable import cancelled_by, current_check, not_cancelled
from reshard.storage.s3.checksums import checksum, completed_part, create_upload, headers_of
from reshard.storage.s3.failures import code_of, failures, stated
from reshard.storage.s3.parts import buffers, copies, part_size
from reshard.storage.s3.prepared import Answer, Prepared, continued

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.client import BaseClient

    from reshard.storage.buffers import BufferPool
    from reshard.storage.protocol import Reader
    from reshard.storage.s3.checksums import Checksums
    from reshard.storage.traffic import Meter

# Identifies, after a lost response, the existing object as the one that was sent.
_MARK = "reshard-upload"
_ABORT_SECONDS = 1.0


# urllib3 reads 16 KiB of a file at a time, and sends all bytes that it gets.
_BLOCK_BYTES = 1 << 20


class Body:
    """The body of a part. Botocore sends it without copying, in large blocks, and reads it again on a retry."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._at = 0

    def __len__(self) -> int:
        return len(self._content)

    def read(self, length: int = -1) -> memoryview:
        """Return the next bytes. If few bytes are requested, return more of them."""
        end = len(self._content) if length < 0 else self._at + max(length, _BLOCK_BYTES)
        block = self._content[self._at : end]
        self._at += len(block)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position, relative to the start, the current position or the end."""
        self._at = offset + (0, self._at, len(self._content))[whence]
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at


class _Upload(NamedTuple):
    """A multipart upload.

    Attributes:
        id: its ID.
        kind: kind of checksum of its parts.
        part: request that sends one of its parts.
    """

    id: str
    kind: str
    part: Prepared


class S3Writer:
    """A new object. It appears when `finish` completes the upload.

    Memory for `buffers()` parts is allocated on demand and reused. Content that fits into one part is sent with one request at
    the end.

    Args:
        client: S3 client.
        named: bucket and key of the object.
        checksums: kind of the checksums of the server.
        idle: pool of buffers for parts.
        size: length of the object in bytes, if it is known.
        memory: maximum number of bytes that are buffered.
        copies: whether the server copies some parts.
    """

    def __init__(
        self,
        client: BaseClient,
        named: dict[str, str],
        checksums: Checksums,
        idle: BufferPool,
        *,
        size: int | None,
        memory: int,
        copies: bool,
    ) -> None:
        self._client = client
        self._object = named  # by bucket and key
        self._name = f"s3://{named['Bucket']}/{named['Key']}"
        self._checksums, self._copies, self._cancelled = checksums, copies, current_check()
        self._part_bytes = part_size(size)
        self._free = threading.Semaphore(buffers(size, memory))
        self._pool = ThreadPoolExecutor(buffers(size, memory) - 1, thread_name_prefix="reshard-upload")
        self._idle = idle
        self._filling: memoryview | None = None
        self._filled = 0
        self._mark = uuid.uuid4().hex
        self._upload: _Upload | None = None
        self._sent: list[Future[dict[str, Any]]] = []
        self._failure: BaseException | None = None  # of the first part that failed
        self._open = True

    def write(self, data: memoryview | bytes | bytearray) -> None:
        """See `Writer.write`."""
        view = memoryview(data)
        if self._filling is not None and view.obj is self._filling.obj:  # it was produced in `room`
            self._filled += len(view)
            return
        while view:
            room = self._room_in_part()
            n = min(len(view), len(room))
            room[:n] = view[:n]
            self._filled += n
            view = view[n:]

    def room(self, nbytes: int) -> memoryview | None:
        """See `Writer.room`. Returns the rest of the part that is being filled, if it is long enough."""
        room = self._room_in_part()
        return room if len(room) >= nbytes else None

    def _room_in_part(self) -> memoryview:
        """Return the rest of the part that is being filled, or a new part if it is full."""
        if self._filled == self._part_bytes:
            self._send()
        if self._filling is None:
            self._filling = self._buffer()
        return self._filling[self._filled :]

    @property
    def any_order(self) -> bool:
        """See `Writer.any_order`."""
        return False

    def write_later(self, data: memoryview) -> None:
        """See `Writer.write_later`. Another thread would not save time, because this only copies the bytes."""
        self.write(data)

    def copy(self, reader: Reader, offset: int, length: int, meter: Meter) -> None:
        """See `Writer.copy`."""
        self.cut()
        upload = self._begun()
        for at, n in copies(offset, length):
            self._check()
            self._submit(self._copy_part, upload, reader, at, n, meter)

    def _submit(self, send: Callable[..., dict[str, Any]], *arguments: object) -> None:
        """Start to send or copy the next part."""
        future = self._pool.submit(self._unless_cancelled, send, len(self._sent) + 1, *arguments)
        future.add_done_callback(self._note)
        self._sent.append(future)

    def _unless_cancelled(self, send: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
        with cancelled_by(self._cancelled):
            return send(*arguments)

    def _note(self, future: Future[dict[str, Any]]) -> None:
        if not future.cancelled() and self._failure is None:
            self._failure = future.exception()

    def _check(self) -> None:
        """Raise the error of a part that has failed."""
        if self._failure is not None:
            with failures(self._name):
                raise self._failure

    def _copy_part(self, number: int, upload: _Upload, reader: Reader, offset: int, length: int, meter: Meter) -> dict[str, Any]:
        bucket, _, key = reader.name.removeprefix("s3://").partition("/")
        found = self._client.upload_part_copy(
            **self._object,
            UploadId=upload.id,
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": key},
            CopySourceRange=f"bytes={offset}-{offset + length - 1}",
            CopySourceIfMatch=reader.version,
        )
        meter.add(copied=length)
        return completed_part(number, stated(stated(found, "CopyPartResult"), "ETag"), {})

    def cut(self) -> None:
        """See `Writer.cut`."""
        self._send()

    def flush(self) -> None:
        """See `NewFile.flush`. Sends the last part, so that the completion of the upload makes the object visible.

        The object cannot be read before. Another process can abort the upload until then.
        """
        with failures(self._name):
            self._send()
            for future in self._sent:
                future.result()

    def finish(self) -> None:
        """See `Writer.finish`."""
        with failures(self._name):
            if self._upload is None:
                content = bytes(memoryview(self._filling or b"")[: self._filled])
                self._checksums.send(self._client.put_object, content, **self._object)
            else:
                self._send()
                parts = [future.result() for future in self._sent]
                try:
                    self._client.complete_multipart_upload(
                        **self._object, UploadId=self._upload.id, MultipartUpload={"Parts": parts}
                    )
                except boto.ClientError as error:
                    if code_of(error) != "NoSuchUpload" or not self._is_there():
                        raise
        self._end()

    def abort(self) -> None:
        """See `Writer.abort`."""
        if self._open:
            self._end()
            for future in self._sent:
                future.cancel()
            wait(self._sent, _ABORT_SECONDS)  # a part that arrives after the abort would stay
            if self._upload is not None:
                with contextlib.suppress(boto.ClientError, boto.BotoCoreError), not_cancelled():
                    self._client.abort_multipart_upload(**self._object, UploadId=self._upload.id)

    def _end(self) -> None:
        self._open = False
        self._pool.shutdown(wait=False)
        if self._filling is not None:
            self._idle.give(self._filling)
        self._filling = None

    def _buffer(self) -> memoryview:
        self._free.acquire()
        self._check()
        return self._idle.take(self._part_bytes)

    def _send(self) -> None:
        """Pass the filled part to another thread, which sends it."""
        if self._filling is None or not self._filled:
            return
        upload, buffer, filled = self._begun(), self._filling, self._filled
        self._filling, self._filled = None, 0
        self._submit(self._send_part, upload, buffer, filled)

    def _begun(self) -> _Upload:
        if self._upload is None:
            with failures(self._name), cancelled_by(self._cancelled):
                kind = self._checksums.of_parts(copies=self._copies)
                named = {**self._object, "Metadata": {_MARK: self._mark}}
                upload = create_upload(self._client, named, kind)
                part = Prepared(self._client, "upload_part", **self._object, UploadId=upload, PartNumber=1)
                self._upload = _Upload(upload, kind, part)
        return self._upload

    def _send_part(self, number: int, upload: _Upload, buffer: memoryview, filled: int) -> dict[str, Any]:
        try:
            self._cancelled()
            content = buffer[:filled]
            carried = checksum(upload.kind, content)
            sent = upload.part.send(headers_of(carried), Body(content), partNumber=number)
            if isinstance(sent, Answer):
                sent.close()
                etag = stated(sent.headers, "ETag")
            else:
                named = {**self._object, "UploadId": upload.id, "PartNumber": number, **carried}
                with continued(sent):
                    etag = stated(self._client.upload_part(**named, Body=Body(content)), "ETag")
            return completed_part(number, etag, carried)
        finally:
            self._idle.give(buffer)
            self._free.release()

    def _is_there(self) -> bool:
        """Return whether the upload was completed by a request whose response was lost."""
        try:
            found = self._client.head_object(**self._object)
        except boto.ClientError:
            return False
        return bool(found.get("Metadata", {}).get(_MARK) == self._mark)
