"""Loads of one rank into memory, next to raw reads of the same bytes, with as many threads.

All contestants run in turn in every round, in one process, into new memory. Memory of that size is used and freed before each of
them, because new memory takes longer if the host of a virtual machine must provide it first. The time of a load contains reading
headers and strategies. Contestants:

- `raw`: reads of as many bytes, in as few calls as the source's files permit, without moving bytes to their place.
- `raw in place`: the same bytes, one read for each run, straight into their place. Omitted if that is the same.
- `load`, and `iter_tensors` without keeping the tensors.
- `load out`, `raw out`: into memory that is used again.
- `safetensors`: opens the source's files with that library, and concatenates or cuts their tensors.
- `torch`: `torch.distributed.checkpoint.load` of a distributed checkpoint, where `TORCH` is a Python interpreter with PyTorch.
- `raw GET`: range requests of 8 MiB with 8 threads to a server on loopback, where `RESHARD_S3_SERVER` is its path.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import boto3
import numpy as np
import xxhash
from botocore.config import Config
from safetensors import safe_open

import reshard
from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.memory import default_workers
from reshard.plan.runs import common_runs
from reshard.progress import Silent
from reshard.spec.request import Options, Request
from reshard.transform.inputs import Inputs
from reshard.transform.prepare import prepare

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from s3_server import running

from cases import CASES, FOLDER, make
from contestants import divided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Tensors = dict[str, np.ndarray]
    Contestant = Callable[[], Tensors]

_CHUNK = 8 << 20
_CASES = {case.name: case for case in CASES}
_TORCH = """
import json, sys, time, torch
from torch.distributed.checkpoint import FileSystemReader, load
reader = FileSystemReader(sys.argv[1])
tensors = reader.read_metadata().state_dict_metadata
for _ in range(int(sys.argv[2])):
    state = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in tensors.items()}
    began, processor = time.perf_counter(), time.process_time()
    load(state, storage_reader=reader, no_dist=True)
    found = {"seconds": time.perf_counter() - began, "processor": time.process_time() - processor}
