"""Explore all schedules of a simulation up to a number of deviations from the usual one.

A simulation is a function that asks at each of its steps what happens next. Alternative 0 is the usual one and costs nothing: the
running process continues. Each other one is a deviation: a switch, a pause, a crash, a lost answer. A schedule is the list of its
deviations, so that a failure can be repeated from its text.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

Schedule = tuple[tuple[int, int], ...]


class PrunedError(BaseException):
    """The state was reached before, with at least as many deviations left."""


class ViolationError(AssertionError):
    """An invariant does not hold. The message ends with the schedule."""


@dataclass
class Counts:
    """What an exploration has covered.

    Attributes:
        schedules: number of schedules that were run.
        pruned: number of these that ended in a known state.
        states: number of distinct states.
        depth: largest number of steps of a schedule.
        bound: largest number of deviations.
        exhausted: whether all schedules within the bound were run.
    """

    schedules: int = 0
    pruned: int = 0
    states: int = 0
    depth: int = 0
    bound: int = 0
    exhausted: bool = False

    def __str__(self) -> str:
        complete = "all" if self.exhausted else "some"
        return (
            f"{complete} schedules with at most {self.bound} deviations: {self.schedules:,} schedules"
            f" ({self.pruned:,} ended in a known state), {self.states:,} states, at most {self.depth} steps"
        )


@dataclass
class Choices:
    """The choices of one schedule, and the alternatives that were not taken."""

    schedule: Schedule
    bound: int
    visited: dict[Hashable, int]
    steps: int = 0
    alternatives: list[Schedule] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def pick(self, options: Sequence[str], state: Callable[[], Hashable]) -> int:
        """Return the number of the option that happens at this step.

        Raises:
            PrunedError: the state is known.
        """
        step, self.steps = self.steps, self.steps + 1
        planned = dict(self.schedule)
        if step in planned:
            chosen = planned[step]
            self.log.append(f"{step}: {options[chosen]}")
            return chosen
        if not self.schedule or step > self.schedule[-1][0]:
            left = self.bound - len(self.schedule)
            now = state()
            if self.visited.get(now, -1) >= left:
                raise PrunedError
            self.visited[now] = left
            if left:
                self.alternatives += [(*self.schedule, (step, number)) for number in range(1, len(options))]
        return 0


def explore(
    simulate: Callable[[Choices], None], *, bound: int, seconds: float = float("inf"), most: float = float("inf"), seed: int = 1
) -> Counts:
    """Run a simulation with at most `most` schedules of at most `bound` deviations, in random order, as far as the time permits.

    Without a limit of the time, the same schedules are run each time.

    Raises:
        ViolationError: an invariant does not hold.
    """
    deadline = float("inf")
    counts, visited, chosen = Counts(bound=bound), dict["Hashable", int](), random.Random(seed)
    waiting: list[Schedule] = [()]
    while waiting and counts.schedules < most and time.monotonic() < deadline:
        number = chosen.randrange(len(waiting))
        waiting[number], waiting[-1] = waiting[-1], waiting[number]
        choices = Choices(waiting.pop(), bound, visited)
        counts.schedules += 1
        try:
            simulate(choices)
        except PrunedError:
            counts.pruned += 1
        except AssertionError as error:
            raise ViolationError(f"{error}\nschedule {choices.schedule}: {'; '.join(choices.log)}") from error
        waiting += choices.alternatives
        deadline = min(deadline, time.monotonic() + seconds)  # the first schedule also prepares what all use
        counts.depth = max(counts.depth, choices.steps)
    counts.states, counts.exhausted = len(visited), not waiting
    return counts


@dataclass
class Moments(Choices):
    """A schedule whose deviations are described by text, so that it remains valid if steps are added.

    Attributes:
        moments: regular expressions. The first option in which the next one is found is chosen.
    """

    moments: list[str] = field(default_factory=list)

    def pick(self, options: Sequence[str], state: Callable[[], Hashable]) -> int:
        """See `Choices.pick`."""
        del state
        found = next((n for n, option in enumerate(options) if self.moments and re.search(self.moments[0], option)), 0)
        if found:
            self.log.append(options[found])
            self.moments.pop(0)
        return found


def repeat(simulate: Callable[[Choices], None], *moments: str) -> None:
    """Run the schedule in which these deviations happen as soon as they can.

    Raises:
        AssertionError: an invariant does not hold, or the deviations cannot happen.
    """
    choices = Moments((), 0, {}, moments=[*moments])
    simulate(choices)
    assert not choices.moments, f"this did not happen: {choices.moments}"
