"""Reconciles of a simulation: the operator's real code with a simulated API server.

The operator and the cluster take turns. The operator looks at a transform as it does in reality: after an event, after the time
that it chose itself, and at every resync. Its watches may fall silent, so that events are lost until it restarts. Before each of
its requests, something else may happen: the cluster advances, the user suspends or resumes, the request fails or its answer is
lost, the operator is killed, a former leader acts, or a read returns an older state.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from unittest.mock import patch

from pretend_cluster import CONFIG, PretendCluster, committing, resource

from reshard_operator import rivals, worker
from reshard_operator.cluster import ApiError
from reshard_operator.decision import Decision
from reshard_operator.objects import Job, Pod
from reshard_operator.observation import Observation, Transform
from reshard_operator.worker import Reconciler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from reshard_operator.decision import Action
    from reshard_operator.objects import Object
    from simulation.explorer import Choices

T = TypeVar("T")

_TURN_SECONDS = 10
# Turns in which something unusual may happen, and those in which the operator must then bring everything to its end. With silent
# watches, it learns of each step at the next resync.
_UNUSUAL_TURNS, _MOST_TURNS = 15, 200
_MOST_LAG = 3


class KilledError(BaseException):
    """The operator was killed."""


@dataclass
class Api:
    """The API server, as one instance of the operator sees it.

    Attributes:
        clusters: each transform with its Jobs, by name.
        happen: function that lets something happen before a request, and returns it.
        lag: number of versions by which the next observation is late.
        read: hash of what was read since the last observation began.
    """

    clusters: dict[str, PretendCluster]
    happen: Callable[[str], str]
    history: Mapping[str, Sequence[PretendCluster]] = field(default_factory=dict)
    lag: int = 0
    read: int = 0

    async def observe(self, _: str, name: str) -> Observation:
        """Read the transform, its Jobs and its pods, one after the other. Each may be of another moment."""
        self._request("read the transform")
        transform = Transform.parse(copy.deepcopy(self._past(name).resource))
        self.read = hash(json.dumps(self._past(name).resource, sort_keys=True))
        self._request("list Jobs")
        past = self._past(name)
        own, others = [Job(copy.deepcopy(job)) for job in past.jobs.values()], self._others(name)
        self.read = hash((self.read, json.dumps(past.jobs, sort_keys=True)))
        self._request("list pods")
        pods = tuple(Pod(copy.deepcopy(pod)) for pod in self._past(name).pods)
        self.read = hash((self.read, json.dumps(self._past(name).pods, sort_keys=True)))
        seen = Observation.of(transform, past.now, own)
        return replace(seen, pods=pods, rivals=rivals.conflicting_jobs(seen, others))

    def _past(self, name: str) -> PretendCluster:
        known = [*self.history.get(name, ()), self.clusters[name]]
        return known[max(0, len(known) - 1 - self.lag)]

    def _others(self, name: str) -> list[Job]:
        clusters = (cluster for other, cluster in self.clusters.items() if other != name)
        return [Job(copy.deepcopy(job)) for cluster in clusters for job in cluster.jobs.values()]

    async def act(self, transform: Transform, action: Action) -> None:
        """Execute one action."""
        self._write(
            f"{type(action).__name__} {action.name}", lambda: self.clusters[transform.name].carry_out(Decision(None, (action,)))
        )

    async def write_status(self, transform: Transform, status: Object) -> None:
        """Write a status if the resource is unchanged."""

        def write() -> None:
            there = self.clusters[transform.name].resource
            if there["metadata"]["resourceVersion"] != self.version_of(transform):
                raise ApiError(409, "Conflict", "the resource has changed")
            there["status"] = copy.deepcopy(status)
            _renew(there)

        self._write("write the status", write)

    def version_of(self, transform: Transform) -> str:
        """Return the version that a status is written for."""
        return transform.resource_version

    async def record_event(self, *_: object) -> None:
        """Record nothing."""

    def _request(self, what: str) -> str:
        happened = self.happen(what)
        if happened == "fails":
            raise ApiError(0, "Unreachable", "the API server cannot be reached")
        return happened

    def _write(self, what: str, act: Callable[[], None]) -> None:
        happened = self._request(what)
        act()
        if happened == "answer lost":
            raise ApiError(0, "Unreachable", "the connection was closed")


def _renew(there: Object) -> None:
    there["metadata"]["resourceVersion"] = str(int(there["metadata"]["resourceVersion"]) + 1)


@dataclass(frozen=True)
class Reconciles:
    """Transforms that an operator brings to their end.

    Attributes:
        uids: UID of each transform, by name. Each has the same target.
        spec: their spec.
        outcome: what their pods leave, as in `PretendCluster`.
    """

    uids: dict[str, str]
    spec: dict[str, Any] = field(default_factory=dict)
    outcome: Callable[[str, int], tuple[int, object]] = committing

    def simulate(self, choices: Choices) -> None:
        """Run one schedule, and check the invariants after each step."""
        story = _Story(self, choices)
        with patch.object(worker, "time", SimpleNamespace(monotonic=lambda: story.seconds)):
            for _ in range(_UNUSUAL_TURNS):
                story.turn()
                if story.ended:
                    break
            story.faults = False
            for cluster in story.clusters.values():
                cluster.change(suspend=False)
            for _ in range(_MOST_TURNS):
                story.turn()
                if story.ended:
                    break
            story.turn()
        phases = {name: cluster.status.get("phase") for name, cluster in story.clusters.items()}
        assert {*phases.values()} == {"Complete"}, f"the API server works, and these phases are not final: {phases}"


class _Story:
    """One run of a simulation."""

    def __init__(self, simulated: Reconciles, choices: Choices) -> None:
        self.clusters: dict[str, PretendCluster] = {}
        self.committed: set[str] = set()
        self.faults, self.seconds = True, 0.0
        self._choices, self._ends = choices, dict[str, "Object"]()
        for name, uid in simulated.uids.items():
            made = resource(uid, **copy.deepcopy(simulated.spec))
            made["metadata"]["name"] = name
            self.clusters[name] = PretendCluster(made, outcome=partial(self._outcome, name, simulated.outcome))
        self._history: dict[str, deque[PretendCluster]] = {name: deque(maxlen=_MOST_LAG) for name in self.clusters}
        self._api = Api(self.clusters, self._happen, self._history)
        self._watched: dict[str, str] = {}  # what the watches have shown of each transform
        self._due = dict.fromkeys(self.clusters, float("inf"))  # when the operator looks at each transform
        self._start()

    @property
    def ended(self) -> bool:
        return all("completionTime" in cluster.status for cluster in self.clusters.values())

    def _outcome(self, name: str, usual: Callable[[str, int], tuple[int, object]], step: str, index: int) -> tuple[int, object]:
        code, said = usual(step, index)
        if not code and (step == "commit" or (isinstance(said, dict) and said.get("committed"))):
            self.committed.add(name)
        return code, said

    def _start(self) -> None:
        """Start the operator, with new watches and a resync."""
        self._reconciler = Reconciler(cast("Any", self._api), CONFIG, lambda: True)
        self._silent, self._resync = False, self.seconds

    def turn(self) -> None:
        """Let the operator look at each transform that is due, and then advance the cluster."""
        self._watch()
        if self._resync <= self.seconds:
            self._resync = self.seconds + CONFIG.resync_seconds
            for name, cluster in self.clusters.items():
                if not self._reconciler.rests(cluster.resource):
                    self._due[name] = self.seconds
        for name in self.clusters:
            if self._due[name] > self.seconds:
                continue
            self._api.lag = 0
            try:
                after, _ = _run(self._reconciler._reconcile("ns", name))  # noqa: SLF001 - without its queue
                self._due[name] = self.seconds + (float("inf") if after is None else after)
            except ApiError:
                self._due[name] = self.seconds  # the next turn is late enough
            except KilledError:
                self._start()
            self._check()
        self._advance()
        self.seconds += _TURN_SECONDS

    def _watch(self) -> None:
        """Report what has changed, unless the watches are silent. Pods are not watched."""
        for name, cluster in self.clusters.items():
            now = json.dumps([cluster.resource, cluster.jobs], sort_keys=True)
            if self._silent or now == self._watched.get(name):
                continue
            options = ["watch: an event", "watch: the watches fall silent"]
            self._silent = self.faults and self._choices.pick(options, lambda: self._state("watch")) == 1
            if not self._silent:
                self._watched[name], self._due[name] = now, self.seconds

    def _advance(self) -> None:
        for name, cluster in self.clusters.items():
            self.remember(name)
            cluster.advance()
        self._check()

    def remember(self, name: str) -> None:
        """Keep the present state for stale reads."""
        now = self.clusters[name]
        self._history[name].append(
            replace(now, resource=copy.deepcopy(now.resource), jobs=copy.deepcopy(now.jobs), pods=[*now.pods])
        )

    def _happen(self, what: str) -> str:
        if not self.faults:
            return ""
        options = ["", "the cluster advances", "the user suspends", "the user resumes", "fails", "killed", "an older leader acts"]
        options += ["stale", "very stale"] if what == "read the transform" else []
        options += ["answer lost"] if what[0].isupper() or what.startswith("write") else []
        happened = options[self._choices.pick([f"{what}: {option}" for option in options], lambda: self._state(what))]
        if happened == "the cluster advances":
            self._advance()
        elif happened.startswith("the user"):
            for name, cluster in self.clusters.items():
                self.remember(name)
                cluster.change(suspend=happened.endswith("suspends"))
                _renew(cluster.resource)
        elif happened == "killed":
            raise KilledError
        elif happened == "an older leader acts":
            other = Api(self.clusters, lambda _: "")
            for name in self.clusters:
                with contextlib.suppress(ApiError):
                    _run(Reconciler(cast("Any", other), CONFIG, lambda: True)._reconcile("ns", name))  # noqa: SLF001 - see above
        elif happened.endswith("stale"):
            self._api.lag = _MOST_LAG if happened.startswith("very") else 1
        self._check()
        return happened

    def _state(self, what: str) -> object:
        found = [
            json.dumps([cluster.resource, cluster.jobs, cluster.pods, str(cluster.now)], sort_keys=True)
            for cluster in self.clusters.values()
        ]
        due = tuple(sorted(self._due.items()))
        return what, hash((*found, self._api.read, self.seconds, self._silent, self._resync, due))

    def _check(self) -> None:
        for name, cluster in self.clusters.items():
            assert len(cluster.working) <= 1, f"two Jobs of {name} work at once: {cluster.working}"
            status = cluster.status
            if status.get("phase") == "Complete":
                assert name in self.committed, f"{name} is complete, and nothing was committed"
            before = self._ends.setdefault(name, {})
            kept = {key: value for key, value in before.items() if key in {"plan", "manifest", "completionTime", "startTime"}}
            lost = {key for key, value in kept.items() if status.get(key) != value}
            assert not lost, f"the status of {name} has lost {sorted(lost)}"
            assert not (before.get("completionTime") and before["phase"] != status["phase"]), f"{name} has ended twice"
            self._ends[name] = status


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing, and return its result."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise AssertionError("it waits")


SIMULATED = {
    "the last pod commits": Reconciles({"a": "11112222-aaaa"}),
    "a commit step": Reconciles({"a": "11112222-aaaa"}, outcome=PretendCluster().outcome),
    "a single pod": Reconciles({"a": "11112222-aaaa"}, {"execution": {"mode": "SinglePod"}}),
    "two transforms of one target": Reconciles({"a": "11112222-aaaa", "b": "22223333-bbbb"}),
}
