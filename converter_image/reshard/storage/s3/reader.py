"""Read one object with range requests for one version. A request is repeated if its response is interrupted."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore import exceptions as boto

from reshard.errors import MissingInputError
from reshard.storage.ahead import GAP_BYTES
from reshard.storage.bounded import BoundedReader
from reshard.storage.cancellable import cancelled_by, current_check
from reshard.storage.s3.failures import InvalidResponseError, changed, failures, stated
from reshard.storage.s3.prepared import Answer, Prepared, continued
from reshard.storage.s3.retries import retrying
from reshard.storage.spans import read_spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from botocore.client import BaseClient

    from reshard.storage.traffic import Meter

# A response is read in pieces that take about a second, so that a slow one is noticed and requested again.
_SMALLEST_PIECE = 1 << 10
_LARGEST_PIECE = 256 << 10  # of a body that allocates memory for each piece
_LARGEST_DIRECT_PIECE = 4 << 20
_PATIENCE_SECONDS = 15.0
_LEAST_BYTES_PER_SECOND = 16 << 10

_LONGEST_SPAN = 4 << 20


class S3Reader(BoundedReader):
    """One version of an object. If the object changes, reads raise an error.

    If the work is cancelled that the reader was created for, see `cancelled_by`, requests are not repeated, in any thread.

    Args:
        client: S3 client.
        bucket: name of the bucket.
        key: key of the object.
        meter: meter of what is fetched.
        size: length in bytes.
        version: ETag of the version.
    """

    def __init__(self, client: BaseClient, bucket: str, key: str, meter: Meter, *, size: int, version: str) -> None:
        self._client, self._bucket, self._key = client, bucket, key
        self._meters: tuple[Meter, ...] = (meter,)
        self._check = current_check()
        self._prepared = Prepared(client, "get_object", Bucket=bucket, Key=key)
        self.name = f"s3://{bucket}/{key}"
        self.size = size
        self.version = version
        self.changed = 0

    @property
    def waits(self) -> bool:
        """See `Reader.waits`."""
        return True

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `Reader.read_into`."""
        self._check_inside(offset, len(view))
        if not view:
            return
        try:
            with failures(self.name), cancelled_by(self._check):
                retrying(self._request, view, offset)
        except MissingInputError as error:
            raise changed(self.name, "was deleted") from error

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """See `Reader.read_runs`. Gaps are read too, if that takes less time than another request."""
        read_spans(self.read_into, view, length, offsets, gap=GAP_BYTES, most=_LONGEST_SPAN)

    def will_read(self, offset: int, length: int) -> None:
        """See `Reader.will_read`. Does nothing."""

    def count_in(self, meter: Meter) -> None:
        """See `Reader.count_in`."""
        self._meters = (*self._meters, meter)

    def close(self) -> None:
        """See `Reader.close`. Does nothing, because no connection is open between requests."""

    def _request(self, view: memoryview, offset: int) -> None:
        self._check()
        wanted = f"bytes={offset}-{offset + len(view) - 1}"
        sent = self._prepared.send({"Range": wanted, "If-Match": self.version})
        if isinstance(sent, Answer):
            self._fill(view, offset, sent)
            return
        named = {"Bucket": self._bucket, "Key": self._key, "Range": wanted, "IfMatch": self.version}
        with continued(sent), response(self._client, self._meters, **named) as found:
            self._check_response(found["ResponseMetadata"]["HTTPHeaders"], view, offset)
            receive(found["Body"], view)

    def _fill(self, view: memoryview, offset: int, answer: Answer) -> None:
        """Fill `view` from the response to a prepared request."""
        try:
            self._check_response(answer.headers, view, offset)
            receive(answer, view, _LARGEST_DIRECT_PIECE)
        finally:
            answer.close()
            for meter in self._meters:
                meter.add(answer.received, 1)

    def _check_response(self, headers: Mapping[str, str], view: memoryview, offset: int) -> None:
        """Check that a response contains the requested bytes of the version that was opened.

        Raises:
            IncompleteReadError: its length differs.
            InvalidResponseError: it does not state its length or range, or the range is another one.
            DataError: it is of another version, although a server must refuse such a request.
        """
        if len(view) < self.size:  # otherwise, the response may be the whole object
            wanted, found = f"bytes {offset}-{offset + len(view) - 1}", stated(headers, "content-range")
            if found.partition("/")[0] != wanted:
                raise InvalidResponseError(problem=f"contains {found} instead of {wanted}")
        length = stated(headers, "content-length")
        if length != str(len(view)):
            raise boto.IncompleteReadError(actual_bytes=length, expected_bytes=len(view))
        if _bare(headers.get("etag", self.version)) != _bare(self.version):
            raise changed(self.name)


def _bare(etag: str) -> str:
    """Return an ETag as some servers list it, without quotes."""
    return etag.removeprefix("W/").strip('"')


@contextmanager
def response(client: BaseClient, meters: Iterable[Meter], **named: str) -> Iterator[dict[str, Any]]:
    """Yield the response to a GET request for an object.

    The meters count the requests, including those that botocore repeats, and the bytes of the body that have been received, even
    if the response breaks off.
    """
    received, requests = 0, 1
    try:
        found = client.get_object(**named)
        requests = _requests(found)
        try:
            yield found
        finally:
            received = found["Body"].tell()
            found["Body"].close()
    except boto.ClientError as error:
        requests = _requests(error.response)
        raise
    finally:
        for meter in meters:
            meter.add(received, requests)


def _requests(answer: dict[str, Any]) -> int:
    return 1 + int(answer.get("ResponseMetadata", {}).get("RetryAttempts", 0))


def receive(body: Any, view: memoryview, largest: int = _LARGEST_PIECE) -> None:
    """Fill `view` from a response's body, in pieces of at most `largest` bytes.

    Raises:
        BotoCoreError: the response is interrupted, or is too slow.
    """
    began, done, piece = time.monotonic(), 0, _SMALLEST_PIECE
    while done < len(view):
        received = body.readinto(view[done : done + piece])
        if not received:
            raise boto.IncompleteReadError(actual_bytes=done, expected_bytes=len(view))
        done += received
        taken = time.monotonic() - began
        if taken > _PATIENCE_SECONDS and done < taken * _LEAST_BYTES_PER_SECOND:
            raise boto.ReadTimeoutError(endpoint_url=f"the server, at {done / taken:.0f} bytes per second")
        piece = max(_SMALLEST_PIECE, min(largest, int(done / max(taken, 0.001))))
