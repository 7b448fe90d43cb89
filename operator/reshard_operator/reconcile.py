"""Determine the next step of a transform from an observation: plan -> ranks -> complete.

The pod that finishes the last rank commits. If no pod reports that, the commit is a further step. With mode SinglePod, one step
does everything.

A decision depends only on the observation. Events may therefore be late, duplicated, reordered or lost, and the operator may be
killed at any time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from reshard.spec.messages import CommitMessage, PlanMessage, RanksMessage, TransformMessage, UnreadableMessageError
from reshard.spec.ranks import Grouping
from reshard_operator import diagnosis, jobs
from reshard_operator.decision import Create, Decision, Delete, Patch
from reshard_operator.labels import ANNOTATION_SPEC, LABEL_QUEUE
from reshard_operator.objects import CONTAINER
from reshard_operator.observation import MOST_RUNS, as_text, ranks_of
from reshard_operator.status import Phase, State, all_done, build, plan_details, rank_details

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.spec.messages import FailureMessage, StepMessage
    from reshard.spec.resource import TransformSpec
    from reshard_operator.config import Config
    from reshard_operator.decision import Action
    from reshard_operator.objects import Job, Object
    from reshard_operator.observation import Observation


@dataclass(frozen=True)
class _Step:
    """One step of a transform.

    Attributes:
        phase: phase while the step runs, which is also the reason.
        failed: reason of the transform if the pods of the step fail without a common one.
        result: message of its pods.
    """

    phase: Phase
    failed: str
    result: type[StepMessage]

    def doing(self, message: str) -> State:
        """Return the state while the step runs."""
        return State(self.phase, self.phase.value, message)


_STEPS = {
    "plan": _Step(Phase.PLANNING, "PlanFailed", PlanMessage),
    "ranks": _Step(Phase.RESHARDING, "RanksFailed", RanksMessage),
    "commit": _Step(Phase.COMMITTING, "CommitFailed", CommitMessage),
    "transform": _Step(Phase.RESHARDING, "TransformFailed", TransformMessage),
}
# Delay until the next reconcile for changes that no watch reports: pods of other transforms, pods that cannot start.
_REQUEUE_SECONDS = 5.0
_SOON_SECONDS = 1.0
# The end of a container is noticed at most this much of its Job's age late, before Kubernetes completes the Job.
_LATE = 1 / 8
_LEAST_LATE_SECONDS = 0.5
# The status of a Job with many pods changes every second. Until its last pods, it is looked at less often.
_LEFT_PER_SECOND = 200
_LONGEST_SETTLE_SECONDS = 5.0
# Jobs whose containers have succeeded end within this time, unless another container of their pods never ends.
_ENDING_SECONDS = 60.0
_STOPPED_EARLY = "; the other ranks were stopped, because more pods had failed than spec.execution.parallelism"
_SUSPENDED = State(Phase.SUSPENDED, "Suspended", "set spec.suspend to false to resume")


def reconcile(seen: Observation, config: Config) -> Decision:
    """Return the decision for an observation."""
    transform, spec = seen.transform, seen.transform.spec
    if transform.deleting:
        return Decision()
    if transform.ended:
        return _clear_up(seen)
    if spec is None:
        # CRD and operator have different versions during an upgrade, so the spec may be readable later: wait.
        known = transform.status.get("phase") if transform.status.get("attempt") == transform.attempt else None
        return _set_status(seen, State(Phase(known or Phase.PENDING), "InvalidSpec", transform.problem), None, None)
    if any(job.annotation(ANNOTATION_SPEC) != jobs.spec_digest(spec) for job in seen.jobs.values()):
        return _fail(
            seen,
            "SpecChanged",
            "the spec changed while the transform was running; increase spec.execution.attempt to run the current spec",
        )
    if spec.execution.mode == "SinglePod" and not spec.dry_run:  # a plan alone needs no queue, and no target
        done = seen.result("transform", TransformMessage)
        end = _end(seen, spec, done.plan, done.committed) if done is not None else None
        return end or _step(seen, spec, "transform", lambda: jobs.transform_job(transform, config, _next_run(seen, "transform")))
    planned = _planned(seen)
    if planned is None:
        return _step(seen, spec, "plan", lambda: jobs.plan_job(transform, config, _next_run(seen, "plan")))
    return _carry_out(seen, spec, planned, config)


def _carry_out(seen: Observation, spec: TransformSpec, planned: PlanMessage, config: Config) -> Decision:
    """Return the decision for a transform whose plan is known."""
    if (end := _end(seen, spec, planned, seen.committed())) is not None:
        return end
    ranks, details = ranks_of(spec, planned), plan_details(planned, spec)
    job = seen.jobs.get("ranks")
    if job is None:  # it may have been deleted, while its records remain
        last = seen.transform.status_of_attempt
        details |= {key: last[key] for key in ("ranks", "progress", "percentage") if key in last}
        details["ranks"] = details["ranks"] | {"active": 0}
    else:
        details |= rank_details(seen, job, ranks, planned.grouping, _failures(seen, job, ranks, planned.grouping))
    if ranks and (job is None or not job.complete):
        decision = _step(seen, spec, "ranks", lambda: jobs.ranks_job(seen.transform, config, planned), details)
        settle = min(_LONGEST_SETTLE_SECONDS, job.left / _LEFT_PER_SECOND) if job is not None else 0.0
        return replace(decision, settle_seconds=settle)
    # An index has no ranks, and a pod may be deleted before its report is read.
    run = _next_run(seen, "commit")
    return _step(seen, spec, "commit", lambda: jobs.commit_job(seen.transform, config, planned, run), details)


def _end(seen: Observation, spec: TransformSpec, planned: PlanMessage, committed: CommitMessage | None) -> Decision | None:
    """Return the decision for a transform that has succeeded, or None if a commit is still to come."""
    ranks, details = ranks_of(spec, planned), plan_details(planned, spec)
    what = f"{planned.source_ranks} -> {planned.target_ranks} ranks"
    if spec.dry_run:
        return _complete(seen, "DryRun", f"{what}: the plan is valid", details)
    if planned.complete:
        return _complete(seen, "AlreadyComplete", "the target already contains this checkpoint", details | all_done(len(ranks)))
    if committed is None:
        return None
    details |= all_done(len(ranks)) | {
        "bytesFetched": committed.bytes_fetched,
        "requests": committed.requests,
        "bytesWritten": committed.bytes_written,
        "manifest": committed.manifest,
    }
    if not committed.manifest:
        return _complete(seen, "StageComplete", f"{what}: the files are recorded, and other stages are still missing", details)
    done = "all files are verified and recorded" if ranks else "the source is indexed for loading"
    return _complete(seen, "Complete", f"{what}: {done}", details)


def refused(seen: Observation, decision: Decision, reason: str, message: str, *, for_good: bool) -> Decision:
    """Return the decision after the API server refused to create a Job or one of its ConfigMaps."""
    if for_good or decision.status is None:
        return _fail(seen, reason, message)
    return _set_status(seen, State(Phase(decision.status["phase"]), reason, message), None, _REQUEUE_SECONDS)


def _planned(seen: Observation) -> PlanMessage | None:
    """Return the result of the plan, from its pod or, if the pod was deleted, from the status.

    If both were lost, another run of the plan may divide the ranks differently, but the Job of the ranks keeps its division.
    """
    planned, ranks = seen.result("plan", PlanMessage) or seen.transform.planned, seen.jobs.get("ranks")
    if planned is None or ranks is None:
        return planned
    grouping = msgspec.json.decode(ranks.variable(jobs.VARIABLE_GROUPING), type=Grouping)
    return msgspec.structs.replace(planned, grouping=grouping)


def _next_run(seen: Observation, step: str) -> int:
    """Return the run number of a step's next Job."""
    return seen.runs.get(step, 0) + 1


