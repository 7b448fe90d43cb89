"""A fake cluster in memory, as decisions see one: Jobs and pods progress on request, and nothing notifies the operator."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from reshard.spec.messages import MESSAGE_VERSION
from reshard_operator import rivals
from reshard_operator.config import Config
from reshard_operator.decision import Create, Decision, Delete
from reshard_operator.labels import LABEL_STEP
from reshard_operator.objects import CONTAINER, Event, Job, Pod
from reshard_operator.observation import Observation, Transform
from reshard_operator.reconcile import reconcile, refused

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = Config(converter_image="converter:test")
STORAGE = {"persistentVolumeClaim": {"claimName": "claim", "path": "src"}}
PLAN = {
    "version": MESSAGE_VERSION,
    "sourceRanks": 4,
    "targetRanks": 6,
    "parameters": 3,
    "bytesNeeded": 1000,
    "bytesDistinct": 800,
    "memoryBytes": 80_000_000,
    "digest": "d" * 64,
    "bytesFetched": 900,
    "grouping": {"run": 1, "count": 1, "stride": 1},
    "finishedRanks": 0,
    "complete": False,
    "notes": ["one note"],
}
COMMIT = {
    "version": MESSAGE_VERSION,
    "digest": "d" * 64,
    "bytesFetched": 900,
    "requests": 7,
    "bytesWritten": 1200,
    "rankSeconds": {"counts": [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 2], "sum": 9016.5},
    "manifest": "reshard-manifest.json",
}
# The report of the pod of the ranks that commits, and of the others.
LAST = {
    "version": MESSAGE_VERSION,
    "bytesNeeded": 100,
    "bytesDistinct": 100,
    "bytesFetched": 100,
    "requests": 2,
    "bytesWritten": 200,
    "peakRssBytes": 70_000_000,
    "committed": COMMIT,
}
RANKS = LAST | {"committed": None}
TRANSFORM = {"version": MESSAGE_VERSION, "plan": PLAN, "committed": COMMIT}


def resource(uid: str = "11112222-aaaa", **spec: Any) -> dict[str, Any]:
    """A CheckpointTransform as the API server sends it."""
    target = {"persistentVolumeClaim": {"claimName": "claim", "path": "dst"}}
    return {
        "metadata": {
            "name": "a.transform",
            "namespace": "ns",
            "uid": uid,
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"source": {"storage": STORAGE}, "target": {"storage": target}} | spec,
    }


@dataclass
class PretendCluster:
    """One transform and its Jobs.

    Attributes:
        others: Jobs of other transforms with the same target.
        outcome: what a pod of a step (and, of the ranks, of an index) leaves: an exit code and its message, text or to be JSON.
        lags: whether Jobs notice the end of their pods one step later.
        keeps_start_time: whether a suspended Job keeps its startTime until it is resumed, as before Kubernetes 1.37.
    """

    resource: dict[str, Any] = field(default_factory=resource)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    config_maps: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    created: list[str] = field(default_factory=list)
    outcome: Callable[[str, int], tuple[int, object]] = field(
        default=lambda step, _: (0, {"plan": PLAN, "ranks": RANKS, "commit": COMMIT, "transform": TRANSFORM}[step])
    )
    lags: bool = False
    keeps_start_time: bool = False
    _serial: int = 0

    @property
    def status(self) -> dict[str, Any]:
        return self.resource.get("status") or {}

    @property
    def working(self) -> list[str]:
        """Jobs that may still have pods whose containers run or are to be started."""
        pods = [Pod(pod) for pod in self.pods]
        ended = {pod.owner for pod in pods if not pod.alive} - {pod.owner for pod in pods if pod.alive}
        return [
            name
            for name, job in self.jobs.items()
            if not (Job(job).condition("Suspended") or Job(job).ended or job["metadata"]["uid"] in ended)
        ]

    def change(self, **spec: Any) -> None:
        """Edit the spec, as a user does."""
        self.resource["spec"] |= spec
        self.resource["metadata"]["generation"] += 1

    def see(self) -> Observation:
        transform = Transform.parse(copy.deepcopy(self.resource))
        found = [Job(copy.deepcopy(job)) for job in self.jobs.values()]
        pods = tuple(Pod(copy.deepcopy(pod)) for pod in self.pods)
        seen = Observation.of(transform, self.now, found)
        return replace(seen, pods=pods, rivals=rivals.conflicting_jobs(seen, map(Job, self.others)), events=tuple(self.events))

    def decide(self) -> Decision:
        """Return the operator's current decision."""
        return reconcile(self.see(), CONFIG)

    def carry_out(self, decision: Decision, *, status_lost: bool = False) -> None:
        """Execute the decision as the API server would; the operator may be killed before it writes the status."""
        for action in decision.actions:
            if isinstance(action, Create) and action.kind == "ConfigMap":
                self.config_maps.setdefault(action.name, copy.deepcopy(action.manifest))
            elif isinstance(action, Create):
                name = action.name
                if name not in self.jobs:
                    *_, spec = action.manifest["spec"]["template"]["spec"]["volumes"]  # pods of a ConfigMap to come would wait
                    assert {source["configMap"]["name"] for source in spec["projected"]["sources"]} <= self.config_maps.keys()
                    self.created.append(name)
                    self._serial += 1
                    self.jobs[name] = copy.deepcopy(action.manifest) | {"status": {}}
                    self.jobs[name]["metadata"] |= {"uid": f"job-{self._serial}", "resourceVersion": "1"}
            elif action.name in self.jobs and self.jobs[action.name]["metadata"]["uid"] == action.job.uid:
                if isinstance(action, Delete):
                    del self.jobs[action.name]
                    self.pods = [pod for pod in self.pods if Pod(pod).owner != action.job.uid]
                else:
                    self.jobs[action.name]["spec"] |= action.spec
        if decision.status is not None and not status_lost:
            self.resource["status"] = copy.deepcopy(decision.status)

    def work(self, *, status_lost: bool = False) -> Decision:
        """Observe, decide, and execute the decision."""
        decision = self.decide()
        self.carry_out(decision, status_lost=status_lost)
        return decision

    def meet(self, moment: str) -> None:
        """Let one thing happen.

        "lost": the operator is killed between its actions and its status. "twice": two replicas decide from one observation.
        "refuse": the API server refuses what would be created.
        """
        if moment == "advance":
            self.advance()
        elif moment in {"suspend", "resume"}:
            self.change(suspend=moment == "suspend")
        elif moment == "refuse":
            decision = self.decide()
            denied = any(isinstance(action, Create) for action in decision.actions)
            self.carry_out(refused(self.see(), decision, "JobDenied", "quota", for_good=False) if denied else decision)
        elif moment == "twice":
            decision = self.decide()
            self.carry_out(decision)
            self.carry_out(decision, status_lost=True)
        else:
            self.work(status_lost=moment == "lost")

    def advance(self, seconds: float = 1.0) -> None:
        """Advance every Job by one step, as Kubernetes does: suspend it, start pods, end them, end the Job."""
        self.now += timedelta(seconds=seconds)
        for job in list(self.jobs.values()):
            self._advance_job(job)

    def settle(self, rounds: int = 30) -> None:
        """Work until nothing changes any more."""
        for _ in range(rounds):
            self.work()
            self.advance()

    def _advance_job(self, job: dict[str, Any]) -> None:
        spec, status, uid = job["spec"], job["status"], job["metadata"]["uid"]
        if any(c["type"] in {"Complete", "Failed"} for c in status.get("conditions", ())):
            return
        mine = [pod for pod in self.pods if Pod(pod).owner == uid]
        if spec.get("suspend"):
            self.pods = [pod for pod in self.pods if pod not in mine or not Pod(pod).alive]
            status |= {"active": 0, "ready": 0, "conditions": [{"type": "Suspended", "status": "True"}]}
            if not self.keeps_start_time:
                status.pop("startTime", None)
            return
        if status.get("conditions") or "startTime" not in status:
            status["startTime"] = self.now.isoformat()
        status["conditions"] = []
        before = [pod for pod in mine if not Pod(pod).alive]
        for pod in mine:
            if Pod(pod).alive:
                self._end(pod)
        ended = {Pod(pod).index: pod for pod in (before if self.lags else mine)}
        done = sorted(i for i, pod in ended.items() if Pod(pod).phase == "Succeeded")
        failed = sorted(i for i, pod in ended.items() if Pod(pod).phase == "Failed")
        waiting = [i for i in range(spec["completions"]) if i not in ended]
        for index in waiting[: spec["parallelism"]]:
            if not any(Pod(pod).index == index for pod in mine):
                self._start(job, index)
        status |= {"active": len(waiting[: spec["parallelism"]]), "failed": len(failed)}
        status["ready"] = status["active"]
        status |= {"completedIndexes": ",".join(map(str, done)), "failedIndexes": ",".join(map(str, failed))}
        self._end_job(job, bool(waiting), failed)

    def _end_job(self, job: dict[str, Any], waiting: bool, failed: list[int]) -> None:
        """Set the condition of a Job that ends."""
        spec, status, uid = job["spec"], job["status"], job["metadata"]["uid"]
        if len(failed) > spec.get("maxFailedIndexes", len(failed)):
            status["conditions"] = [_ended("MaxFailedIndexesExceeded")]
            self.pods = [pod for pod in self.pods if Pod(pod).owner != uid or not Pod(pod).alive]
        elif not waiting:
            status["conditions"] = [_ended("FailedIndexes" if failed else "")]

    def _start(self, job: dict[str, Any], index: int) -> None:
        self._serial += 1
        template = job["spec"]["template"]["metadata"]
        self.pods.append(
            {
                "metadata": {
                    "name": f"{job['metadata']['name']}-{index}",
                    "uid": f"pod-{self._serial}",
                    "creationTimestamp": self.now.isoformat(),
                    "labels": template["labels"],
                    "annotations": template["annotations"] | {"batch.kubernetes.io/job-completion-index": str(index)},
                    "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
                },
                "status": {"phase": "Running"},
            }
        )

    def _end(self, pod: dict[str, Any]) -> None:
        code, message = self.outcome(Pod(pod).label(LABEL_STEP), Pod(pod).index)
        pod["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [
                {
                    "name": CONTAINER,
                    "state": {
                        "terminated": {
                            "exitCode": code,
                            "message": message if isinstance(message, str) else json.dumps(message),
                        }
                    },
                }
            ],
        }


