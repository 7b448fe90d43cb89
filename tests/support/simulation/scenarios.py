"""Scenarios of processes that write to one target."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disk
import models
import msgspec
import pipelines
from definition import Cut

from reshard.spec.request import Options
from reshard.transform.complete import commit_if_complete
from reshard.transform.run import transform_checkpoint
from simulation.bucket import SimulatedBucket
from simulation.folder import SimulatedFolder
from simulation.transforms import TARGET, Scenario, model, request_of, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.spec.request import Request
    from reshard.spec.storage_options import Link
    from simulation.transforms import Kind

KINDS: dict[str, Kind] = {"folder": SimulatedFolder, "bucket": SimulatedBucket}


def transform(request: Request, **options: Any) -> Callable[[], object]:
    """Return a run of the command line."""
    return partial(transform_checkpoint, request, workers=1, **options)


def pod(kind: Kind, whole: Request, request: Request) -> Callable[[], object]:
    """Return a pod of a Job. The pod that finishes the last rank commits."""

    def work() -> None:
        transform_checkpoint(request, workers=1, commit=False, owner="uid")
        commit_if_complete(TARGET, written(kind, (whole,))[0], ranks=(0, 1))

    return work


def scenarios(folder: Path, kind: Kind) -> dict[str, Scenario]:
    """Return all scenarios with one kind of store. The sources are written to a folder, unless they exist."""
    made = [_written(folder / str(seed), model(seed)) for seed in (1, 2)]
    one, two = made
    first, second = request_of(one), request_of(two)
    first_instead, second_instead = (request_of(each, overwrite="Replace") for each in made)
    ranks = [request_of(one, only_ranks=str(rank)) for rank in (0, 1)]
    old = request_of(one, format="Safetensors")
    verified = request_of(one, verification="Full")
    stages = _stages(folder / "stages")
    replicas = _written(folder / "equal", model(1, replicas=True))

    def linked(how: Link) -> Scenario:
        request = request_of(replicas, link_replicas=how, overwrite="Replace")
        return Scenario(kind, (transform(request), transform(second_instead)), (request,), acceptable=((second,),))

    clock_steps = (61.0, -61.0)
    found = {
        "the same task twice": Scenario(kind, (transform(first), transform(first)), (first,), clock_steps=clock_steps),
        "two pods of a Job": Scenario(kind, tuple(pod(kind, first, rank) for rank in ranks), (first,)),
        "three pods of a Job": Scenario(kind, tuple(pod(kind, first, ranks[n % 2]) for n in range(3)), (first,)),
        "two tasks, one target": Scenario(
            kind, (transform(first_instead), transform(second_instead)), (first_instead,), acceptable=((second,),)
        ),
        "a replacement, twice": Scenario(
            kind, (transform(second_instead), transform(second_instead)), (second_instead,), (first,)
        ),
        "two replacements": Scenario(
            kind, (transform(second_instead), transform(first_instead)), (second_instead,), (old,), acceptable=((first,),)
        ),
        "verified files": Scenario(
            kind,
            (transform(verified), transform(second_instead)),
            (request_of(one, verification="Full", overwrite="Replace"),),
            acceptable=((second,),),
        ),
        "equal files": linked("HardLink"),
        "two stages": Scenario(kind, tuple(map(transform, stages)), stages),
        "a stage, twice": Scenario(kind, tuple(map(transform, (*stages, stages[0]))), stages),
    }
    if kind is SimulatedFolder:
        found["clones"] = linked("Clone")
    return found


def _written(folder: Path, contents: models.Model) -> disk.Checkpoint:
    return disk.Checkpoint(folder, contents, "ckpt") if folder.exists() else disk.write(folder, contents)


def _stages(folder: Path) -> tuple[Request, ...]:
    """Return the requests of the runs that write a checkpoint with two stages."""
    whole, rows = Cut((1,), ((), ())), Cut((2,), ((0,), ()))
    tensors = [models.Tensor(f"w{stage}", "Int8", (4, 4), whole, stage, rows, 0) for stage in (0, 1)]
    contents = models.Model(1, 2, 2, 1, (*tensors,), 1, remove_redundancy=False)
    there = folder.exists()
    made = pipelines.Pipeline(disk.Checkpoint(folder, contents, "ckpt")) if there else pipelines.write(folder, contents)
    requests = (made.request(stage, Path(TARGET)) for stage in (0, 1))
    return tuple(msgspec.structs.replace(each, options=Options(output="Stage", verification="None")) for each in requests)
