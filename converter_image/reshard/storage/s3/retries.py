"""Retries of requests whose responses are interrupted. Botocore only retries requests that fail before the response starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from botocore import exceptions as boto
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential
from urllib3.exceptions import HTTPError

from reshard.storage.s3.failures import code_of

if TYPE_CHECKING:
    from collections.abc import Callable

_BROKEN_OFF = (
    boto.ConnectionClosedError,
    boto.IncompleteReadError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.FlexibleChecksumError,
    HTTPError,
)
P = ParamSpec("P")
T = TypeVar("T")

_TRIES = 8
_LONGEST_SECONDS = 120.0
_LONGEST_WAIT_SECONDS = 10.0
# The server received other bytes than were sent.
_DAMAGED = {"BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}


def retrying(request: Callable[P, T], *arguments: P.args, **parameters: P.kwargs) -> T:
    """Send a request. Send it again if its response is interrupted, or if the content was damaged in transit."""
    tries = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_attempt(_TRIES) | stop_after_delay(_LONGEST_SECONDS),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT_SECONDS),
        reraise=True,
    )
    return tries(request, *arguments, **parameters)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, boto.ClientError):
        return code_of(error) in _DAMAGED
    return isinstance(error, _BROKEN_OFF)
