"""A minimal S3 server in memory, for behaviour of servers that the tests cannot run. Loopback only; checks no signatures."""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.storage.protocol import Store

Refusal = tuple[int, str]


@dataclass
class Request:
    """One request of a client.

    Attributes:
        method: GET, PUT and so on.
        bucket: the first part of the path.
        key: the rest of it.
        query: the parameters, each once.
        headers: by their names in lower case.
        body: the content.
    """

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Stored:
    content: bytes
    etag: str
    modified: datetime
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """What an answer states of the object."""
        return {"ETag": self.etag, **self.marks}


@dataclass
class ThinServer:
    """A running server. Every bucket exists.

    Attributes:
        endpoint: its URL.
        objects: its objects by (bucket, key). A key may be the beginning of others, as in AWS, where file systems have a folder.
        uploads: unfinished multipart uploads by ID, as (bucket, key, parts).
        marks: the metadata of uploads, as headers.
        refuse: says which requests are answered with a status and a code instead.
        refusal_headers: the headers of these answers.
        alter: changes the headers of an answer; "" removes one. Returns its body.
        dates: whether answers have a Date header.
        clock: the server's clock.
        longest_page: how many uploads it lists at a time; it refuses to continue a list.
        longest_listing: how many objects it lists at a time.
        lists_by_prefix: whether it lists the uploads of a prefix; else those of an exact key only, as MinIO does.
        requests: all requests.
    """

    endpoint: str = ""
    objects: dict[tuple[str, str], Stored] = field(default_factory=dict)
    uploads: dict[str, tuple[str, str, dict[int, bytes]]] = field(default_factory=dict)
    marks: dict[str, dict[str, str]] = field(default_factory=dict)
    refuse: Callable[[Request], Refusal | None] = lambda _: None
    refusal_headers: dict[str, str] = field(default_factory=dict)
    alter: Callable[[Request, dict[str, str], bytes], bytes] = lambda _, __, body: body
    dates: bool = True
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    longest_page: int = 1000
    longest_listing: int = 1000
    lists_by_prefix: bool = True
    requests: list[Request] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def put(self, bucket: str, key: str, content: bytes) -> Stored:
        """Store an object."""
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        found = self.objects[bucket, key] = Stored(content, etag, self.clock().replace(microsecond=0))
        return found

    def environment(self) -> dict[str, str]:
        """Return the environment variables by which a program reaches it."""
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        return {"AWS_ENDPOINT_URL_S3": self.endpoint, "AWS_DEFAULT_REGION": "us-east-1", **dict.fromkeys(names, "thin-server")}

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Answer a request with status, headers and body."""
        with self.lock:
            self.requests.append(request)
            refused = self.refuse(request) or _precondition(request, self.objects.get((request.bucket, request.key)))
            if refused is not None:
                status, _, body = _refused(*refused)
                return status, self.refusal_headers, body
            if "uploads" in request.query or "uploadId" in request.query:
                return self._of_upload(request)
            if request.method == "PUT":
                return self._put(request)
            if request.method == "POST" and "delete" in request.query:
                return self._delete_many(request)
            if request.method == "DELETE":
                self.objects.pop((request.bucket, request.key), None)
                return 204, {}, b""
            return self._list(request) if not request.key else self._get(request)

    def _get(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        found = self.objects.get((request.bucket, request.key))
        if found is None:
            return _refused(404, "NoSuchKey")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if wanted is None:
            return 200, found.headers, found.content
        content = found.content[int(wanted[1]) : int(wanted[2]) + 1]
        end = int(wanted[1]) + len(content) - 1
        return 206, {**found.headers, "Content-Range": f"bytes {wanted[1]}-{end}/{len(found.content)}"}, content

    def _list(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        prefix, most = request.query.get("prefix", ""), int(request.query.get("max-keys", self.longest_listing))
        delimiter, after = request.query.get("delimiter", ""), request.query.get("continuation-token", "")
        lines: dict[str, str] = {}
        for (bucket, key), found in sorted(self.objects.items()):
            if bucket != request.bucket or not key.startswith(prefix):
                continue
            inside, separator, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if separator:
                folder = prefix + inside + separator
                lines[folder] = f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
            else:
                lines[key] = (
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(found.content)}</Size><ETag>{escape(found.etag)}</ETag>"
                    f"<LastModified>{found.modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
                )
        left = [name for name in lines if name > after]
        more = f"<NextContinuationToken>{escape(left[most - 1])}</NextContinuationToken>" if len(left) > most else ""
        state = f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}"
        listed = "".join(lines[name] for name in left[:most])
        return 200, {}, f"<ListBucketResult>{state}{listed}</ListBucketResult>".encode()

    def _put(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        if "x-amz-copy-source" not in request.headers:
            return 200, {"ETag": self.put(request.bucket, request.key, request.body).etag}, b""
        bucket, _, key = unquote(request.headers["x-amz-copy-source"]).partition("/")
        found, same = self.objects.get((bucket, key)), request.headers.get("x-amz-copy-source-if-match")
        if found is None:
            return _refused(404, "NoSuchKey")
        if same not in (None, found.etag):
            return _refused(412, "PreconditionFailed")
        made = self.put(request.bucket, request.key, found.content)
        return 200, {}, f"<CopyObjectResult><ETag>{escape(made.etag)}</ETag></CopyObjectResult>".encode()

    def _delete_many(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        answers = []
        for key in map(unescape, re.findall(r"<Key>([^<]*)</Key>", request.body.decode())):
            refused = self.refuse(Request("DELETE", request.bucket, key, {}, {}, b""))
            if refused is None:
                self.objects.pop((request.bucket, key), None)
                answers.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
            else:
                answers.append(f"<Error><Key>{escape(key)}</Key><Code>{refused[1]}</Code></Error>")
        return 200, {}, f"<DeleteResult>{''.join(answers)}</DeleteResult>".encode()

    def _list_uploads(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        if "key-marker" in request.query:
            return _refused(400, "InvalidArgument")
        prefix = request.query.get("prefix", "")
        found = sorted((k, i) for i, (b, k, _) in self.uploads.items() if b == request.bucket and self._lists(k, prefix))
        page = [f"<Upload><Key>{escape(k)}</Key><UploadId>{i}</UploadId></Upload>" for k, i in found[: self.longest_page]]
        more = str(len(found) > self.longest_page).lower()
        lines = f"<IsTruncated>{more}</IsTruncated>{''.join(page)}"
        return 200, {}, f"<ListMultipartUploadsResult>{lines}</ListMultipartUploadsResult>".encode()

    def _lists(self, key: str, prefix: str) -> bool:
        return key.startswith(prefix) if self.lists_by_prefix else key == prefix

    def _of_upload(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        bucket, key, upload = request.bucket, request.key, request.query.get("uploadId", "")
        if request.method == "GET":
            return self._list_uploads(request)
        if not upload:
            upload = f"upload-{len(self.requests)}"
            self.uploads[upload] = (bucket, key, {})
            self.marks[upload] = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
            return 200, {}, f"<R><UploadId>{upload}</UploadId></R>".encode()
        if upload not in self.uploads:
            return _refused(404, "NoSuchUpload")
        parts = self.uploads[upload][2]
        if request.method == "PUT":
            parts[int(request.query["partNumber"])] = request.body
            return 200, {"ETag": f'"{hashlib.md5(request.body, usedforsecurity=False).hexdigest()}"'}, b""
        del self.uploads[upload]
        if request.method == "DELETE":
            return 204, {}, b""
        made = self.put(bucket, key, b"".join(parts[number] for number in sorted(parts)))
        made.marks = self.marks.pop(upload)
        return 200, {}, f"<R><ETag>{escape(made.etag)}</ETag></R>".encode()


def _precondition(request: Request, there: Stored | None) -> Refusal | None:
    new, same = request.headers.get("if-none-match"), request.headers.get("if-match")
    if request.method == "DELETE" and same is not None and there is None:
        return 404, "NoSuchKey"
    failed = (new == "*" and there is not None) or (same is not None and (there is None or there.etag != same))
    return (412, "PreconditionFailed") if failed else None


def _refused(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {}, f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms between its headers and its body
    server: _Listener

    def _any(self) -> None:
        path = urlsplit(self.path)
        bucket, _, key = unquote(path.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(path.query, keep_blank_values=True).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", "0")))
        thin = self.server.thin
        request = Request(self.command, bucket, key, query, headers, body)
        status, more, content = thin.answer(request)
        self.send_response_only(status)
        if thin.dates:
            more["Date"] = f"{thin.clock():%a, %d %b %Y %H:%M:%S GMT}"
        more = {**more, "Content-Length": str(len(content))}
        content = thin.alter(request, more, content)
        for name, value in more.items():
            if value:
                self.send_header(name, value)
        if not more["Content-Length"]:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content if self.command != "HEAD" else b"")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        pass


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, thin: ThinServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.thin = thin


def write_parts(store: Store, content: bytes, part: int) -> None:
    """Write the object `y` with memory for two parts of this length."""
    writer = store.create("y", temporary="", mode=None, size=len(content), memory=2 * part)
    try:
        writer.write(content)
        writer.finish()
    finally:
        writer.abort()


@contextmanager
def running() -> Iterator[ThinServer]:
    """A thin server while the body runs."""
    thin = ThinServer()
    with _Listener(thin) as listener:
        thin.endpoint = f"http://127.0.0.1:{listener.server_address[1]}"
        thread = Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield thin
        finally:
            listener.shutdown()
            thread.join()
