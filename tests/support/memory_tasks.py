"""Transform tasks whose source is in memory."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import disk
import rawfiles
from memory_store import MemorySource, MemoryWriter

from reshard.engine.content import Conditions, Content, Shared, produce, produce_together
from reshard.engine.execute import carry_out
from reshard.engine.memory import PassBudget
from reshard.engine.moves import moves
from reshard.engine.task import task_of
from reshard.plan import build_model, with_casts
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.request import Options, Request
from reshard.storage.traffic import Meter
from reshard.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import models

    from reshard.engine.task import Task
    from reshard.plan import RankPlan


def task(model: models.Model, source: str, target: str, stage: int | None = None, **chosen: Any) -> tuple[Task, MemorySource]:
    """Return a task for all ranks, or for those of one pipeline stage of the source, with the `chosen` options."""
    held = model.source()
    store = MemorySource({f"rank_{r}/x.{source}": rawfiles.write(source, tensors) for r, tensors in enumerate(held)})
    before, after = disk.strategies(model)
    if stage is not None:
        before = Strategy(before.stages[stage : stage + 1], before.devices, stage)
    paths = {r: f"rank_{r}/x.{source}" for r in before.numbers if held[r] or source == "safetensors"}
    # Without redundancy a rank may be left without a file.
    inventory = read_inventory(store, Files(paths), workers=1)
    options = Options(
        format="Ckpt" if target == "ckpt" else "Safetensors",
        output="PerRank" if stage is None else "Stage",
        **chosen,
    )
    placed = build_model(
        inventory,
        before,
        after,
        incomplete=True,
        one_stage=stage is not None,
        include=options.include,
        exclude=options.exclude,
        pad=options.pad,
    )
    placed = with_casts(placed, options.cast)
    return task_of(Request("memory", "nowhere", options=options), store, placed, (before, after)), store


def written(task: Task, rank: int, content: Meter | None = None) -> bytes:
    writer = MemoryWriter()
    produce(task, task.planner.plan(rank), writer, Conditions(content or Meter()))
    assert len(writer.content) == task.file_size(rank)
    return bytes(writer.content)


def streamed(task: Task, plan: RankPlan) -> bytes:
    """Return a rank's file made by any plan, including one that would never run because its proof fails."""
    writer, files = MemoryWriter(), task.source_files()
    carry_out(moves(plan, task.pieces(plan.rank)), files, writer.write)
    files.close()
    return bytes(writer.content)


def together(task: Task, ranks: Sequence[int], *, batch: int, tile: int) -> list[bytes]:
    """Return the files of several ranks, made in one pass."""
    writers, contents, conditions = [MemoryWriter() for _ in ranks], [], Conditions()
    files = task.source_files()
    for plan, writer in zip(task.planner.plans(ranks) if ranks else (), writers, strict=True):
        content = Content(task, [writer], conditions)
        contents.append(Shared(plan, nullcontext(content), conditions.losses))
    budget = PassBudget(
        batch=batch,
        batches=3,
        gap=16,
        longest=max(64, batch // 2),
        grouped=batch // 4,
        fetchers=2,
        workers=2,
        equal=1,
        tile=tile,
        upload=0,
    )
    produce_together(task, contents, files, conditions.cancellation, budget)
    files.close()
    return [bytes(writer.content) for writer in writers]
