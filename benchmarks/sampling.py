"""The share of the comparison of copies in a transform of 2.1 GB, with 1, 8 and 64 replicas of each slice.

The files of replicas are hard links to one file, so the source takes the space of one replica.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from cases import FOLDER, LLAMA_2_GB, Case, make
from reshard.layout import Layout
from reshard.progress import Silent
from reshard.spec.request import Request
from reshard.storage.local import LocalReader
from reshard.strategy import StrategyFile, dump
from reshard.transform import prepare
from reshard.transform.inputs import Inputs

if TYPE_CHECKING:
    from collections.abc import Callable

RESHARD = str(Path(sys.executable).with_name("reshard"))
_TENSOR_PARALLEL, _TARGET = 4, 2
_MOST_SHARE = 0.02


def replicated(base: Path, place: Path, replicas: int) -> None:
    """Write a source in which each slice has a number of replicas."""
    shutil.rmtree(place, ignore_errors=True)
    for rank in range(replicas * _TENSOR_PARALLEL):
        shutil.copytree(base / "src" / f"rank_{rank % _TENSOR_PARALLEL}", place / "src" / f"rank_{rank}", copy_function=os.link)
    layouts = {}
    for tensor in LLAMA_2_GB:
        one = tensor.layout(_TENSOR_PARALLEL, tensor.source)
        layouts[tensor.name] = Layout((replicas, _TENSOR_PARALLEL), one.tensor_map)
    (place / "source.ckpt").write_bytes(dump(StrategyFile("source", {0: layouts}), "protobuf"))


def bytes_compared(request: Request) -> int:
    """The bytes that the comparison of copies reads before the transform starts."""
    usual_read, usual_check, count, counting = LocalReader.read, prepare.check_copies, [0], [False]

    def read(reader: LocalReader, offset: int, length: int) -> bytes:
        count[0] += length if counting[0] else 0
        return usual_read(reader, offset, length)

    def check(*arguments: Any, **named: Any) -> frozenset[str]:  # noqa: ANN401 - passed on
        counting[0] = True
        found = usual_check(*arguments, **named)
        counting[0] = False
        return found

    patches: tuple[tuple[object, str, Callable[..., object]], ...] = (
        (LocalReader, "read", read),
        (prepare, "check_copies", check),
    )
    with mock.patch.object(*patches[0]), mock.patch.object(*patches[1]):
        prepare.prepare(Inputs(request), Silent(), workers=2)
    return count[0]


def measure(base: Path, folder: Path, replicas: int, runs: int) -> dict[str, Any]:
    """Transform a source with a number of replicas; return the share of the comparison."""
    place, target = folder / f"replicas-{replicas}", folder / "target"
    replicated(base, place, replicas)
    sides = ["--source", str(place / "src"), "--source-strategy", str(place / "source.ckpt")]
    sides += ["--target-strategy", str(base / "target.ckpt"), "--target", str(target)]
    shares = []
    for number in range(runs + 1):
        shutil.rmtree(target, ignore_errors=True)
        done = subprocess.run([RESHARD, "transform", *sides, "--json"], check=True, capture_output=True)
        result = json.loads(done.stdout)
        if number:  # the first round only warms up
            shares.append((result["durations"]["compare_replicas"], result["seconds"]))
    request = Request(place / "src", target, place / "source.ckpt", base / "target.ckpt")
    compared = bytes_compared(request)
    shutil.rmtree(place)
    shutil.rmtree(target)
    return {
        "replicas": replicas,
        "source_ranks": replicas * _TENSOR_PARALLEL,
        "bytes_compared": compared,
        "share_of_bytes": round(compared / (result["bytes_fetched"] + result["bytes_written"]), 5),
        "seconds_compared": round(statistics.median(compare for compare, _ in shares), 4),
        "share_of_seconds": round(statistics.median(compare / whole for compare, whole in shares), 4),
    }


def main() -> None:
    """Measure, and print one line of JSON for each number of replicas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("replicas", nargs="*", type=int, default=[1, 8, 64])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    case = Case("sampling", "2.1 GB LLaMA-shaped, 4 -> 2, safetensors", LLAMA_2_GB, _TENSOR_PARALLEL, _TARGET)
    base = make(case, arguments.folder)
    for replicas in arguments.replicas:
        found = measure(base, arguments.folder, replicas, arguments.runs)
        within = max(found["share_of_bytes"], found["share_of_seconds"]) <= _MOST_SHARE
        print(json.dumps(found | {"within_2_percent": within}), flush=True)


if __name__ == "__main__":
    main()
