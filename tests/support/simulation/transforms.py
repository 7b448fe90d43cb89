"""Transforms of a simulation: the real code, with the target in a simulated store."""

from __future__ import annotations

import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import models
from definition import Cut

from reshard import telemetry
from reshard.checkpoint.manifest import MANIFEST_NAME, STATE, Manifest, decode
from reshard.progress import Progress, Silent
from reshard.spec.request import Options, Request
from reshard.target import lock
from reshard.target.process import ProcessId
from reshard.transform import checks, complete, preflight, run
from reshard.transform.inputs import Inputs
from reshard.transform.run import transform_checkpoint
from simulation.bucket import SimulatedBucket
from simulation.explorer import Choices
from simulation.folder import SimulatedFolder
from simulation.processes import PAUSE_SECONDS, InlineExecutor, Process, Scheduler
from simulation.world import File, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import disk

    from reshard.engine.task import Task
Kind = type[SimulatedFolder] | type[SimulatedBucket]
Requests = tuple[Request, ...]  # of runs that together write one checkpoint: one, or one for each stage
TARGET = "/simulated/target"
# The code under test, which the environment replaces.
_PREPARE, _RETRYING = preflight.prepare, lock.Retrying


def model(seed: int, *, replicas: bool = False) -> models.Model:
    """Return a model of 2 ranks with one parameter, cut by rows. The target ranks may be replicas instead."""
    target = Cut((2,), ((), ()) if replicas else ((0,), ()))
    tensor = models.Tensor("w", "Int8", (4, 4), Cut((2,), ((0,), ())), 0, target, 0)
    return models.Model(2, 1, 2, 1, (tensor,), seed, remove_redundancy=False)


def request_of(made: disk.Checkpoint, **options: Any) -> Request:
    """Return the request of a transform to the simulated target."""
    strategies = {"source_strategy": str(made.source_strategy), "target_strategy": str(made.target_strategy)}
    return Request(str(made.source), TARGET, **strategies, options=Options(**{"verification": "None", **options}))


class _Heart:
    """The heartbeat of a lock. It beats when the scheduler lets time pass."""

    def __init__(self, scheduler: Scheduler, path: str) -> None:
        self._process, self._path = scheduler.running, path

    def start(self) -> None:
        if self._process is not None:
            self._process.beats.append(self._path)

    def join(self) -> None:
        if self._process is not None and self._path in self._process.beats:
            self._process.beats.remove(self._path)


@contextmanager
def environment(scheduler: Scheduler, world: World, kind: Kind) -> Iterator[None]:
    """Run the code of the body with a simulated target, without threads, clocks and random names."""

    def store(*_: object) -> Any:
        return kind(world, TARGET)

    def identity() -> ProcessId:
        process = scheduler.running
        number = 0 if process is None else 1 + scheduler.processes.index(process)
        return ProcessId("a" * 12, 1000 + number, 1)

    def started(pid: int) -> int | None:
        number = pid - 1001
        alive = 0 <= number < len(scheduler.processes) and not scheduler.processes[number].outcome
        return 1 if alive else None

    def name() -> Any:
        process = scheduler.running
        if process is None:
            return uuid.UUID(int=0)
        process.names += 1
        return SimpleNamespace(hex=f"{process.name}{process.names}")

    replaced: list[tuple[Any, str, object]] = [
        *((module, "open_store", store) for module in (checks, complete)),
        *((module, "this_process", identity) for module in (lock, run)),
        *((module, "ThreadPoolExecutor", InlineExecutor) for module in _modules_with_pools()),
        (lock, "start_time", started),
        (preflight, "prepare", _prepared),
        (lock, "Retrying", lambda **settings: _RETRYING(**{**settings, "sleep": lambda _: scheduler.sleep()})),
        (uuid, "uuid4", name),
        (telemetry, "time", SimpleNamespace(perf_counter=lambda: 0.0)),
    ]
    threads = SimpleNamespace(
        Event=lambda: SimpleNamespace(set=lambda: None),
        Thread=lambda args, **_: _Heart(scheduler, args[1]),
    )
    with ExitStack() as stack:
        for owner, attribute, value in (*replaced, (lock, "threading", threads)):
            stack.enter_context(patch.object(owner, attribute, value))
        yield


@cache
def _planned(request: Request) -> Task:
    """Return the task of a request. It is the same in all schedules, because the source does not change."""
    return _PREPARE(Inputs(request), Silent(), workers=1)


def _prepared(inputs: Inputs, progress: Progress, *, workers: int) -> Task:
    del progress, workers
    return _planned(inputs.request)


def _modules_with_pools() -> list[Any]:
    found = (module for name, module in sys.modules.items() if name.startswith("reshard."))
    return [module for module in found if vars(module).get("ThreadPoolExecutor") is ThreadPoolExecutor]


