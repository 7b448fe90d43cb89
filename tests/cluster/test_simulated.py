"""Transforms of more ranks than this machine could run, on simulated nodes."""

from __future__ import annotations

import json
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from kubernetes_objects import wait_for
from simulated_transforms import all_ended, execution, status_writes, usage

from cluster import simulated

if TYPE_CHECKING:
    from cluster.layout import Layout
    from transforms_on_cluster import Stage

RANKS = 1000
TRANSFORMS = 200
MOST_MEMORY = 200_000_000


def test_a_thousand_ranks_cost_few_writes_and_little_memory(stage: Stage, layout: Layout) -> None:
    with simulated.nodes(layout, 20) as placement:
        stage.create("many", stage.spec(execution=execution(placement, RANKS)))
        status = stage.ended("many")
    assert status["progress"] == f"{RANKS}/{RANKS}"
    assert status["jobs"].keys() <= {"plan", "ranks", "commit"}
    assert len(json.dumps(status)) < 10_000
    assert usage().highest_memory < MOST_MEMORY
    writes = [datetime.fromisoformat(entry["requestReceivedTimestamp"]) for entry in status_writes(layout, stage.namespace)]
    # Each phase is reported at once, and counts in between at most every five seconds.
    seconds = (writes[-1] - writes[0]).total_seconds()
    assert len(writes) <= 7 + seconds / 5, [str(b - a) for a, b in pairwise(writes)]


def test_two_hundred_transforms_at_once(stage: Stage, layout: Layout) -> None:
    """Later ones do not take longer than earlier ones because of their place in the queue, and none is left behind."""
    names = [f"t-{number}" for number in range(TRANSFORMS)]
    with simulated.nodes(layout, 20) as placement:
        for name in names:
            stage.create(name, stage.spec(name, execution=execution(placement, 1)))
        found = wait_for(lambda: all_ended(stage), 600)
    assert [status["phase"] for status in found.values()] == ["Complete"] * TRANSFORMS
    assert usage().highest_memory < MOST_MEMORY
    assert len(status_writes(layout, stage.namespace)) <= 6 * TRANSFORMS
    starts = {
        entry["objectRef"]["name"]: entry["requestReceivedTimestamp"] for entry in status_writes(layout, stage.namespace)[::-1]
    }
    first = sorted(names, key=lambda name: starts[name])
    late = [abs(first.index(name) - names.index(name)) for name in names]
    assert max(late) < TRANSFORMS // 4, late  # the operator begins with them about in the order of their creation
