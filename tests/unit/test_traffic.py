"""Counts of what is fetched, against what the kernel and a server have counted."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import fault_proxy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic_cases import CASES, made

from reshard.spec.request import Options, Request
from reshard.storage.s3 import client
from reshard.storage.traffic import Traffic
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    import thin_s3
# The program also reads /proc/self/status and /proc/self/io.
MORE_BYTES, MORE_CALLS = 4 << 10, 4
PROGRAM = """
import json, sys
from reshard.spec.request import Options, Request
from reshard.transform.run import transform_checkpoint

def counters():
    with open("/proc/self/io") as found:
        return {name: int(number) for name, number in (line.split(": ") for line in found)}

source, before, after, target, verification = sys.argv[1:]
def run(target):
    options = Options(verification=verification)
    request = Request(source, target, source_strategy=before, target_strategy=after, options=options)
    return transform_checkpoint(request, workers=2)

run(target + "-first")  # imports modules
start = counters()
found = run(target)
end = counters()
numbers = {name: getattr(found, name) for name in found.__slots__ if "bytes" in name or "requests" in name}
print(json.dumps(numbers | {name: end[name] - start[name] for name in ("rchar", "syscr")}))
"""


@pytest.mark.parametrize("verification", ["None", "Sample"])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_counts_the_same(tmp_path: Path, case: str, verification: str) -> None:
    source = made(tmp_path, case)
    places = [source.source, source.source_strategy, source.target_strategy, tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, places), verification], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    fetched, requests = found["bytes_fetched"] + found["other_bytes_fetched"], found["requests"] + found["other_requests"]
    assert 0 <= found["rchar"] - fetched <= MORE_BYTES
    assert 0 <= found["syscr"] - requests <= MORE_CALLS
    assert found["bytes_distinct"] <= found["bytes_fetched"] <= 1.02 * found["bytes_distinct"]
    assert found["bytes_distinct"] <= found["bytes_needed"]
    manifest = json.loads((tmp_path / "out" / "reshard-manifest.json").read_text())
    for name, key in (("bytes_fetched", "bytesFetched"), ("requests", "requests")):
        assert sum(file[key] for file in manifest["files"]) == found[name]
    assert (manifest["bytesNeeded"], manifest["bytesDistinct"]) == (found["bytes_needed"], found["bytes_distinct"])


@pytest.mark.parametrize("fault", [None, "busy", "reset", "truncate"])
def test_a_server_counts_the_same(
    server: thin_s3.ThinServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    made(tmp_path, "mixture")
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        server.put("bucket", str(path.relative_to(tmp_path)), path.read_bytes())
    options = Options(verification="Sample" if fault is None else "None")
    request = Request(
        "s3://bucket/src",
        "s3://bucket/out",
        source_strategy="s3://bucket/source.ckpt",
        target_strategy="s3://bucket/target.ckpt",
        options=options,
    )
    plan = fault_proxy.Plan(fault, 0.1, random.Random(3))
    with fault_proxy.between(server.endpoint, plan) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        client.client_of.cache_clear()
        found = transform_checkpoint(request, workers=2)
    client.client_of.cache_clear()
    assert bool(plan.done) == (fault is not None)
    unseen = found.requests + found.other_requests - len(plan.objects)
    # A connection that was reset, or closed within a body, can lose the request after it.
    assert 0 <= unseen <= (plan.done if fault in ("reset", "truncate") else 0)
    fetched, sent = found.bytes_fetched + found.other_bytes_fetched, sum(plan.objects)
    if fault in ("reset", "truncate"):  # what was sent last may be lost
        assert sent / 2 < fetched <= sent
        assert found.bytes_fetched > found.bytes_distinct
    else:
        assert fetched == sent
    assert found.bytes_distinct < found.bytes_needed
    assert found.bytes_distinct <= found.bytes_fetched <= (1.05 if fault is None else 2) * found.bytes_distinct
    assert sum(rank.bytes_fetched for rank in found.ranks) == found.bytes_fetched
    assert sum(rank.requests for rank in found.ranks) == found.requests


@given(st.tuples(*[st.integers(0, 10**12)] * 3), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_shares_of_what_was_fetched_add_up(numbers: tuple[int, int, int], weights: list[int]) -> None:
    whole = Traffic(*numbers)
    shares = whole.divided(weights)
    assert Traffic.sum(shares) == whole
    if total := sum(weights):
        for share, weight in zip(shares, weights, strict=True):
            assert all(abs(part - n * weight / total) <= 1 + 1e-9 * n for part, n in zip(share, whole, strict=True))
