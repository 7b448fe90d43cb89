"""Determine why a Job does not make progress, from its pods and their Events."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from reshard_operator.status import STUCK, Phase, State

if TYPE_CHECKING:
    from reshard_operator.objects import Job, Pod
    from reshard_operator.observation import Observation

# Kubernetes retries these forever and never fails the pod.
_CANNOT_START = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
}
_CANNOT_MOUNT = {"FailedMount", "FailedAttachVolume"}
_DENIED = {"FailedCreate"}
_UNSCHEDULABLE = "Unschedulable"


def waiting_for(seen: Observation, job: Job, phase: Phase) -> State | None:
    """Return the state that describes why the pods of a Job do not run, or None if they run."""
    pods = sorted(seen.pods_of(job), key=lambda pod: not pod.lost)  # a lost node explains why others wait, not the reverse
    for pod in pods:
        if (found := _why(seen, pod)) is not None:
            reason, message, stuck = found
            if reason == _UNSCHEDULABLE and job.status.get("ready"):
                continue  # other pods of the Job run, and this one follows
            return State(phase, reason, f"pod {pod.name}: {message}", stuck=stuck)
    if not job.status.get("active") and not any(pod.alive for pod in pods):
        denied = seen.newest_warning(job.uid, _DENIED)
        if denied is not None:
            return State(phase, "PodsDenied", denied.message)
    return None


def stuck_seconds(seen: Observation) -> float:
    """Return the number of seconds for which pods have been unable to start, according to the status."""
    since = next((c["lastTransitionTime"] for c in seen.transform.status.get("conditions") or () if c["type"] == STUCK), None)
    return (seen.now - datetime.fromisoformat(since)).total_seconds() if since else 0.0


def _why(seen: Observation, pod: Pod) -> tuple[str, str, bool] | None:
    if pod.lost:
        gone = "the pod is not replaced until the node recovers, is deleted, or gets the out-of-service taint"
        return "NodeLost", f"node {pod.node} is not responding; {gone}", False
    if pod.phase != "Pending":
        return None
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False":
        return _UNSCHEDULABLE, str(scheduled.get("message") or "the pod has not been scheduled yet"), False
    reason = str(pod.waiting.get("reason") or "")
    if reason in _CANNOT_START:
        return reason, str(pod.waiting.get("message") or reason), True
    unmounted = seen.newest_warning(pod.uid, _CANNOT_MOUNT)
    if unmounted is not None:
        # For a missing key Kubernetes names only the volume, so add the Secret or ConfigMap.
        of = [what for volume, what in pod.entries.items() if f'"{volume}"' in unmounted.message]
        return unmounted.reason, f"{unmounted.message} ({of[0]})" if of else unmounted.message, True
    return None