def _step(
    seen: Observation, spec: TransformSpec, step: str, manifest: Callable[[], Object], details: Object | None = None
) -> Decision:
    """Return the decision for one step. `manifest` returns the manifest of its next Job. A large one takes time."""
    job = seen.jobs.get(step)
    if job is None:
        return _begin(seen, spec, step, manifest, details)
    doing = _STEPS[step].doing(f"Job {job.name} is being deleted")
    if job.deleting:
        return _set_status(seen, doing, details, _REQUEUE_SECONDS)
    if job.complete:  # without a result, or the step would be over
        if seen.runs[step] < MOST_RUNS:
            return _begin(seen, spec, step, manifest, details)
        return _fail(seen, "ResultMissing", _why_no_result(seen, step, job), details)
    if job.failed is not None:
        reason, message = _why_failed(seen, spec, step, job)
        return _fail(seen, reason, message, details)
    if step == "transform" and seen.rivals:  # both were created before one of them was observed
        return _set_status(seen, _busy(seen, Phase.PENDING), details, _SOON_SECONDS, Delete(job))
    queue = job.label(LABEL_QUEUE)
    ending = replace(doing, reason="Suspending", message="waiting for pods to terminate")
    if spec.suspend and queue:  # Kueue would resume it
        return _set_status(seen, ending, details, _REQUEUE_SECONDS, Delete(job))
    actions = _adjust(spec, step, job)
    if spec.suspend and job.suspended:
        return _set_status(seen, _SUSPENDED, details, None, *actions)
    if spec.suspend:
        state = diagnosis.losing(seen, job, doing.phase) or ending
        return _set_status(seen, state, details, _REQUEUE_SECONDS, *actions)
    if job.suspended and queue:
        queued = replace(doing, reason="Queued", message=f"waiting for the queue {queue}")
        return _set_status(seen, queued, details, None, *actions)
    trouble = diagnosis.waiting_for(
        seen, job, doing.phase, progressed=_written(details) > _written(seen.transform.status_of_attempt)
    )
    if trouble is None:
        requeue_after = _requeue_after(seen, step, job)
        progress = _progress(step, job.name, seen.runs[step], details)
        return _set_status(seen, replace(doing, message=progress), details, requeue_after, *actions)
    deadline = spec.execution.startup_deadline_seconds
    if trouble.stuck and not job.status.get("ready") and diagnosis.stuck_seconds(seen) >= deadline:
        return _fail(
            seen, "PodsNotStarting", f"pods could not start for {deadline} s: {trouble.reason}: {trouble.message}", details
        )
    return _set_status(seen, trouble, details, _REQUEUE_SECONDS, *actions)


