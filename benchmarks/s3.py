"""`make bench-s3`: compare transforms from S3 to S3 with a copy of the same bytes by raw ranged GETs and multipart PUTs.

Server, client and all measured run on this machine, and share its processors. With `--wire` the link between them is what limits
both, and with `--milliseconds` the time until each answer. Every round runs both in turn, and with `--baseline` the `reshard`
command of another build. All figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from s3_server import Server, running

from cases import CASES, FOLDER, make
from latency import delayed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cases import Case

RESHARD = str(Path(sys.executable).with_name("reshard"))
_PART = 8 << 20
_THREADS = 8
_BEHIND_THE_WIRE = "10.231.7.2"


def raw_copy(server: Server, bucket: str, case: str, ranks: int) -> float:
    """Seconds to copy all source bytes into as many objects as the target has, part by part."""
    client = server.client()
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{case}/src/")["Contents"]
    parts = [(o["Key"], at, n) for o in found for at, n in evenly(o["Size"])]
    began = time.perf_counter()
    each = -(-len(parts) // ranks)

    def one(rank: int) -> None:
        key = {"Bucket": bucket, "Key": f"raw/{rank}"}
        upload = client.create_multipart_upload(**key)["UploadId"]

        def part(number: int) -> dict[str, Any]:
            source, at, n = parts[rank * each + number]
            body = client.get_object(Bucket=bucket, Key=source, Range=f"bytes={at}-{at + n - 1}")["Body"].read()
            sent = client.upload_part(**key, UploadId=upload, PartNumber=number + 1, Body=body)
            return {"PartNumber": number + 1, "ETag": sent["ETag"]}

        with ThreadPoolExecutor(_THREADS // 2) as pool:
            done = list(pool.map(part, range(len(parts[rank * each : (rank + 1) * each]))))
        client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload={"Parts": done})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(ranks)))
    return time.perf_counter() - began


def evenly(size: int) -> list[tuple[int, int]]:
    """An object in parts of about 8 MiB, none of them shorter than a part may be."""
    count = max(1, size // _PART)
    cuts = [size * i // count for i in range(count + 1)]
    return [(a, b - a) for a, b in pairwise(cuts)]


def reshard(command: str, server: Server, bucket: str, case: str, *more: str) -> dict[str, Any]:
    """Run a transform. Return its own measurements, its time, and the processor time of the client, in seconds."""
    base = f"s3://{bucket}/{case}"
    sides = ["--source", f"{base}/src", "--source-strategy", f"{base}/source.ckpt", "--target-strategy", f"{base}/target.ckpt"]
    before, began = _processor_seconds(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [command, "transform", *sides, "--target", f"s3://{bucket}/out", "--verification", "none", "--json", *more],
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | server.environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    wall = time.perf_counter() - began
    return {**json.loads(done.stdout), "wall": wall, "processor": _processor_seconds(resource.RUSAGE_CHILDREN) - before}


@contextmanager
def wire(megabits: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """A network namespace behind a link of so many megabits a second each way: its address, and how a program gets into it."""
    name = f"reshard-{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    ours, theirs = f"rsb{os.getpid()}", f"rsc{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name], check=True)
        for prefix, end, address in (((), ours, "10.231.7.1/30"), (inside, theirs, _BEHIND_THE_WIRE + "/30")):
            rate = ["rate", f"{megabits}mbit", "burst", "1mb", "latency", "20ms"]
            for command in (
                ["ip", "address", "add", address, "dev", end],
                ["ip", "link", "set", end, "up"],
                ["tc", "qdisc", "add", "dev", end, "root", "tbf", *rate],
            ):
                subprocess.run([*prefix, *command], check=True)
        yield _BEHIND_THE_WIRE, inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def clear(server: Server, bucket: str, prefix: str) -> None:
    """Delete all objects below a prefix."""
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=found["Key"])


def measure(
    server: Server, seen: Server, bucket: str, case: Case, place: Path, runs: int, builds: dict[str, str], *more: str
) -> None:
    """Measure all programs in turn. Print a line for each. They reach the server as `seen`. The case is put there directly."""
    server.upload(bucket, place, case.name)
    raw: list[tuple[float, float]] = []
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in builds}
    for _ in range(runs):
        began = _processor_seconds(resource.RUSAGE_SELF)
        wall = raw_copy(seen, bucket, case.name, case.target_ranks)
        raw.append((wall, _processor_seconds(resource.RUSAGE_SELF) - began))
        clear(server, bucket, "raw/")
        for name, command in builds.items():
            found[name].append(reshard(command, seen, bucket, case.name, *more))
            clear(server, bucket, "out/")
    clear(server, bucket, f"{case.name}/")
    shown = {"seconds": median(wall for wall, _ in raw), "processor_seconds": median(used for _, used in raw)}
    print(case.what, "raw", json.dumps(shown), flush=True)
    for name, reports in found.items():
        last = reports[-1]
        shown = {
            "seconds": median(each["wall"] for each in reports),
            "speed_of_raw": median(wall / each["wall"] for (wall, _), each in zip(raw, reports, strict=True)),
            "processor_seconds": median(each["processor"] for each in reports),
            "processor_of_raw": median(each["processor"] / used for (_, used), each in zip(raw, reports, strict=True)),
            "peak_mb": round(last["peak_rss_bytes"] / 1e6),
        }
        if "bytes_distinct" in last:  # earlier builds do not count
            shown |= {
                "fetched_over_distinct": round(last["bytes_fetched"] / last["bytes_distinct"], 3),
                "requests": last["requests"],
            }
        if name != "reshard":
            times = zip(found["reshard"], reports, strict=True)
            shown |= {"time_of_it": median(ours["wall"] / each["wall"] for ours, each in times)}
        print(case.what, name, json.dumps(shown), "load", round(os.getloadavg()[0]), flush=True)


def median(values: Iterable[float]) -> float:
    """Return the median, rounded for display."""
    return round(statistics.median(values), 2)


def _processor_seconds(who: int) -> float:
    """Return CPU seconds of the client: this process, or its finished children. The server's are not included."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the requested measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["llama-safetensors", "llama-ckpt", "columns"])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--copy-mode", choices=["client", "server"], default="client", help="who copies long runs")
    parser.add_argument("--baseline", metavar="COMMAND", help="`reshard` of another build, which scripts/baseline.sh installs")
    parser.add_argument("--wire", type=int, metavar="MBIT", help="put the server behind a link this fast (Linux, root)")
    parser.add_argument("--milliseconds", type=float, default=0.0, help="by which a proxy delays every answer")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    builds = {"reshard": RESHARD} | ({"baseline": arguments.baseline} if arguments.baseline else {})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder)))
        host, within = stack.enter_context(wire(arguments.wire)) if arguments.wire else ("127.0.0.1", ())
        server = stack.enter_context(running(folder, host, within=within))
        bucket = server.bucket()
        seen = stack.enter_context(delayed(server, arguments.milliseconds / 1000)) if arguments.milliseconds else server
        for case in CASES:
            if case.name in arguments.cases:
                place = make(case, arguments.folder)
                measure(server, seen, bucket, case, place, arguments.runs, builds, "--copy-mode", arguments.copy_mode)


if __name__ == "__main__":
    main()
