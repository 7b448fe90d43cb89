"""The memory of a commit is within the bound that plans state, however many fingerprints of slices the records contain."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import disk
import models
import numpy as np
import pytest

from reshard.checkpoint.manifest import FileRecord
from reshard.engine.memory import commit_bytes
from reshard.formats.registry import output_format
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


def peak_of_commit(folder: Path, ranks: int, form: str) -> int:
    """The memory of a commit of this number of ranks, whose records another process may have written."""
    layouts = disk.Cut((1,), ((),)), 0, disk.Cut((ranks,), ((0,),)), 0
    tensors = tuple(models.Tensor(f"layers.{n}.weight", "Float32", (ranks,), *layouts) for n in range(NAMES))
    made = disk.write(folder, models.Model(1, 1, ranks, 1, tensors, 1, remove_redundancy=False), "safetensors")
    options = Options(format=form, verification="None")
    request = Request(str(made.source), str(folder / "target"), None, str(made.target_strategy), options=options)
    digest = plan_transform(request, write=True).digest
    state = TargetFolder(open_store(request.target), None).task(digest)
    rng = np.random.default_rng(0)
    for rank in range(ranks):
        path = folder / "target" / output_format(form).path(rank, ranks, f"rank_{rank}/checkpoint_{rank}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        record = FileRecord(rank, path.relative_to(folder / "target").as_posix(), 1, "xxh3-128:" + "0" * 32, 1, 1, 0, "None")
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


@pytest.mark.parametrize(("form", "slices"), [("Safetensors", 0), ("TorchDcp", NAMES)])
def test_each_rank_takes_no_more_than_the_bound(tmp_path: Path, form: str, slices: int) -> None:
    """The documents of a distributed checkpoint contain the location of each slice."""
    few, many = (FEW, MANY) if not slices else (FEW // 8, FEW)
    peaks = [peak_of_commit(tmp_path / str(ranks), ranks, form) for ranks in (few, many)]
    assert peaks[1] - peaks[0] < commit_bytes(many - few, 1, (many - few) * slices)