def _written(status: Object | None) -> int:
    """Return the number of ranks that are written according to a status or to a part of it."""
    return int(((status or {}).get("ranks") or {}).get("succeeded") or 0)


def _requeue_after(seen: Observation, step: str, job: Job) -> float | None:
    """Return the delay until the next look at a Job without trouble."""
    started = job.status.get("startTime")
    if started is None or not job.runs:
        return _REQUEUE_SECONDS
    if step == "ranks":
        return None
    return max(_LEAST_LATE_SECONDS, (seen.now - datetime.fromisoformat(started)).total_seconds() * _LATE)


def _begin(seen: Observation, spec: TransformSpec, step: str, manifest: Callable[[], Object], details: Object | None) -> Decision:
    """Create the Job of a step, as soon as no other pod can write to the target."""
    starting = _STEPS[step].doing("creating the Job")
    if (ending := _end_earlier(seen, spec, starting, details)) is not None:
        return ending
    if spec.suspend:
        return _set_status(seen, _SUSPENDED, details, None)
    if seen.rivals and step != "commit":
        phase = starting.phase if step == "ranks" else Phase.PENDING
        return _set_status(seen, _busy(seen, phase), details, _REQUEUE_SECONDS)
    # Use the message that applies once the Job runs, which saves one status write.
    job = manifest()
    name = job["metadata"]["name"]
    starting = replace(starting, message=_progress(step, name, _next_run(seen, step), details))
    named = {"jobs": {s: job.name for s, job in seen.jobs.items()} | {step: name}}
    creations = (Create(each) for each in (*jobs.spec_config_maps(seen.transform), job))
    return _set_status(seen, starting, named | (details or {}), _REQUEUE_SECONDS, *creations)


