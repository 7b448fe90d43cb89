"""Jobs whose source is in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import disk
import rawfiles
from memory_store import MemorySource, MemoryWriter

from reshard.gather import ReadCount
from reshard.job import job_of
from reshard.plan import place
from reshard.progress import Cancellation, Silent
from reshard.rankfile import produce
from reshard.request import Options, Request
from reshard.source import Files, read_inventory

if TYPE_CHECKING:
    import models

    from reshard.job import Job


def job(model: models.Model, source: str, target: str, *, remove_redundancy: bool = False) -> tuple[Job, MemorySource]:
    held = model.source()
    store = MemorySource({f"rank_{r}/x.{source}": rawfiles.write(source, tensors) for r, tensors in enumerate(held)})
    before, after = disk.strategies(model)
    paths = {rank: f"rank_{rank}/x.{source}" for rank, tensors in enumerate(held) if tensors or source == "safetensors"}
    # `only`, because without redundancy a rank may be left without a file; which rank does not matter here.
    placed = place(read_inventory(store, Files(paths), workers=1), before, after, only=0)
    options = Options(format="Ckpt" if target == "ckpt" else "Safetensors", remove_redundancy=remove_redundancy)
    return job_of(Request("memory", "nowhere", options=options), store, placed, before, after), store


def written(job: Job, rank: int, count: ReadCount | None = None) -> bytes:
    writer = MemoryWriter()
    produce(
        job,
        job.planner.plan(rank),
        writer,
        count=count or ReadCount(),
        progress=Silent(),
        cancellation=Cancellation(),
    )
    assert len(writer.content) == job.file_sizes([rank])[rank]
    return bytes(writer.content)
