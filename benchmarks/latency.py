"""Commit and repeated runs of a checkpoint of many small ranks, on a server that answers after some milliseconds.

The ranks are written without delay first. Measured are `reshard commit`, and `reshard transform` once everything is complete. The
server (versitygw) and the proxy that delays its answers run on this machine and share its processors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from s3_server import Server, free_port, running

from cases import FOLDER, Case, Tensor, make

if TYPE_CHECKING:
    from collections.abc import Iterator

RESHARD = str(Path(sys.executable).with_name("reshard"))
_CHUNK = 1 << 16


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass bytes on, each `delay` seconds after it arrived."""
    loop, sending = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def send() -> None:
        while True:
            due, content = await sending.get()
            await asyncio.sleep(due - loop.time())
            writer.write(content)
            if not content:
                writer.close()
                return

    sender = loop.create_task(send())
    content = b"-"
    while content:
        try:
            content = await reader.read(_CHUNK)
        except ConnectionError:
            content = b""
        sending.put_nowait((loop.time() + delay, content))
    await sender


def _serve(port: int, host: str, upstream: int, delay: float) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection(host, upstream)
        await asyncio.gather(_forward(reader, requests, 0), _forward(answers, writer, delay))

    async def serve() -> None:
        async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def delayed(server: Server, seconds: float) -> Iterator[Server]:
    """Run the body with the same server behind a proxy that delays every answer."""
    port = free_port()
    host, _, upstream = server.endpoint.rpartition("/")[2].partition(":")
    proxy = multiprocessing.get_context("spawn").Process(target=_serve, args=(port, host, int(upstream), seconds))
    proxy.start()
    try:
        while proxy.is_alive():
            with suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        yield Server(f"http://127.0.0.1:{port}", server.folder)
    finally:
        proxy.terminate()
        proxy.join()


def upload(server: Server, bucket: str, folder: Path, prefix: str) -> None:
    """Upload the files of a folder, many at a time."""
    client = server.client()

    def put(path: Path) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, (path for path in folder.rglob("*") if path.is_file())))


def reshard(server: Server, *arguments: str) -> dict[str, Any]:
    """Run a command; return its wall and processor time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([RESHARD, *arguments, "--json"], env=os.environ | server.environment(), stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    load = round(os.getloadavg()[0], 1)
    return {"command": arguments[0], "seconds": round(wall, 1), "processor_seconds": round(used, 1), "load": load}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="by which every answer is delayed")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    ranks = arguments.ranks
    tensors = (Tensor("w", (ranks, 16), 0, 0), Tensor("norm", (16,), -1, -1))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, running(Path(folder) / "s3") as server:
        place = make(Case(f"ranks-{ranks}", f"{ranks} tiny ranks", tensors, ranks, ranks), Path(folder))
        bucket = server.bucket()
        upload(server, bucket, place / "src", "src")
        sides = ["--source", f"s3://{bucket}/src", "--target", f"s3://{bucket}/out"]
        sides += ["--source-strategy", str(place / "source.ckpt"), "--target-strategy", str(place / "target.ckpt")]
        local = Path(folder) / "out"
        written = reshard(server, "transform", *sides, "--target", str(local), "--no-commit", "--workers", "8")
        print("prepared", json.dumps(written), flush=True)
        upload(server, bucket, local, "out")
        with delayed(server, arguments.milliseconds / 1000) as far:
            for command in (["commit", f"s3://{bucket}/out"], ["transform", *sides]):
                print(f"{ranks} ranks", json.dumps(reshard(far, *command)), flush=True)


if __name__ == "__main__":
    main()