def _end_earlier(seen: Observation, spec: TransformSpec, starting: State, details: Object | None) -> Decision | None:
    """Delete the Jobs of earlier attempts and runs, and wait for their pods. Return None if there are none."""
    running = [job for job in seen.old_jobs if not job.ended]
    ours = {job.uid for job in seen.jobs.values()}
    alive = [pod for pod in seen.pods if pod.alive and pod.owner not in ours]
    if running:
        found = replace(starting, message="waiting for the Jobs of the previous attempt to be deleted")
    elif alive:
        found = diagnosis.left_behind(alive, starting.phase)
    else:
        return None
    if spec.suspend and found.reason == starting.reason:
        found = replace(found, reason="Suspending")
    after = _REQUEUE_SECONDS if found.reason == "NodeLost" else _SOON_SECONDS
    return _set_status(seen, found, details, after, *(Delete(job) for job in running if not job.deleting))


def _busy(seen: Observation, phase: Phase) -> State:
    return State(phase, "TargetBusy", f"waiting for {', '.join(seen.rivals[:3])}, which writes to the same target")


def _adjust(spec: TransformSpec, step: str, job: Job) -> tuple[Patch, ...]:
    """Return the changes of mutable fields of a Job. For a queued Job, Kueue controls suspension and parallelism.

    A lower parallelism does not turn failures that were accepted into the failure of the Job.
    """
    wanted: Object = {}
    queued = bool(job.label(LABEL_QUEUE))
    if bool(job.spec.get("suspend")) != spec.suspend and (spec.suspend or not queued):
        wanted["suspend"] = spec.suspend
    if step == "ranks":
        limits = jobs.changeable_limits(spec, job.spec["completions"])
        limits["maxFailedIndexes"] = max(limits["maxFailedIndexes"], len(job.indexes("failedIndexes")))
        if queued:
            del limits["parallelism"]
        wanted |= {field: value for field, value in limits.items() if job.spec.get(field) != value}
    return (Patch(job, wanted),) if wanted else ()


def _why_failed(seen: Observation, spec: TransformSpec, step: str, job: Job) -> tuple[str, str]:
    """Return the reason and the message of a failed Job, from the termination messages of its pods if possible."""
    condition = job.failed or {}
    if condition.get("reason") == "DeadlineExceeded":
        what = "the pod" if step == "transform" else "the ranks"
        return (
            "DeadlineExceeded",
            f"{what} took longer than spec.execution.activeDeadlineSeconds ({spec.execution.active_deadline_seconds} s)",
        )
    failed = job.indexes("failedIndexes")
    counted = frozenset(failed)  # ignore failures of indexes that succeeded later
    said = [pod.failure() for pod in seen.pods_of(job) if pod.phase == "Failed" and (not counted or pod.index in counted)]
    if step == "ranks":
        planned = _planned(seen)
        ranks = ranks_of(spec, planned) if planned is not None else ()
        grouping = planned.grouping if planned is not None else Grouping()
        names = as_text(tuple(rank for i in failed for rank in grouping.group(ranks, i)), 200)
        where = f"rank {names} of {len(ranks)} failed" if failed else "the Job of the ranks failed"
        is_early = condition.get("reason") == "MaxFailedIndexesExceeded" and len(failed) < job.spec["completions"]
        early = _STOPPED_EARLY if is_early else ""
        return _reason(said, _STEPS[step].failed), f"{where}: {_message(said, condition)}{early}"
    return _reason(said, _STEPS[step].failed), _message(said, condition)


def _why_no_result(seen: Observation, step: str, job: Job) -> str:
    """Return the message for a step that was completed without a result."""
    try:
        seen.read_result(step, _STEPS[step].result)
        why, fix = "its pod was deleted", "find out which controller deletes finished pods"
    except UnreadableMessageError as error:
        why = str(error)
        fix = (
            "use the same version of operator and converter images, and do not let a sidecar write"
            f" {CONTAINER}'s termination message"
        )
    what = f"the {step} step completed {MOST_RUNS} times without a result, most recently in Job {job.name}"
    return f"{what}: {why}; {fix}, then increase spec.execution.attempt"


