"""Pods that are killed and terminated while they write: only their ranks run again, and the target is the old or the new one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import disk
from kubernetes_objects import wait_for
from pod_processes import process_of

from reshard.cli import main

if TYPE_CHECKING:
    from transforms_on_cluster import Stage

RANKS = 6
SEED = 18
_LONGEST_DELAY = 0.3  # a rank of the large checkpoint takes about as long


def interrupt(stage: Stage, uid: str, moments: dict[int, float]) -> set[int]:
    """Kill the pods of even ranks while they write, and terminate those of odd ranks when their file has its last byte.

    The moments are the seconds from a rank's first byte to its kill. Returns the ranks whose processes got a signal.
    """
    state = stage.results / "out" / ".reshard"
    begun: dict[int, float] = {}
    waiting, hit = set(range(RANKS)), set()
    end = time.monotonic() + 120
    while waiting and time.monotonic() < end:
        now = time.monotonic()
        writing = {int(path.name.split(".")[0].removeprefix("rank_")) for path in state.glob("*/tmp/rank_*")}
        begun |= dict.fromkeys(writing - begun.keys(), now)
        for rank in sorted(waiting & begun.keys()):
            due = rank not in writing if rank % 2 else now >= begun[rank] + moments[rank]
            if due:
                waiting.discard(rank)
                if (process := process_of(uid, rank)) is not None:
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGTERM if rank % 2 else signal.SIGKILL)
                        hit.add(rank)
        time.sleep(0.001)
    assert not waiting
    return hit


def test_pods_killed_at_any_byte_leave_the_old_or_the_new_checkpoint(stage: Stage) -> None:
    stage.create("old", stage.spec(target={"format": "Safetensors"}))
    stage.ended("old")
    old = disk.contents(stage.results / "out")
    made = disk.write(stage.source / "large", disk.example(rows=24_576, columns=1152))
    source = {"persistentVolumeClaim": {"claimName": "checkpoints", "path": "large/src"}}
    spec = stage.spec(
        source={"storage": source, "strategy": {"path": "large/source.ckpt", "storage": stage.checkpoints}},
        overwrite="Replace",
        verification="None",
        execution={"parallelism": RANKS, "ranksPerPod": 1},
    )
    spec["target"]["strategy"] |= {"path": "large/target.ckpt"}
    stage.create("new", spec)
    uid = stage.custom.get_namespaced_custom_object(*stage.where, "new")["metadata"]["uid"]
    chance = random.Random(SEED)
    hit = interrupt(stage, uid, {rank: chance.uniform(0, _LONGEST_DELAY) if rank else 0.0 for rank in range(RANKS)})
    assert 0 in hit
    if not stage.status("new").get("manifest"):
        assert disk.contents(stage.results / "out", "rank_*/*.safetensors") == old
        assert main(["verify", str(stage.results / "out")]) == 0
    stage.ended("new")
    assert disk.differences(made.model, stage.results / "out", "ckpt") == []
    assert main(["verify", str(stage.results / "out")]) == 0
    assert disk.leftovers(stage.results / "out") == []

    def ends() -> dict[str, tuple[int, int]] | None:
        """Index and exit code of each pod, once all have ended."""
        found = {}
        for pod in (pod for pod in stage.pods("ranks") if pod.metadata.labels["reshard.dev/transform-uid"] == uid):
            if (ended := pod.status.container_statuses[0].state.terminated) is None:
                return None
            index = int(pod.metadata.annotations["batch.kubernetes.io/job-completion-index"])
            found[pod.metadata.name] = (index, ended.exit_code)
        return found

    codes = wait_for(ends).values()
    again = {index for index, code in codes if code}
    assert again <= hit
    assert {code for _, code in codes} <= {0, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
    assert Counter(index for index, _ in codes) == {index: 1 + (index in again) for index in range(RANKS)}
    # A pod that was terminated when its file had its last byte has succeeded only if it has written the record as well.
    assert 0 in again
