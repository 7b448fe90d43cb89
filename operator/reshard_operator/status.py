"""The status of a CheckpointTransform: phases, conditions, reasons and messages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import documentation
from reshard_operator.observation import as_text, ranks_of

if TYPE_CHECKING:
    from reshard.spec.messages import PlanMessage
    from reshard.spec.ranks import Grouping
    from reshard.spec.resource import TransformSpec
    from reshard_operator.objects import Job, Object
    from reshard_operator.observation import Observation, Transform

_LONGEST_MESSAGE = 2000
_LONGEST_NOTE = 850  # of 1024, so that the address of the documentation fits too
_MOST_FAILURES = 10
_LASTING = (
    "plan",
    "ranks",
    "progress",
    "percentage",
    "bytesFetched",
    "requests",
    "bytesWritten",
    "manifest",
    "jobs",
    "startTime",
)


class Phase(StrEnum):
    """The phase that `kubectl get` shows."""

    PENDING = "Pending"
    PLANNING = "Planning"
    RESHARDING = "Resharding"
    COMMITTING = "Committing"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"

    @property
    def terminal(self) -> bool:
        """True if the phase is final until the attempt is raised."""
        return self in {Phase.COMPLETE, Phase.FAILED}


# Reasons of a transform that waits for an external cause, and continues when it is removed. docs/errors.yaml has all reasons.
WAITING = frozenset({"TargetBusy", "PodsDenied", "JobDenied", "NameTaken", "Unschedulable", "NodeLost", "InvalidSpec"})
# The condition of pods that cannot start. Its reason is one of Kubernetes, such as ImagePullBackOff.
STUCK = "PodsStuck"


@dataclass(frozen=True)
class State:
    """The state of a transform, as its status reports it.

    Attributes:
        phase: phase of the transform.
        reason: stable CamelCase reason.
        message: human-readable message.
        stuck: whether pods are unable to start. The transform fails after the startup deadline.
    """

    phase: Phase
    reason: str
    message: str
    stuck: bool = False


def build(transform: Transform, state: State, now: datetime, details: Object | None = None) -> Object:
    """Return the next status.

    Args:
        transform: transform with its last status.
        state: current state.
        now: transition time of conditions that change.
        details: fields to set. Other fields are kept, unless they belong to an earlier attempt.
    """
    last = transform.status_of_attempt
    status: Object = {key: last[key] for key in _LASTING if key in last}
    status |= details or {}
    status |= {
        "observedGeneration": transform.generation,
        "attempt": transform.attempt,
        "phase": state.phase.value,
        "conditions": _conditions(transform.status.get("conditions") or [], state, _time(now), transform.generation),
    }
    status.setdefault("startTime", _time(now))
    if state.phase.terminal:
        status["completionTime"] = last.get("completionTime", _time(now))
        status.pop("expectedCompletionTime", None)
        if "ranks" in status:
            status["ranks"] = status["ranks"] | {"active": 0}
    return status


def plan_details(planned: PlanMessage, spec: TransformSpec) -> Object:
    """Return the fields of the status that a plan determines."""
    total = len(ranks_of(spec, planned))
    return {
        "plan": {
            "sourceRanks": planned.source_ranks,
            "targetRanks": planned.target_ranks,
            "parameters": planned.parameters,
            "bytesNeeded": planned.bytes_needed,
            "bytesDistinct": planned.bytes_distinct,
            "bytesFetched": planned.bytes_fetched,
            "pods": planned.grouping.groups(total),
            "grouping": msgspec.to_builtins(planned.grouping),
            "memoryBytes": planned.memory_bytes,
            "digest": planned.digest,
            **({"notes": list(planned.notes)} if planned.notes else {}),
        },
        "ranks": {"total": total, "active": 0, "succeeded": 0, "failed": 0},
        "progress": f"0/{total}",
        "percentage": 0,
    }


def rank_details(seen: Observation, job: Job, ranks: tuple[int, ...], grouping: Grouping, failures: list[Object]) -> Object:
    """Return the progress of the ranks, from their Job. Completion indexes are converted to ranks."""

    def of(indexes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(rank for i in indexes for rank in grouping.group(ranks, i))

    done, failed = len(of(job.indexes("completedIndexes"))), of(job.indexes("failedIndexes"))
    active = int(job.status.get("active") or 0) * grouping.size
    details: Object = {
        "total": len(ranks),
        "active": min(active, len(ranks) - done - len(failed)),
        "succeeded": done,
        "failed": len(failed),
        **_start(seen, job, done),
    }
    if failed:
        details["failedRanks"] = as_text(failed)
    if failures:
        details["failures"] = failures[:_MOST_FAILURES]
    found: Object = {"ranks": details, "progress": f"{done}/{len(ranks)}", "percentage": 100 * done // len(ranks)}
    if (end := _expected_end(seen, details)) is not None:
        found["expectedCompletionTime"] = end
    return found


def _start(seen: Observation, job: Job, done: int) -> Object:
    """Return the time when the Job was started or resumed, and the number of ranks that were written before that time.

    The result is empty while the Job is suspended. Kubernetes updates `startTime` when a Job is resumed. Up to 1.36, it keeps the
    old value while the Job is suspended. The number of ranks at that time is taken from the last status before the new start.
    """
    started, spec = job.status.get("startTime"), seen.transform.spec
    if not started or job.spec.get("suspend") or (spec is not None and spec.suspend):
        return {}
    last = seen.transform.status_of_attempt.get("ranks") or {}
    before = last.get("succeededAtStart", 0) if last.get("startTime") == started else last.get("succeeded", 0)
    return {"startTime": started, "succeededAtStart": min(before, done)}


def _expected_end(seen: Observation, ranks: Object) -> str | None:
    """Return the time at which the last rank will be written at the rate since the start.

    It is calculated only when a rank is finished, so that the status does not change in between.
    """
    if "startTime" not in ranks:
        return None
    last = seen.transform.status_of_attempt
    unchanged = all((last.get("ranks") or {}).get(key) == ranks[key] for key in ("startTime", "succeeded"))
    if unchanged and "expectedCompletionTime" in last:
        return str(last["expectedCompletionTime"])
    done, left = ranks["succeeded"] - ranks["succeededAtStart"], ranks["total"] - ranks["succeeded"]
    if not done or not left:
        return None
    return _time(seen.now + (seen.now - datetime.fromisoformat(ranks["startTime"])) * left / done)


def all_done(ranks: int) -> Object:
    """Return the progress fields for a transform whose ranks are all written."""
    counts = {"total": ranks, "active": 0, "succeeded": ranks, "failed": 0}
    return {"ranks": counts, "progress": f"{ranks}/{ranks}", "percentage": 100}


def _conditions(last: list[Object], state: State, now: str, generation: int) -> list[Object]:
    """Return the conditions, as kstatus expects them: always Ready, Reconciling while it runs, and Stalled after a failure."""
    wanted: list[tuple[str, str]] = [("Ready", "True" if state.phase is Phase.COMPLETE else "False")]
    if state.phase is Phase.SUSPENDED:
        wanted += [("Reconciling", "False"), ("Suspended", "True")]
    elif state.phase is Phase.COMPLETE:
        wanted += [("Complete", "True")]
    elif state.phase is Phase.FAILED:
        wanted += [("Failed", "True"), ("Stalled", "True")]
    else:
        wanted += [("Reconciling", "True")]
    if state.stuck:
        wanted += [(STUCK, "True")]
    before = {condition["type"]: condition for condition in last}
    made = []
    for kind, value in wanted:
        same = before.get(kind, {}).get("status") == value
        made.append(
            {
                "type": kind,
                "status": value,
                "reason": state.reason,
                "message": state.message[:_LONGEST_MESSAGE],
                "lastTransitionTime": before[kind]["lastTransitionTime"] if same else now,
                "observedGeneration": generation,
            }
        )
    return made


def only_counts_differ(old: Object, new: Object) -> bool:
    """Return whether only the progress of ranks differs, so that the write can be delayed."""

    def without_counts(status: Object) -> Object:
        conditions = [condition | {"message": ""} for condition in status.get("conditions") or ()]
        return status | dict.fromkeys(("ranks", "progress", "percentage", "expectedCompletionTime")) | {"conditions": conditions}

    return bool(old) and old.get("phase") == Phase.RESHARDING.value and without_counts(old) == without_counts(new)


def event(status: Object) -> tuple[str, str]:
    """Return the type and the note of the Event for a status. The note of a failure ends with a link to the documentation."""
    ready = status["conditions"][0]
    if status["phase"] != Phase.FAILED.value:
        return "Warning" if waits_for(status) else "Normal", ready["message"]
    return "Warning", f"{ready['message'][:_LONGEST_NOTE]}. See {documentation(ready['reason'])}"


def waits_for(status: Object) -> str:
    """Return the external cause that a transform waits for (one of WAITING, or STUCK), or an empty string."""
    reasons = {condition["type"]: condition["reason"] for condition in status.get("conditions") or ()}
    if STUCK in reasons:
        return STUCK
    return reasons["Ready"] if reasons.get("Ready") in WAITING else ""


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
