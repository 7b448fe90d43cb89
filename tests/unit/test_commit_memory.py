"""The memory of a commit is within the bound that plans state, however many fingerprints of slices the records contain."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import disk
import models
import numpy as np

from reshard.checkpoint.manifest import FileRecord
from reshard.engine.memory import commit_bytes
from reshard.layout.box import Box
from reshard.spec.request import Options, Request
from reshard.storage import open_store
from reshard.target.fingerprint_sums import SliceFingerprints
from reshard.target.folder import TargetFolder
from reshard.transform.complete import commit_checkpoint
from reshard.transform.plan import plan_transform

if TYPE_CHECKING:
    from pathlib import Path

NAMES = 600
FEW, MANY = 32, 160


def peak_of_commit(folder: Path, ranks: int) -> int:
    """The memory of a commit of this number of ranks, whose records another process may have written."""
    layouts = disk.Cut((1,), ((),)), 0, disk.Cut((ranks,), ((0,),)), 0
    tensors = tuple(models.Tensor(f"layers.{n}.weight", "Float32", (ranks,), *layouts) for n in range(NAMES))
    made = disk.write(folder, models.Model(1, 1, ranks, 1, tensors, 1, remove_redundancy=False), "safetensors")
    request = Request(
        str(made.source), str(folder / "target"), None, str(made.target_strategy), options=Options(verification="None")
    )
    digest = plan_transform(request, write=True).digest
    state = TargetFolder(open_store(request.target), None).task(digest)
    rng = np.random.default_rng(0)
    for rank in range(ranks):
        path = folder / "target" / f"rank_{rank}" / f"checkpoint_{rank}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        record = FileRecord(rank, f"{path.parent.name}/{path.name}", 1, "xxh3-128:" + "0" * 32, 1, 1, 0, "None")
        sums = rng.integers(1 << 63, size=NAMES).astype(np.uint64)
        state.record(record, {}, (SliceFingerprints.of(Box((rank,), (1,)), np.arange(NAMES), sums),))
    tracemalloc.start()
    try:
        manifest = commit_checkpoint(request.target, digest=digest)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(record.fingerprint is not None for record in manifest.parameters.records)
    return peak


def test_each_rank_takes_no_more_than_the_bound(tmp_path: Path) -> None:
    few, many = peak_of_commit(tmp_path / "few", FEW), peak_of_commit(tmp_path / "many", MANY)
    assert many - few < commit_bytes(MANY - FEW, 1)
