"""Requests that botocore prepares once per object, and that are then sent with many ranges or part numbers.

For every call, botocore validates the parameters, resolves the endpoint, serializes the request and parses the response. This
takes about as much processor time as the transfer of several MiB, and holds the GIL. Only a few headers and the query differ
between the ranges of one object, and between the parts of one upload. Signatures, renewed credentials, proxies, certificates and
timeouts are still those of the client.
"""

from __future__ import annotations

from contextvars import ContextVar
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from botocore import exceptions as boto
from botocore.awsrequest import AWSRequest, AWSResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

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


# The request that this thread prepares, once it is known. None: this thread sends its requests.
_preparing: ContextVar[list[_Seen] | None] = ContextVar("_preparing", default=None)


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
    """Return an empty response, with which botocore does not send the request."""
    return AWSResponse(request.url, 200, {}, _Nothing()) if _preparing.get() is not None else None


class _Nothing(BytesIO):
    def stream(self, *_: object, **__: object) -> list[bytes]:
        return []


class Answer:
    """A successful response to a prepared request.

    Attributes:
        headers: headers of the response.
        length: length of its body in bytes. -1 means that the server does not state it.
        received: number of bytes of the body that were received.
    """

    def __init__(self, answer: AWSResponse) -> None:
        self.headers: Mapping[str, str] = answer.headers
        length = answer.headers.get("Content-Length", "")
        self.length = int(length) if length.isdecimal() else -1
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
        if self.received == self.length:
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

    def send(self, headers: Mapping[str, str], body: object = b"", **query: object) -> Answer | None:
        """Send the request once. Return its response, which must be closed.

        Return None if the request fails in any way. The client should then send it, because it repeats requests, follows
        redirects and reports errors.

        Args:
            headers: headers in addition to those that are prepared.
            body: body of the request.
            query: parameters of the query, in place of those that are prepared.
        """
        if self._endpoint is None:
            return None
        try:
            self._seen = self._seen or self._prepare()
            request = _signed(self._seen, headers, body, query)
            answer = self._endpoint.http_session.send(request.prepare())
        except boto.BotoCoreError:
            return None
        if answer.status_code not in _SUCCESS:
            answer.raw.close()
            return None
        return Answer(answer)

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
