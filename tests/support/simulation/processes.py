"""Processes of a simulation: threads of which one runs at a time, until the next access to the store."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from reshard.errors import ReshardError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from simulation.explorer import Choices

# A pause after which a lock without a heartbeat has expired.
PAUSE_SECONDS = 61.0


class CrashError(BaseException):
    """The process does not exist any more."""


@dataclass(eq=False)
class Process:
    """A process.

    Attributes:
        name: name in schedules.
        work: what it does.
        outcome: "" until it ends, "crashed", "ok", or the reason of its error.
        seen: hash of all that it has observed.
        beats: paths of locks whose heartbeat it sends.
        names: number of unique names that it has made.
        paused: whether it sends no heartbeat.
    """

    name: str
    work: Callable[[], object]
    outcome: str = ""
    seen: int = 0
    beats: list[str] = field(default_factory=list)
    names: int = 0
    paused: bool = False
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    thread: threading.Thread | None = None
    failure: BaseException | None = None
    error: ReshardError | None = None


class Scheduler:
    """Runs processes, one step at a time.

    Args:
        choices: choices of the schedule.
        state: function that returns the state of what they share.
        advance: function that lets time pass, after which these processes have refreshed their locks.
        check: function that checks invariants after each step.
        clock_steps: seconds by which the clock of the store may be set.
    """

    def __init__(
        self,
        choices: Choices,
        state: Callable[[], object],
        advance: Callable[[float, Sequence[Process]], None],
        check: Callable[[], None],
        clock_steps: Sequence[float] = (),
    ) -> None:
        self._choices, self._state, self._advance, self._check = choices, state, advance, check
        self._clock_steps = clock_steps
        self.processes: list[Process] = []
        self._local = threading.local()
        self._back = threading.Semaphore(0)
        self._ended = False
        self._failure: BaseException | None = None
        self.faults = True
        self.current: Process | None = None

    @property
    def running(self) -> Process | None:
        """The process whose code calls."""
        found: Process | None = getattr(self._local, "process", None)
        return found

    def run(self, processes: list[Process]) -> None:
        """Run processes until all have ended."""
        self.processes = processes
        started = [process for process in processes if not process.outcome]
        for process in started:
            process.thread = threading.Thread(target=self._body, args=(process,), daemon=True)
            process.thread.start()
        self._pass_to(started[0])
        self._back.acquire()
        if self._failure is not None:
            self._ended = True
            for process in started:
                process.turn.release()
        for process in started:
            assert process.thread is not None
            process.thread.join()
        if self._failure is not None:
            raise self._failure
        for process in processes:
            if process.failure is not None:
                raise AssertionError(f"{process.name} failed: {process.failure!r}") from process.failure

    def _body(self, process: Process) -> None:
        self._local.process = process
        process.turn.acquire()
        try:
            if self._ended:
                return
            process.work()
            process.outcome = "ok"
        except CrashError:
            process.outcome = "crashed"
        except ReshardError as error:
            process.outcome, process.error = error.reason, error
        except BaseException as error:  # noqa: BLE001 - reported by the scheduler
            process.outcome, process.failure = "failed", error
        process.beats.clear()
        if self._ended:
            return
        alive = [other for other in self.processes if not other.outcome]
        if alive:
            self._pass_to(alive[0])
        else:
            self._back.release()

    def step(self, what: str, *, writes: bool = False, server: bool = False, fenced: bool = True) -> str:
        """Let others run before an access.

        Args:
            what: name of the access.
            writes: whether it changes the store.
            server: whether it is a request, whose answer can be lost, and that can be repeated.
            fenced: whether it fails if another process has taken over the lock, so that the process may pause before it.

        Returns:
            "" or what happens to the request: "lost" or "twice".
        """
        me = self.running
        if me is None:
            return ""
        if me.outcome or self._ended:
            raise CrashError
        try:
            self._check()
            chosen = self._choose(me, what, writes=writes, server=server, fenced=fenced)
        except BaseException as error:  # noqa: BLE001 - a violation or a known state ends the schedule
            self._failure = self._failure or error
            self._ended = True
            self._back.release()
            raise CrashError from None
        kind, _, name = chosen.partition(" ")
        if kind == "crash":
            me.outcome = "crashed"
            me.beats.clear()
            raise CrashError
        if kind == "clock":
            self._advance(float(name), ())
        elif kind in {"switch", "pause"}:
            if kind == "pause":
                me.paused = True
                self._advance(PAUSE_SECONDS, [each for each in self.processes if not each.paused])
            self._pass_to(next(process for process in self.processes if process.name == name))
            me.turn.acquire()
            me.paused = False
            if self._ended:
                raise CrashError
        return kind if kind in {"lost", "twice"} else ""

    def _pass_to(self, process: Process) -> None:
        self.current = process
        process.turn.release()

    def sleep(self) -> None:
        """Let another process run, if there is one, before the running process continues."""
        if (me := self.running) is not None and (others := [p for p in self.processes if p is not me and not p.outcome]):
            self._pass_to(others[0])
            me.turn.acquire()
            if self._ended:
                raise CrashError

    def _choose(self, me: Process, what: str, *, writes: bool, server: bool, fenced: bool) -> str:
        options = [""]
        if self.faults:
            others = [process.name for process in self.processes if process is not me and not process.outcome]
            options += [f"switch {name}" for name in others]
            options += [f"pause {name}" for name in others if fenced or not server]
            options += [f"clock {seconds}" for seconds in self._clock_steps]
            options += ["crash"] if writes else []
            options += ["lost", "twice"] if writes and server else []
        named = [f"{me.name} before {what}: {option}" for option in options]
        return options[self._choices.pick(named, lambda: self._key(me))]

    def _key(self, me: Process) -> object:
        processes = tuple((process.seen, process.outcome, process is me) for process in self.processes)
        return hash((self._state(), processes))

    def observe(self, *what: object) -> None:
        """Add what the running process has observed to its state."""
        if (me := self.running) is not None:
            me.seen = hash((me.seen, what))


class InlineExecutor:
    """An executor that calls functions at once, so that a process has one thread."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *arguments: object, **named: object) -> Future[Any]:
        """See `Executor.submit`."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future

    def map(self, function: Callable[..., Any], *items: Any) -> Any:
        """See `Executor.map`."""
        return map(function, *items)

    def shutdown(self, *_: object, **__: object) -> None:
        """See `Executor.shutdown`."""
