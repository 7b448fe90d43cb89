"""Determine why a Job does not make progress, from its pods and their Events."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from reshard_operator.status import STUCK, Phase, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard_operator.objects import Job, Pod
    from reshard_operator.observation import Observation

# Kubernetes retries these forever and never fails the pod. They happen before the pod has its sandbox.
_CANNOT_PREPARE = {"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "NetworkNotReady"}
_DENIED = {"FailedCreate"}
# A Job that waits for its next try has no pods either.
# Kubernetes repeats the warning at least every five minutes.
_DENIED_FOR = timedelta(minutes=10)
_MOST_NAMES = 3
_UNSCHEDULABLE = "Unschedulable"
_NODE_LOST = "NodeLost"


class _Why(NamedTuple):
    """Why a pod does not run, and whether it may never start."""

    reason: str
    message: str
    stuck: bool = False


def waiting_for(seen: Observation, job: Job, phase: Phase, *, progressed: bool) -> State | None:
    """Return the state that describes why the pods of a Job do not run, or None if they run.

    Args:
        seen: the observation.
        job: the Job.
        phase: phase of the transform.
        progressed: whether ranks were written since the last status.
    """
    pods = seen.pods_of(job)
    found = [(pod, why) for pod in pods if (why := _why(seen, pod)) is not None]
    if job.ready or progressed or any(pod.starts for pod in pods):  # a pod that is not scheduled follows when others have ended
        found = [(pod, why) for pod, why in found if why.reason != _UNSCHEDULABLE]
    if found:
        # Pods on a lost node and pods that cannot start may occupy what others wait for, not the reverse.
        pod, why = min(found, key=lambda each: (each[1].reason != _NODE_LOST, not each[1].stuck))
        return State(phase, why.reason, f"pod {pod.name}: {why.message}", stuck=why.stuck)
    if not job.status.get("active") and not any(pod.alive for pod in pods):
        denied = seen.newest_warning(job.uid, _DENIED)
        if denied is not None and denied.last_seen >= seen.now - _DENIED_FOR:
            return State(phase, "PodsDenied", denied.message)
    return None


def stuck_seconds(seen: Observation) -> float:
    """Return the number of seconds for which pods have been unable to start, according to the status."""
    since = next((c["lastTransitionTime"] for c in seen.transform.status.get("conditions") or () if c["type"] == STUCK), None)
    return (seen.now - datetime.fromisoformat(since)).total_seconds() if since else 0.0


def losing(seen: Observation, job: Job, phase: Phase) -> State | None:
    """Return the state of a Job that is being suspended, if its pods do not end because their node is lost."""
    state = waiting_for(seen, job, phase, progressed=False)
    return state if state is not None and state.reason == _NODE_LOST else None


def left_behind(pods: Sequence[Pod], phase: Phase) -> State:
    """Return the state of a transform that waits for the end of earlier pods."""
    for pod in pods:
        if pod.lost:
            return State(phase, _NODE_LOST, f"pod {pod.name} of an earlier Job: {_lost(pod, 'does not end')}")
    names = ", ".join(pod.name for pod in pods[:_MOST_NAMES])
    return State(phase, phase.value, f"waiting for earlier pods to terminate: {names}")


def _lost(pod: Pod, effect: str) -> str:
    until = "until the node recovers, is deleted, or gets the out-of-service taint"
    return f"node {pod.node} is not responding; the pod {effect} {until}"


def _why(seen: Observation, pod: Pod) -> _Why | None:
    if pod.lost:
        return _Why(_NODE_LOST, _lost(pod, "is not replaced"))
    if pod.phase != "Pending":
        return None
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False":
        return _Why(_UNSCHEDULABLE, str(scheduled.get("message") or "the pod has not been scheduled yet"))
    if pod.blocked is not None:
        return _Why(*pod.blocked, stuck=True)
    unmounted = seen.newest_warning(pod.uid, _CANNOT_PREPARE)
    if unmounted is not None and not pod.mounted:
        # For a missing key Kubernetes names only the volume, so add the Secret or ConfigMap.
        of = [what for volume, what in pod.entries.items() if f'"{volume}"' in unmounted.message]
        return _Why(unmounted.reason, f"{unmounted.message} ({of[0]})" if of else unmounted.message, stuck=True)
    return None
