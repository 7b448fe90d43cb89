"""When a request is sent again, and after which pause.

The standard mode of botocore repeats requests that fail before the response starts, such as those that a busy server refuses. It
waits for a random time that grows exponentially, and for the time in the response. `retrying` repeats the others.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from botocore import exceptions as boto
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential
from urllib3.exceptions import HTTPError

from reshard.storage.s3.failures import code_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.awsrequest import AWSResponse
    from botocore.client import BaseClient

_BROKEN_OFF = (
    boto.ConnectionClosedError,
    boto.IncompleteReadError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.FlexibleChecksumError,
    HTTPError,
)
_NOT_CONNECTED = (boto.ConnectTimeoutError, boto.EndpointConnectionError, boto.ProxyConnectionError)
P = ParamSpec("P")
T = TypeVar("T")

# Tries of a client, and of `retrying`. The client's waits grow to 20 s, together about a minute; then an error is raised, and the
# whole transform may be retried.
TRIES = 8
_LONGEST_SECONDS = 120.0
_LONGEST_WAIT_SECONDS = 10.0
# The server received other bytes than were sent.
_DAMAGED = {"BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
# Newer versions of botocore wait for the milliseconds in this header of a response, at most 5 s longer than they would anyway.
_SHORTEST_PAUSE = "x-amz-retry-after"
_MOST_DIGITS = 9  # Python refuses to convert thousands of them


# Number of the client's last try of this thread's last request.
_last_try: ContextVar[int] = ContextVar("_last_try", default=0)
# Function that raises an error if the work of this thread was cancelled.
_check: ContextVar[Callable[[], None]] = ContextVar("_check", default=lambda: None)


def limit_retries(client: BaseClient) -> None:
    """Let a client heed the `Retry-After` header of a response, up to 5 s, and not repeat requests of cancelled work."""
    client.meta.events.register_first("needs-retry.s3", _before_retry)


@contextmanager
def unless_cancelled(check: Callable[[], None]) -> Iterator[None]:
    """Let the client call `check`, which raises if the work was cancelled, before it repeats requests of the body."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def _before_retry(response: tuple[AWSResponse, dict[str, Any]] | None, attempts: int, **_: object) -> None:
    _last_try.set(attempts)
    _check.get()()
    headers = response[0].headers if response is not None else {}
    if (seconds := headers.get("Retry-After", "")).isdecimal() and len(seconds) <= _MOST_DIGITS:
        headers.setdefault(_SHORTEST_PAUSE, str(int(seconds) * 1000))


def retrying(request: Callable[P, T], *arguments: P.args, **parameters: P.kwargs) -> T:
    """Send a request. Send it again if its response is interrupted, or if the content was damaged in transit.

    Also send it again if botocore has given it up before the last try. For all requests of a client together, botocore limits
    the number of those that it repeats, and does not know about prepared requests that succeed.
    """
    tries = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_attempt(TRIES) | stop_after_delay(_LONGEST_SECONDS),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    return tries(request, *arguments, **parameters)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, boto.ClientError):
        return code_of(error) in _DAMAGED or "RetryQuotaReached" in error.response.get("ResponseMetadata", {})
    if isinstance(error, _NOT_CONNECTED):  # without a response that would state why the client has given up
        return _last_try.get() < TRIES
    return isinstance(error, _BROKEN_OFF)