@dataclass(frozen=True)
class Scenario:
    """Processes that write to one target.

    Attributes:
        kind: kind of the store.
        works: what each process does.
        last: runs that must complete the target after all others have ended.
        before: runs whose complete checkpoint the target contains at first.
        acceptable: further runs whose checkpoint the target may contain.
        clock_steps: seconds by which the clock of the store may be set.
    """

    kind: Kind
    works: tuple[Callable[[], object], ...]
    last: Requests
    before: Requests = ()
    acceptable: tuple[Requests, ...] = ()
    clock_steps: tuple[float, ...] = ()

    def simulate(self, choices: Choices) -> None:
        """Run one schedule, and check the invariants after each step."""
        contents = dict(written(self.kind, requests) for requests in (*self.acceptable, self.last))
        world = World()
        old: dict[str, File] = {}
        if self.before:
            digest, contents_before = written(self.kind, self.before)
            contents[digest] = contents_before
            old = dict(_completed(self.kind, self.before).files)
            world.files |= old
            world.folders |= _completed(self.kind, self.before).folders
            world.serial = 1000
        invariants = Invariants(world, contents, old, in_place=self.kind is SimulatedBucket)
        scheduler = Scheduler(choices, lambda: world.state, world.advance, invariants.check, self.clock_steps)
        world.scheduler = scheduler
        with environment(scheduler, world, self.kind):
            scheduler.run([Process(chr(ord("A") + n), work) for n, work in enumerate(self.works)])
            invariants.check()
            scheduler.faults = False
            last = self._complete(scheduler, world)
            if last.outcome == "TargetExists" and MANIFEST_NAME not in world.files:
                # A process was killed after a file got its final path, and before it was recorded. As the message says, the user
                # moves the file.
                for path in [path for path in world.files if path.startswith("rank_")]:
                    del world.files[path]
                last = self._complete(scheduler, world)
        invariants.check()
        assert last.outcome == "ok", f"the last run failed: {last.outcome} {last.error}"
        assert MANIFEST_NAME in world.files, "the last run has not completed the target"

    def _complete(self, scheduler: Scheduler, world: World) -> Process:
        """Return the process of the last runs after all others have ended."""
        last = Process("last", lambda: _run(self.last))
        world.clock += 2 * PAUSE_SECONDS
        scheduler.run([*scheduler.processes, last])
        return last


class Invariants:
    """What holds in each state of a target."""

    def __init__(self, world: World, contents: dict[str, dict[str, bytes]], old: dict[str, File], *, in_place: bool) -> None:
        self._world, self._contents, self._old, self._in_place = world, contents, old, in_place
        self._seen: object = None

    def check(self) -> None:
        """Check the invariants, if the target has changed."""
        files = self._world.files
        now = {path: file for path, file in files.items() if not path.startswith(STATE)}
        if now != self._seen:
            self._seen = now
            manifest = files.get(MANIFEST_NAME)
            if manifest is not None:
                digest = decode(manifest.content, Manifest, MANIFEST_NAME).digest
                found = {path: file.content for path, file in now.items() if path.startswith("rank_")}
                expected = self._contents[digest]
                wrong = sorted(path for path in {*found, *expected} if found.get(path) != expected.get(path))
                assert not wrong, f"the target is complete, but these files are wrong, missing or left over: {wrong}"
            lost = [path for path, file in self._old.items() if path != MANIFEST_NAME and files.get(path) != file]
            replacing = "task.json" if self._in_place else "commit.json"
            resumable = any(path.startswith(STATE) and path.endswith(f"/{replacing}") for path in files)
            assert manifest is not None or not lost or resumable, f"files of the old checkpoint are lost: {lost}"


def _run(requests: Requests) -> None:
    for request in requests:
        transform_checkpoint(request, workers=1)


@cache
def _completed(kind: Kind, requests: Requests) -> World:
    """Return the target after transforms to an empty target."""
    world = World()
    scheduler = Scheduler(Choices((), 0, {}), lambda: None, world.advance, lambda: None)
    world.scheduler = scheduler
    with environment(scheduler, world, kind):
        process = Process("first", lambda: _run(requests))
        scheduler.faults = False
        scheduler.run([process])
    assert process.outcome == "ok", process.error
    return world


def written(kind: Kind, requests: Requests) -> tuple[str, dict[str, bytes]]:
    """Return the digest of the checkpoint that runs write, and the content of its files."""
    files = _completed(kind, requests).files
    digest = decode(files[MANIFEST_NAME].content, Manifest, MANIFEST_NAME).digest
    return digest, {path: file.content for path, file in files.items() if path.startswith("rank_")}