print(json.dumps(found))
"""


class Load(NamedTuple):
    """A load to measure.

    Attributes:
        case: name of the checkpoint.
        what: description.
        whole: whether to load whole tensors. Otherwise the first rank of the case's target is loaded.
        in_runs: whether the bytes are in other runs in the source than in the result.
        dcp: whether to load from a distributed checkpoint of PyTorch with the same content.
    """

    case: str
    what: str
    whole: bool
    in_runs: bool = True
    dcp: bool = False


LOADS = {
    "rows": Load("long-rows", "2.1 GB row cuts, 8 ranks to one", whole=True, in_runs=False),
    "whole": Load("llama-safetensors", "2.1 GB LLaMA-shaped, 8 ranks to one", whole=True),
    "rank": Load("llama-safetensors", "2.1 GB LLaMA-shaped, 8 ranks to 4, the first", whole=False),
    "joined": Load("columns", "2.1 GB column cuts, 4 ranks to one, runs of 8 KiB", whole=True),
    "cut": Load("columns", "2.1 GB column cuts, 4 ranks to 8, the first, runs of 4 KiB", whole=False),
    "dcp": Load("llama-safetensors", "2.1 GB LLaMA-shaped, DCP of 8 ranks to one", whole=True, in_runs=False, dcp=True),
}


def arguments_of(load: Load, base: str) -> tuple[list[str], dict[str, Any]]:
    """Return the positional and keyword arguments of `reshard.load`."""
    if load.dcp:
        return [f"{base}/torch-dcp"], {"target_ranks": 1}
    target = {"target_ranks": 1} if load.whole else {"target_strategy": f"{base}/target.ckpt"}
    return [f"{base}/src", f"{base}/source.ckpt"], target


class Raw:
    """Reads of the bytes of a load.

    Args:
        load: the load.
        base: folder of the case.
        in_place: whether each byte is read into its place.
    """

    def __init__(self, load: Load, base: str, *, in_place: bool) -> None:
        (source, *strategy), target = arguments_of(load, base)
        options = Options(output="Index", target_ranks=target.get("target_ranks"))
        request = Request(source, "", *strategy, target_strategy=target.get("target_strategy"), options=options)
        task = prepare(Inputs(request, None), Silent(), workers=1, single=True)
        self._paths = {file.rank: f"{source}/{file.path}" for file in task.model.inventory.files}
        self._sizes: dict[str, int] = {}
        self._reads: list[tuple[str, int, int, int, int]] = []
        for tensor in task.planner.plan(0).tensors:
            name, itemsize, done = tensor.parameter.name, DTYPES[tensor.parameter.dtype].itemsize, 0
            self._sizes[name] = tensor.written_nbytes
            for overlap, rank, entry in zip(tensor.geometry.overlaps, tensor.ranks, tensor.entries, strict=True):
                length, starts = common_runs(overlap, tensor.shape)
                if not in_place:  # everything in one stretch, from where the first run begins
                    starts, length = [(next(starts)[0], done)], overlap.source.size
                for start, place in starts:
                    ((offset, _),) = entry.located(start * itemsize, itemsize)
                    for at in range(0, length * itemsize, _CHUNK):
                        n = min(_CHUNK, length * itemsize - at)
                        self._reads.append((name, rank, offset + at, place * itemsize + at, n))
                done += overlap.source.size

    def __call__(self, memory: Tensors | None = None) -> Tensors:
        """Read everything into new memory, or into that of an earlier call."""
        memory = memory or {name: np.empty(nbytes, np.uint8) for name, nbytes in self._sizes.items()}
        views = {name: memoryview(content) for name, content in memory.items()}
        files = {rank: os.open(path, os.O_RDONLY) for rank, path in self._paths.items()}
        waiting = iter(self._reads)  # threads may share it

        def some(_: int) -> None:
            for name, rank, offset, place, length in waiting:
                done = 0
                while done < length:
                    done += os.preadv(files[rank], [views[name][place + done : place + length]], offset + done)

        with ThreadPoolExecutor(default_workers()) as pool:
            list(pool.map(some, range(default_workers())))
        for file in files.values():
            os.close(file)
        return memory


def with_safetensors(load: Load, base: str) -> Tensors:
    """Open files with the safetensors library, and concatenate or cut their tensors."""
    case = _CASES[load.case]
    ratio = case.source_ranks / (1 if load.whole else case.target_ranks)
    files = [safe_open(f"{base}/src/rank_{rank}/model-1_100.safetensors", "numpy") for rank in range(max(1, int(ratio)))]
    found = {}
    for tensor in case.tensors:
        name, cut = tensor.name, tensor.source
        if cut < 0:
            found[name] = files[0].get_tensor(name)
        elif ratio < 1:
            part = files[0].get_slice(name)
            found[name] = part[tuple(slice(int(n * ratio) if i == cut else n) for i, n in enumerate(part.get_shape()))]
        else:
            found[name] = np.concatenate([file.get_tensor(name) for file in files], cut)
    return found


def with_requests(base: str) -> Tensors:
    """Fetch all objects of a source with range requests."""
    client = boto3.client("s3", config=Config(max_pool_connections=8, response_checksum_validation="when_required"))
    bucket, _, prefix = base.removeprefix("s3://").partition("/")
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/src/")["Contents"]
    parts = [(each["Key"], at, min(each["Size"], at + _CHUNK) - 1) for each in found for at in range(0, each["Size"], _CHUNK)]

    def fetch(part: tuple[str, int, int]) -> np.ndarray:
        key, first, last = part
        body = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}")["Body"].read()
        return np.frombuffer(body, np.uint8)

    with ThreadPoolExecutor(8) as pool:
        return dict(zip(map(str, parts), pool.map(fetch, parts), strict=True))


def contestants_of(load: Load, base: str, *, cold: bool = False) -> dict[str, Contestant]:
    """Return the contestants of a load, the first of which the others are compared with."""
    places, options = arguments_of(load, base)
    ours = partial(reshard.load, *places, **options)
    if base.startswith("s3:"):
        return {"raw GET": partial(with_requests, base), "load": ours}
    raw = Raw(load, base, in_place=False)
    found: dict[str, Contestant] = {"raw": raw, "load": ours}
    if load.in_runs:
        found["raw in place"] = Raw(load, base, in_place=True)
    if not load.dcp:
        found["safetensors"] = partial(with_safetensors, load, base)
    if not cold:
        used = ours()
        found["iter_tensors"] = lambda: {n: a for n, a in reshard.iter_tensors(*places, **options) if a.nbytes < _CHUNK // 8}
        found["load out"] = partial(ours, out=used)
        found["raw out"] = partial(raw, raw())
    return found


def digest(tensors: Tensors) -> str:
    """Return a digest of the content of tensors."""
    found = xxhash.xxh3_128()
    for name in sorted(tensors):
        found.update(tensors[name].reshape(-1).view(np.uint8))
    return found.hexdigest()


def forget(files: Iterable[Path]) -> None:
    """Remove files from the page cache."""
    os.sync()
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measure(name: str, base: str, runs: int, *, cold: bool = False) -> dict[str, Any]:
    """Measure the contestants of a load. Rates are in GB of the result per second."""
    load = LOADS[name]
    case, contestants = _CASES[load.case], contestants_of(load, base, cold=cold)
    nbytes = case.nbytes // (1 if load.whole else case.target_ranks)
    same = {digest(contestants[each]()) for each in ("load", "raw in place", "safetensors", "load out") if each in contestants}
    assert len(same) == 1, same  # noqa: S101 - all have the same result
    times: dict[str, list[tuple[float, float]]] = {contestant: [] for contestant in contestants}
    for number in range(runs):
        for contestant in list(contestants)[:: 1 if number % 2 else -1]:
            if cold:
                forget(path for path in Path(base).rglob("*") if path.is_file())
            else:
                np.ones(nbytes, np.uint8)
            began, processor = time.perf_counter(), time.process_time()
            contestants[contestant]()
            times[contestant].append((time.perf_counter() - began, time.process_time() - processor))
    if load.dcp and os.environ.get("TORCH"):
        times["torch"] = []
        for _ in range(runs):
            if cold:
                forget(path for path in Path(base).rglob("*") if path.is_file())
            done = subprocess.run(
                [os.environ["TORCH"], "-c", _TORCH, f"{base}/torch-dcp", "1" if cold else "2"], check=True, capture_output=True
            )
            times["torch"].append(tuple(json.loads(done.stdout).values()))
    first = next(iter(times.values()))
    results = {
        contestant: {
            "GB/s": round(nbytes / statistics.median(seconds for seconds, _ in found) / 1e9, 2),
            "of the first": round(statistics.median(a / b for (a, _), (b, _) in zip(first, found, strict=True)), 3),
            "processor": round(statistics.median(processor for _, processor in found), 2),
        }
        for contestant, found in times.items()
    }
    where = "S3" if base.startswith("s3:") else "disk" if cold else "page cache"
    return {"what": load.what, "from": where, "threads": default_workers(), "results": results}


def main() -> None:
    """Measure, and print one line of JSON for each load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loads", nargs="*", choices=[[], *LOADS], help="those to measure; all")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    names = arguments.loads or LOADS
    for name in names:
        place = make(_CASES[LOADS[name].case], arguments.folder)
        if LOADS[name].dcp:
            divided(place, "torch-dcp", _CASES[LOADS[name].case].source_ranks)
        for cold in (False, True):
            print(json.dumps(measure(name, str(place), arguments.runs, cold=cold)), flush=True)
    if os.environ.get("RESHARD_S3_SERVER"):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, running(Path(folder)) as server:
            os.environ.update(server.environment())
            bucket = server.bucket()
            for name in [name for name in names if LOADS[name].whole and not LOADS[name].dcp]:
                base = server.upload(bucket, make(_CASES[LOADS[name].case], arguments.folder), name)
                print(json.dumps(measure(name, base, arguments.runs)), flush=True)


if __name__ == "__main__":
    main()
