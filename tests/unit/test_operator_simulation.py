"""The operator under all schedules of failures of the API server, stale reads, silent watches, kills and a second leader."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import msgspec
import pytest
from pretend_cluster import COMMIT, CONFIG
from simulation import reconciles
from simulation.explorer import ViolationError, explore, repeat
from simulation.reconciles import SIMULATED, Api

from reshard.spec.messages import CommitMessage
from reshard_operator import reconcile, worker
from reshard_operator.decision import Decision
from reshard_operator.observation import Observation

if TYPE_CHECKING:
    from reshard_operator.config import Config

# For each simulation. `make simulate` takes longer, and covers all schedules.
SCHEDULES = 10
REPORTING = SIMULATED["the last pod commits"]


@pytest.mark.parametrize("name", SIMULATED)
def test_no_schedule_confuses_the_operator(name: str) -> None:
    assert explore(SIMULATED[name].simulate, bound=2, most=SCHEDULES).schedules > 1


# Defects that are injected, to show that the invariants find them.


def test_a_status_that_is_written_without_its_version_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Api, "version_of", lambda self, transform: self.clusters[transform.name].resource["metadata"]["resourceVersion"]
    )
    with pytest.raises(AssertionError, match="the status of a has lost"):  # the time of its end
        repeat(REPORTING.simulate, "list Jobs: an older leader acts", "list pods: the cluster advances")


def test_jobs_without_names_of_their_own_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()
    monkeypatch.setattr(reconcile, "_next_run", lambda *_: 1 + next(numbers) % 3)
    with pytest.raises(AssertionError, match="two Jobs of a work at once"):
        repeat(REPORTING.simulate, "list pods: an older leader acts")


def test_a_success_without_a_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    done = msgspec.convert(COMMIT, CommitMessage)
    monkeypatch.setattr(Observation, "committed", lambda self: done if "ranks" in self.jobs else None)
    with pytest.raises(ViolationError, match="nothing was committed"):
        explore(REPORTING.simulate, bound=1, seconds=60)


def test_a_transform_that_never_resumes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(seen: Observation, config: Config) -> Decision:
        return Decision() if seen.transform.status.get("phase") == "Suspended" else reconcile.reconcile(seen, config)

    monkeypatch.setattr(worker, "reconcile", forgetful)
    with pytest.raises(ViolationError, match="these phases are not final"):
        explore(REPORTING.simulate, bound=1, seconds=60)


def test_a_missing_resync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciles, "CONFIG", replace(CONFIG, resync_seconds=float("inf")))
    with pytest.raises(AssertionError, match="these phases are not final"):
        repeat(REPORTING.simulate, "the watches fall silent")


def test_transforms_complete_with_silent_watches() -> None:
    repeat(REPORTING.simulate, "the watches fall silent")
