"""A proxy between a client and an S3 server that applies faults of networks and servers to some requests. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

FAULTS = ("busy", "reset", "stall", "truncate", "wrong", "expired", "slow")
_SLOW_BYTES, _SLOW_SECONDS = 100, 0.1


@dataclass
class Plan:
    """A fault and the requests that it applies to.

    Attributes:
        fault: one of `FAULTS`; None: nothing.
        share: of the requests it is done to.
        chooses: deterministic for a seed, as far as the order of requests is.
        done: how often it was.
        requests: all, as (method, target).
        objects: the number of bytes of the body of each answer to a GET request for an object, as far as it was sent.
        holds: text in the target of requests whose answers are held back until `released`; empty: no requests.
        held: set once one is.
        released: set by whoever has seen enough.
    """

    fault: str | None = None
    share: float = 0.0
    chooses: random.Random = field(default_factory=lambda: random.Random(1))
    done: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    holds: str = ""
    held: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def next(self) -> str | None:
        if self.fault is not None and self.chooses.random() < self.share:
            self.done += 1
            return self.fault
        return None

    async def hold(self, target: str) -> None:
        if self.holds and self.holds in target:
            self.held.set()
            await asyncio.to_thread(self.released.wait)


@dataclass(frozen=True)
class Message:
    head: bytes
    body: bytes

    def header(self, name: str) -> str:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return ""

    @property
    def first(self) -> list[str]:
        return self.head.decode("latin-1").split("\r\n", 1)[0].split(" ")


async def _message(reader: asyncio.StreamReader, *, request: Message | None = None) -> Message | None:
    """A request, or the answer to one."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    found = Message(head, b"")
    if request is not None and (request.first[0] == "HEAD" or found.first[1] in ("204", "304")):
        return found
    if "chunked" in found.header("transfer-encoding"):
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(line, 16) + 2)
            body += line + chunk
            if int(line, 16) == 0:
                return Message(head, body)
    return Message(head, await reader.readexactly(int(found.header("content-length") or 0)))


def _is_object(request: Message) -> bool:
    method, target = request.first[:2]
    return method == "GET" and not any(word in target for word in ("list-type", "uploads", "uploadId"))


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _refusal(status: str, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class _Proxy:
    def __init__(self, upstream: int, plan: Plan) -> None:
        self._upstream, self._plan = upstream, plan

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind: asyncio.StreamWriter | None = None
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            server, behind = await asyncio.open_connection("127.0.0.1", self._upstream, limit=1 << 26)
            while (request := await self._request(reader, writer)) is not None:
                if not await self._answer(request, server, behind, writer):
                    break
        for each in (writer, behind):
            if each is not None:
                each.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        found = Message(head, b"")
        if "100-continue" in found.header("expect").lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")]
        return Message(b"\r\n".join(lines), await reader.readexactly(int(found.header("content-length") or 0)))

    async def _answer(
        self, request: Message, server: asyncio.StreamReader, behind: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> bool:
        """Forward a request with its fault. Return whether the connection can be reused."""
        method, target = request.first[:2]
        self._plan.requests.append((method, target))
        is_object = _is_object(request)
        fault = self._plan.next()
        if fault in ("busy", "expired"):
            self._plan.objects += [0] * is_object
            refusal = _refusal("503 Slow Down", "SlowDown") if fault == "busy" else _refusal("400 Bad Request", "ExpiredToken")
            writer.write(refusal)
            await writer.drain()
            return True
        body = request.body
        if fault == "wrong" and body and method == "PUT":
            body = _flipped(body)
        behind.write(request.head + body)
        await behind.drain()
        answer = await _message(server, request=request)
        if answer is None:
            return False
        await self._plan.hold(target)
        whole = answer.head + answer.body
        if fault == "wrong" and is_object and answer.body:
            whole = answer.head + _flipped(answer.body)
        sent = (len(whole) + len(answer.head)) // 2 if fault in ("reset", "stall", "truncate") else len(whole)
        self._plan.objects += [sent - len(answer.head) if answer.first[1] in ("200", "206") else 0] * is_object
        if fault in ("reset", "stall", "truncate"):
            writer.write(whole[:sent])
            await writer.drain()
            if fault == "stall":
                await asyncio.sleep(30)
            if fault == "reset":
                writer.transport.abort()
            return False
        if fault == "slow":
            for at in range(0, len(whole), _SLOW_BYTES):
                writer.write(whole[at : at + _SLOW_BYTES])
                await writer.drain()
                await asyncio.sleep(_SLOW_SECONDS)
            return True
        writer.write(whole)
        await writer.drain()
        return True


@contextmanager
def between(endpoint: str, plan: Plan) -> Iterator[str]:
    """Run a proxy in front of an endpoint while the body runs; yield its own endpoint."""
    upstream = int(endpoint.rpartition(":")[2])
    loop = asyncio.new_event_loop()
    started: threading.Event = threading.Event()
    ports: list[int] = []

    async def run() -> None:
        proxy = _Proxy(upstream, plan)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 26)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        async with server:
            await server.serve_forever()

    task = loop.create_task(run())
    thread = threading.Thread(target=_until_cancelled, args=(loop, task), daemon=True)
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(_cancel_all, loop)
        thread.join()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def _until_cancelled(loop: asyncio.AbstractEventLoop, task: Awaitable[None]) -> None:
    asyncio.set_event_loop(loop)
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    left = asyncio.all_tasks(loop)  # connections that came in the last moment too
    for each in left:
        each.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(asyncio.sleep(0.05))  # the loop removes closed connections in its next iterations
    loop.close()
