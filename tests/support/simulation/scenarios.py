"""Scenarios of processes that write to one target."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import disk

from reshard.transform.complete import commit_if_complete
from reshard.transform.run import transform_checkpoint
from simulation.stores import SimulatedBucket, SimulatedFolder
from simulation.transforms import TARGET, Scenario, model, request_of, written

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.spec.request import Request
    from simulation.transforms import Kind

KINDS: dict[str, Kind] = {"folder": SimulatedFolder, "bucket": SimulatedBucket}


def transform(request: Request, **options: Any) -> Callable[[], object]:
    """Return a run of the command line."""
    return partial(transform_checkpoint, request, workers=1, **options)


def pod(kind: Kind, whole: Request, request: Request) -> Callable[[], object]:
    """Return a pod of a Job. The pod that finishes the last rank commits."""

    def work() -> None:
        transform_checkpoint(request, workers=1, commit=False, owner="uid")
        commit_if_complete(TARGET, written(kind, whole)[0], ranks=(0, 1))

    return work


def scenarios(folder: Path, kind: Kind) -> dict[str, Scenario]:
    """Return all scenarios with one kind of store. The sources are written to a folder, unless they exist."""
    made = []
    for seed in (1, 2):
        path = folder / str(seed)
        made.append(disk.Checkpoint(path, model(seed), "ckpt") if path.exists() else disk.write(path, model(seed)))
    one, two = made
    first, second = request_of(one), request_of(two)
    first_instead, second_instead = (request_of(each, overwrite="Replace") for each in made)
    ranks = [request_of(one, only_ranks=str(rank)) for rank in (0, 1)]
    old = request_of(one, format="Safetensors")
    clock_steps = (61.0, -61.0)
    return {
        "the same task twice": Scenario(kind, (transform(first), transform(first)), first, clock_steps=clock_steps),
        "two pods of a Job": Scenario(kind, tuple(pod(kind, first, rank) for rank in ranks), first),
        "three pods of a Job": Scenario(kind, tuple(pod(kind, first, ranks[n % 2]) for n in range(3)), first),
        "two tasks, one target": Scenario(
            kind, (transform(first_instead), transform(second_instead)), first_instead, acceptable=(second,)
        ),
        "a replacement, twice": Scenario(kind, (transform(second_instead), transform(second_instead)), second_instead, first),
        "two replacements": Scenario(
            kind, (transform(second_instead), transform(first_instead)), second_instead, old, acceptable=(first,)
        ),
        "verified files": Scenario(
            kind,
            (transform(request_of(one, verification="Full")), transform(second_instead)),
            request_of(one, verification="Full", overwrite="Replace"),
            acceptable=(second,),
        ),
    }