def _reason(said: list[FailureMessage], otherwise: str) -> str:
    reasons = {message.reason for message in said}
    only = reasons.pop() if len(reasons) == 1 else ""
    return only if only.isidentifier() and only.isascii() and only != "Error" else otherwise


def _message(said: list[FailureMessage], condition: Object) -> str:
    return said[0].message if said else str(condition.get("message") or "the pods were deleted and no error message is available")


def _failures(seen: Observation, job: Job, ranks: tuple[int, ...], grouping: Grouping) -> list[Object]:
    """Return the newest failure of each index that has failed permanently, by rank."""
    failed = set(job.indexes("failedIndexes"))
    found: dict[int, Object] = {}
    for pod in seen.pods_of(job):
        if pod.phase == "Failed" and pod.index in failed and pod.index not in found:
            failure = pod.failure()
            found[pod.index] = {
                "ranks": as_text(grouping.group(ranks, pod.index), 100),
                "pod": pod.name,
                "reason": failure.reason[:100],
                "exitCode": failure.exit_code,
                "message": failure.message[:1000],
            }
    return [found[index] for index in sorted(found)]


def _progress(step: str, name: str, run: int, details: Object | None) -> str:
    if step == "ranks" and details is not None:
        ranks = details["ranks"]
        failed = f", {ranks['failed']} failed" if ranks["failed"] else ""
        expected = details.get("expectedCompletionTime")
        left = f", expected to finish at {expected}" if expected else ""
        return f"{ranks['succeeded']} of {ranks['total']} ranks are written{failed}{left}"
    again = f" (run {run} of at most {MOST_RUNS}: the previous run reported no readable result)" if run > 1 else ""
    return f"Job {name} is running{again}"


def _clear_up(seen: Observation) -> Decision:
    """Return the decision for a transform that has ended: delete running Jobs, and set the TTL of the others.

    After a success, pods whose containers have succeeded end by themselves, and then their Jobs. A Job that is suspended, or
    whose pods have another container that does not end, would occupy the target forever.
    """
    spec, transform = seen.transform.spec, seen.transform
    left = _ENDING_SECONDS - (seen.now - datetime.fromisoformat(transform.status["completionTime"])).total_seconds()
    ends = transform.status["phase"] == Phase.COMPLETE.value and left > 0
    actions: list[Action] = []
    requeue_after = None
    for job in (*seen.jobs.values(), *seen.old_jobs):
        if job.deleting:
            continue
        if not job.ended and ends and not job.spec.get("suspend") and job not in seen.old_jobs:
            requeue_after = left
        elif not job.ended:
            actions.append(Delete(job))
        elif spec is not None and "ttlSecondsAfterFinished" not in job.spec:
            actions.append(Patch(job, {"ttlSecondsAfterFinished": spec.execution.ttl_seconds_after_finished}))
    status = None
    if transform.status.get("observedGeneration") != transform.generation:
        status = transform.status | {"observedGeneration": transform.generation}
        status["conditions"] = [c | {"observedGeneration": transform.generation} for c in status.get("conditions") or ()]
    return Decision(status, tuple(actions), requeue_after)


def _set_status(
    seen: Observation, state: State, details: Object | None, requeue_after: float | None, *actions: Action
) -> Decision:
    names = {"jobs": {step: job.name for step, job in seen.jobs.items()}} if seen.jobs else {}
    return Decision(build(seen.transform, state, seen.now, names | (details or {})), actions, requeue_after)


def _fail(seen: Observation, reason: str, message: str, details: Object | None = None) -> Decision:
    return _set_status(seen, State(Phase.FAILED, reason, message), details, _SOON_SECONDS)


def _complete(seen: Observation, reason: str, message: str, details: Object) -> Decision:
    return _set_status(seen, State(Phase.COMPLETE, reason, message), details, _SOON_SECONDS)