def older() -> PretendCluster:
    """Return another transform with the same target, which was created first and has started."""
    found = PretendCluster(resource("00001111-bbbb"))
    found.work()
    return found


def conditions(cluster: PretendCluster) -> dict[str, str]:
    """Return the conditions of its transform: status by type."""
    return {c["type"]: c["status"] for c in cluster.status["conditions"]}


def ready(cluster: PretendCluster) -> dict[str, Any]:
    """Return the condition that describes the current activity."""
    found: dict[str, Any] = next(c for c in cluster.status["conditions"] if c["type"] == "Ready")
    return found


def committing(step: str, index: int) -> tuple[int, object]:
    """The outcome if the pod of rank 4 is the last and commits."""
    return (0, LAST) if (step, index) == ("ranks", 4) else PretendCluster().outcome(step, index)


def failing(step: str, code: int, message: dict[str, Any], indexes: tuple[int, ...] = (0,)) -> Any:
    """Return an outcome function by which these pods of one step fail with an exit code and a message."""
    usual = PretendCluster().outcome
    return lambda s, i: (code, message) if (s, i in indexes) == (step, True) else usual(s, i)


def _ended(failure: str) -> dict[str, str]:
    """Return the condition of a Job that has ended, with the reason of its failure if it failed."""
    return {"type": "Failed" if failure else "Complete", "status": "True", "reason": failure or "Done", "message": "ended"}
