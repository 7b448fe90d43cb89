"""Why a Job does not get on, from its pods and from what Kubernetes says about them. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from reshard_operator.status import STUCK, Phase, State

if TYPE_CHECKING:
    from reshard_operator.observation import Job, Pod, Seen

# None of these ends by itself, nor ever makes a pod fail.
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


def waiting_for(seen: Seen, job: Job, phase: Phase) -> State | None:
    """What keeps a Job's pods from running; None when nothing does."""
    pods = seen.pods_of(job)
    for pod in pods:
        if (found := _why(seen, pod)) is not None:
            reason, message, stuck = found
            if reason == _UNSCHEDULABLE and job.status.get("ready"):
                continue  # others get on; this one's turn will come
            return State(phase, reason, f"pod {pod.name}: {message}", stuck=stuck)
    if not job.status.get("active") and not any(pod.alive for pod in pods):
        denied = seen.newest_warning(job.uid, _DENIED)
        if denied is not None:
            return State(phase, "PodsDenied", denied.message)
    return None


def stuck_seconds(seen: Seen) -> float:
    """For how long pods have been unable to start, as the status remembers it."""
    since = next((c["lastTransitionTime"] for c in seen.transform.status.get("conditions") or () if c["type"] == STUCK), None)
    return (seen.now - datetime.fromisoformat(since)).total_seconds() if since else 0.0


def _why(seen: Seen, pod: Pod) -> tuple[str, str, bool] | None:
    if pod.lost:
        gone = "until that node answers again, is deleted, or is tainted out-of-service, nothing may run in the pod's place"
        return "NodeLost", f"its node {pod.node} does not answer; {gone}", False
    if pod.phase != "Pending":
        return None
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") == "False":
        return _UNSCHEDULABLE, str(scheduled.get("message") or "it is not scheduled yet"), False
    reason = str(pod.waiting.get("reason") or "")
    if reason in _CANNOT_START:
        return reason, str(pod.waiting.get("message") or reason), True
    unmounted = seen.newest_warning(pod.uid, _CANNOT_MOUNT)
    if unmounted is not None:
        # Of a missing entry Kubernetes names the volume, whose name is ours, and not the Secret or the ConfigMap.
        of = [what for volume, what in pod.entries.items() if f'"{volume}"' in unmounted.message]
        return unmounted.reason, f"{unmounted.message} ({of[0]})" if of else unmounted.message, True
    return None
