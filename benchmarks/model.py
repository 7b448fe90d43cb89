"""Read the metadata of a distributed checkpoint with 128,000 shards, and plan from a tensor in a million irregular boxes.

The boxes are joined with a second division into a million boxes, and planned for one rank of eight. PyTorch is not required: the
metadata is written by Python's pickler with classes of the same names, as PyTorch 2.15 writes it.
"""

from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np

from reshard.checkpoint.inventory import Inventory, SourceFile, Structure
from reshard.formats.torch.dcp import read_metadata
from reshard.model import TensorMeta, divide, gather_shards
from reshard.model.packing import pack
from reshard.plan import Planner, build_model, prove

TENSORS, SHARDS, SIDE, FILES = 1000, 128, 1000, 8
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"


class _Size(tuple[int, ...]):
    __slots__ = ()

    def __reduce__(self) -> tuple[type[_Size], tuple[tuple[int, ...]]]:
        return _Size, (tuple(self),)


def _class(module: str, name: str, base: type = object) -> type:
    """Make a class that pickles under a name of PyTorch's."""
    found = base if base is not object else type(name, (), {"__init__": lambda self, **state: self.__dict__.update(state)})
    found.__module__, found.__qualname__ = module, name
    parts = module.split(".")
    for depth in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: depth + 1]), ModuleType(module))
    setattr(sys.modules[module], name, found)
    return found


def write(path: Path) -> None:
    """Write the metadata."""
    names = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex")
    metadata, tensor, properties, chunk, index = (_class(_METADATA, name) for name in names)
    info, size, dtype = _class(_FILES, "_StorageInfo"), _class("torch", "Size", _Size), _class("torch", "bfloat16")
    properties.__getstate__ = lambda _: (dtype, None, False, None, False)
    rows = 4096 // SHARDS
    tensors, stored = {}, {}
    for number in range(TENSORS):
        name = f"model.layers.{number}.self_attn.q_proj.weight"
        starts = [size((shard * rows, 0)) for shard in range(SHARDS)]
        chunks = [chunk(offsets=start, sizes=size((rows, 4096))) for start in starts]
        tensors[name] = tensor(properties=properties(), size=size((4096, 4096)), chunks=chunks)
        for shard in range(SHARDS):
            place = info(relative_path=f"__{shard}_0.distcp", offset=number * 264_000, length=263_657)
            stored[index(fqn=name, index=shard, offset=size(starts[shard]))] = place
    root = metadata(state_dict_metadata=tensors, planner_data={}, storage_data=stored, version="1.0.0")
    path.write_bytes(pickle.dumps(root, 4))


def boxes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of SIDE * SIDE boxes that form no grid: pairs of neighbours, divided at random."""
    rows, columns = (found.ravel() for found in np.mgrid[0:SIDE, 0 : SIDE // 2])
    at = np.random.default_rng(seed).integers(1, 20, len(rows))
    left = np.stack([rows * 10, columns * 20], 1)
    right = np.stack([rows * 10, columns * 20 + at], 1)
    heights = np.full(len(rows), 10)
    return np.concatenate([left, right]), np.concatenate([np.stack([heights, at], 1), np.stack([heights, 20 - at], 1)])


def source() -> Inventory:
    """A checkpoint with one tensor of float32 in SIDE * SIDE boxes, as a format reads it and an index keeps it."""
    shape, (starts, lengths) = (SIDE * 10, SIDE * 10), boxes(1)
    nbytes = lengths.prod(axis=1) * 4
    files, ends = np.arange(len(starts)) % FILES, np.zeros(len(starts), np.int64)
    for file in range(FILES):
        ends[file::FILES] = np.cumsum(nbytes[file::FILES])
    tiling, tiles = divide(shape, starts, lengths, "w")
    tensor = TensorMeta("w", "Float32", shape, gather_shards(tiling, tiles, (files, ends - nbytes, nbytes), "w"))
    names = tuple(SourceFile(file, f"__{file}_0.distcp", int(ends[file::FILES][-1]), str(file), 0) for file in range(FILES))
    return Inventory(names, (Structure("torch-dcp", ()),), "Boxes", tensors=(pack(tensor),))


def plan() -> None:
    """Print the time and memory of the plan of one rank of eight, from boxes in memory to its proof."""
    began = time.process_time()
    planned = Planner(build_model(source(), None, None, target_ranks=FILES)).plan(3)
    prove(planned)
    seconds = round(time.process_time() - began, 2)
    print(
        json.dumps(
            {"plan_processor_seconds": seconds, "plan_copies": len(planned.tensors[0].entries), "plan_peak_bytes": peak_bytes()}
        )
    )


def peak_bytes() -> int:
    """Return the largest size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print the time and memory of both."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, ".metadata")
        subprocess.run([sys.executable, __file__, str(path)], check=True)  # so that its memory is not counted
        data = path.read_bytes()
    began = time.process_time()
    found = read_metadata([(".metadata", data)])
    measured = {
        "metadata_bytes": len(data),
        "shards": sum(len(tensor.shards.tiling) for tensor in found.tensors),
        "metadata_processor_seconds": round(time.process_time() - began, 2),
        "metadata_peak_bytes": peak_bytes(),
    }
    del found, data
    (starts, lengths), (others, extents) = boxes(1), boxes(2)
    began = time.process_time()
    tiling, _ = divide((SIDE * 10, SIDE * 10), starts, lengths, "w")
    proved = time.process_time()
    pairs, _ = tiling.join(others, others + extents)
    measured |= {
        "boxes": len(tiling),
        "copies": len(pairs),
        "prove_processor_seconds": round(proved - began, 2),
        "join_processor_seconds": round(time.process_time() - proved, 2),
        "peak_bytes": peak_bytes(),
    }
    done = subprocess.run([sys.executable, __file__, "plan"], check=True, capture_output=True, text=True)
    print(json.dumps(measured | json.loads(done.stdout)))


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["plan"]:
            plan()
        case [path]:
            write(Path(path))
