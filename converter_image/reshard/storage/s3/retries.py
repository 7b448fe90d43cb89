"""When a request is sent again, and after which pause: one rule for all requests of a client.

Botocore's own rules share a limited number of retries among all requests of a client, which concurrent requests use up while a
server cannot be reached. Then each request fails at its first try. This module decides for botocore, by an event of its client.
"""

from __future__ import annotations

import random
import time
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from botocore import exceptions as boto
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential
from urllib3.exceptions import HTTPError

from reshard.storage.cancellable import current_check
from reshard.storage.s3.failures import BUSY

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.awsrequest import AWSResponse
    from botocore.client import BaseClient

P = ParamSpec("P")
T = TypeVar("T")

# The pauses between so many tries take about half a minute if the server is busy, and a few seconds otherwise. Then an error is
# raised, and the whole transform may be retried.
TRIES = 8
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
# The server received too few or other bytes than were sent, or received them too slowly.
_PASSING_CODES = {
    *BUSY,
    *("BadDigest", "IncompleteBody", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"),
    *("InternalError", "PriorRequestNotComplete", "RequestTimeout", "RequestTimeoutException"),
}
_PASSING_ERRORS = (boto.ConnectionError, boto.HTTPClientError)
# The longest first pause. It doubles with every try.
_BUSY_SECONDS = 1.0
_OTHER_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 20.0
# A response may demand a pause that is longer by this.
_MOST_DEMANDED_SECONDS = 5.0
_MOST_DIGITS = 9  # Python refuses to convert thousands of them
_CHECK_SECONDS = 0.1

# A response broke off after it had started, so that the client has returned it.
_BROKEN_OFF = (
    boto.ConnectionClosedError,
    boto.IncompleteReadError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.FlexibleChecksumError,
    HTTPError,
)
_LONGEST_SECONDS = 120.0
_LONGEST_WAIT_SECONDS = 10.0


def add_retries(client: BaseClient) -> None:
    """Let a client repeat requests by the rule of this module. Its configuration must permit one try only.

    Between two tries, the client calls `current_check`, which raises if the work was cancelled.
    """
    client.meta.events.register("needs-retry.s3", _repeat)


def _repeat(
    response: tuple[AWSResponse, dict[str, Any]] | None, attempts: int, caught_exception: Exception | None, **_: object
) -> int | None:
    """Wait and return 0, the time in seconds that the client itself should wait, to repeat a request. Otherwise, return None."""
    if attempts >= TRIES:
        return None
    if response is None:
        if not isinstance(caught_exception, _PASSING_ERRORS) or _certificate_refused(caught_exception):
            return None
        seconds = pause(attempts)
    else:
        answer, parsed = response
        code = parsed.get("Error", {}).get("Code")
        if answer.status_code not in _PASSING_STATUSES and code not in _PASSING_CODES:
            return None
        seconds = pause(attempts, busy=code in BUSY, demanded=answer.headers.get("Retry-After", ""))
    current_check()()
    wait(seconds)
    current_check()()
    return 0


def _certificate_refused(error: boto.BotoCoreError) -> bool:
    """Return whether the certificate of the server is not trusted. Other failures of TLS may pass."""
    cause = error.kwargs.get("error")  # of urllib3, which contains that of Python
    return isinstance(cause, HTTPError) and isinstance(next(iter(cause.args), None), SSLCertVerificationError)


def pause(tries: int, *, busy: bool = False, demanded: str = "") -> float:
    """Return the seconds to wait after this number of tries.

    Args:
        tries: number of tries.
        busy: whether the server is busy.
        demanded: header `Retry-After` of the response. A date is ignored.
    """
    longest = min(_LONGEST_PAUSE_SECONDS, (_BUSY_SECONDS if busy else _OTHER_SECONDS) * 2 ** (tries - 1))
    seconds = random.uniform(0, longest)  # noqa: S311 - not for cryptography
    if demanded.isdecimal() and len(demanded) <= _MOST_DIGITS:
        seconds = min(max(seconds, float(demanded)), seconds + _MOST_DEMANDED_SECONDS)
    return seconds


def wait(seconds: float) -> None:
    """Wait, unless the work of the current context is cancelled."""
    check, end = current_check(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _CHECK_SECONDS))


def retrying(request: Callable[P, T], *arguments: P.args, **parameters: P.kwargs) -> T:
    """Send a request, and receive its response. Do both again if the response is interrupted."""
    tries = Retrying(
        retry=retry_if_exception_type(_BROKEN_OFF),
        stop=stop_after_attempt(TRIES) | stop_after_delay(_LONGEST_SECONDS),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT_SECONDS),
        sleep=wait,
        reraise=True,
    )
    return tries(request, *arguments, **parameters)
