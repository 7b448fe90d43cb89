"""Requests that botocore prepares once per object, and that are then sent with many ranges or part numbers.

For every call, botocore validates the parameters, resolves the endpoint, serializes the request and parses the response. This
takes about as much processor time as the transfer of several MiB, and holds the GIL. Only a few headers and the query differ
between the ranges of one object, and between the parts of one upload. Signatures, renewed credentials, proxies, certificates and
timeouts are still those of the client.

If such a request fails, the client takes over: it treats the failure as that of its own first try. Its rules then decide whether
and when to send the request again, and what error to raise.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from botocore import exceptions as boto
from botocore.awsrequest import AWSRequest, AWSResponse
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from botocore.client import BaseClient
    from botocore.signers import RequestSigner

# Private attributes. Without them, requests only take longer.
_SESSION = "_endpoint"  # of a client. A second HTTP session would need its own certificates, proxies, timeouts and connections
_WITHOUT_COPIES = "_fp"  # of a response: that of http.client receives into the caller's memory, but urllib3 allocates and copies
_SUCCESS = {200, 206}


class _Seen(NamedTuple):
    """A request before it is signed."""

    request: AWSRequest
    headers: dict[str, str]
    signer: RequestSigner
    operation: str


class Failure(NamedTuple):
    """The outcome of a prepared request that failed.

    Attributes:
        outcome: response or error. None: the request was not sent, because it could not be prepared.
    """

    outcome: AWSResponse | Exception | None = None


# The request that this thread prepares, once it is known. None: this thread sends its requests.
_preparing: ContextVar[list[_Seen] | None] = ContextVar("_preparing", default=None)
# The outcome of the first try of this thread's next request, if it is known: at most one.
_first_try: ContextVar[list[AWSResponse | Exception]] = ContextVar("_first_try")


def allow_preparing(client: BaseClient) -> None:
    """Add to a client what `Prepared` requires."""
    for operation in ("GetObject", "UploadPart"):  # preparing may require other requests, such as one for credentials
        client.meta.events.register(f"before-sign.s3.{operation}", _remember)
        client.meta.events.register(f"before-send.s3.{operation}", _answer_instead)


def _remember(request: AWSRequest, request_signer: RequestSigner, operation_name: str, **_: object) -> None:
    seen = _preparing.get()
    if seen is not None:
        seen.append(_Seen(request, dict(request.headers.items()), request_signer, operation_name))


def _answer_instead(request: Any, **_: object) -> AWSResponse | None:
    """Return a response, with which botocore does not send the request: an empty one, or that of the prepared request."""
    if _preparing.get() is not None:
        return AWSResponse(request.url, 200, {}, _Nothing())
    if not (known := _first_try.get([])):
        return None
    outcome = known.pop()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


@contextmanager
def continued(failure: Failure) -> Iterator[None]:
    """Let the client continue after a prepared request: what has failed is the first try of its next request in the body."""
    token = _first_try.set([] if failure.outcome is None else [failure.outcome])
    try:
        yield
    finally:
        _first_try.reset(token)


class _Nothing(BytesIO):
    def stream(self, *_: object, **__: object) -> list[bytes]:
        return []


class Answer:
    """A successful response to a prepared request.

    Attributes:
        headers: headers of the response.
        received: number of bytes of the body that were received.
    """

    def __init__(self, answer: AWSResponse) -> None:
        self.headers: Mapping[str, str] = answer.headers
        self.received = 0
        self._raw = answer.raw
        self._body = getattr(answer.raw, _WITHOUT_COPIES, answer.raw)

    def readinto(self, view: memoryview) -> int:
        """Receive the next bytes of the body. Return their number.

        Raises:
            BotoCoreError: the connection is interrupted.
        """
        try:
            received = int(self._body.readinto(view))
        except TimeoutError as error:
            raise boto.ReadTimeoutError(endpoint_url=self._raw.url, error=error) from error
        except OSError as error:
            raise boto.ResponseStreamingError(error=error) from error
        self.received += received
        return received

    def close(self) -> None:
        """Keep the connection if the body is complete. Otherwise, close it."""
        if str(self.received) == self.headers.get("Content-Length"):
            self._raw.drain_conn()
            self._raw.release_conn()
        self._raw.close()


class Prepared:
    """A request that is sent many times. Threads may share it.

    Args:
        client: client after `allow_preparing`.
        method: "get_object" or "upload_part".
        parameters: its parameters.
    """

    def __init__(self, client: BaseClient, method: str, **parameters: object) -> None:
        self._client, self._method, self._parameters = client, method, parameters
        self._endpoint = getattr(client, _SESSION, None)
        self._seen: _Seen | None = None

    def send(self, headers: Mapping[str, str], body: object = b"", **query: object) -> Answer | Failure:
        """Send the request once. Return its response, which must be closed.

        If the request fails in any way, the caller should let the client send it, see `continued`.

        Args:
            headers: headers in addition to those that are prepared.
            body: body of the request.
            query: parameters of the query, in place of those that are prepared.
        """
        if self._endpoint is None:
            return Failure()
        try:
            self._seen = self._seen or self._prepare()
            request = _signed(self._seen, headers, body, query).prepare()
        except boto.BotoCoreError:
            return Failure()
        try:
            answer = self._endpoint.http_session.send(request)
        except boto.BotoCoreError as error:
            return Failure(error)
        if answer.status_code in _SUCCESS:
            return Answer(answer)
        try:
            answer.content  # noqa: B018 - botocore keeps it, and would not catch an error
        except HTTPError as error:
            return Failure(boto.ResponseStreamingError(error=error))
        return Failure(answer)

    def _prepare(self) -> _Seen:
        seen: list[_Seen] = []
        token = _preparing.set(seen)
        try:
            getattr(self._client, self._method)(**self._parameters)
        finally:
            _preparing.reset(token)
        return seen[-1]


def _signed(seen: _Seen, headers: Mapping[str, str], body: object, query: Mapping[str, object]) -> AWSRequest:
    """Return a new request with other headers, and another body and query."""
    prepared, url = seen.request, seen.request.url
    if query:
        address = urlsplit(url)
        given = {**dict(parse_qsl(address.query, keep_blank_values=True)), **query}
        url = address._replace(query=urlencode(given, quote_via=quote)).geturl()
    request = AWSRequest(
        prepared.method, url, {**seen.headers, **headers}, body, auth_path=prepared.auth_path, stream_output=True
    )
    request.context = dict(prepared.context)
    seen.signer.sign(seen.operation, request)
    return request
