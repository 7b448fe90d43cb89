"""The lock, the records and the commit under all schedules of a few processes, and the defects that were found that way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulation.explorer import ViolationError, explore, repeat
from simulation.scenarios import KINDS, scenarios
from simulation.transforms import TARGET
from simulation.world import World
from store_contract import StoreContract

from reshard.target import lock
from reshard.target.folder import TargetFolder
from reshard.target.lock import LockHandle
from reshard.target.task import TaskState

if TYPE_CHECKING:
    from pathlib import Path

    from simulation.transforms import Scenario

    from reshard.storage.protocol import Store

# For each scenario. `make simulate` takes longer, and covers all schedules.
SCHEDULES = 20
NAMES = (
    "the same task twice",
    "two pods of a Job",
    "three pods of a Job",
    "two tasks, one target",
    "a replacement, twice",
    "two replacements",
    "verified files",
    "equal files",
    "two stages",
    "a stage, twice",
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def scenario(sources: Path, kind: str, name: str) -> Scenario:
    return scenarios(sources, KINDS[kind])[name]


@pytest.mark.parametrize(("kind", "name"), [*((kind, name) for kind in KINDS for name in NAMES), ("folder", "clones")])
def test_no_schedule_makes_a_wrong_target(sources: Path, kind: str, name: str) -> None:
    counts = explore(scenario(sources, kind, name).simulate, bound=2, most=SCHEDULES)
    assert counts.schedules > 1


def test_a_link_to_the_file_of_another_run_is_not_published(sources: Path) -> None:
    """A process pauses before it links a file, which another run then replaces."""
    repeat(scenario(sources, "folder", "equal files").simulate, r"A before HardLink rank_0.*: pause B")
    repeat(scenario(sources, "folder", "clones").simulate, r"A before create .*/tmp/rank_1.*: pause B")


# Defects that the exploration found, each with the schedule that showed it.


def test_a_manifest_is_not_published_after_another_task_has_started(sources: Path) -> None:
    repeat(scenario(sources, "folder", "two tasks, one target").simulate, r"A .* to reshard-manifest.json: pause B")


def test_an_object_with_the_manifest_is_not_published_after_another_task_has_started(sources: Path) -> None:
    repeat(scenario(sources, "bucket", "two tasks, one target").simulate, r"A .* upload reshard-manifest.json: pause B")


def test_the_files_of_a_task_that_is_completed_while_another_replaces_it_remain(sources: Path) -> None:
    repeat(
        scenario(sources, "folder", "verified files").simulate,
        r"A .* to reshard-manifest.json: pause B",
        r"B before delete rank_0.* through .*: pause A",
    )


def test_the_manifest_of_another_run_is_not_retired(sources: Path) -> None:
    """A process that pauses before it retires the old manifest retires that of the run that has completed the target."""
    repeat(scenario(sources, "folder", "a replacement, twice").simulate, r"A before rename reshard-manifest.json to .*: pause B")
    repeat(scenario(sources, "folder", "two replacements").simulate, r"A before rename reshard-manifest.json to .*: pause B")
    repeat(scenario(sources, "bucket", "two replacements").simulate, r"A before copy reshard-manifest.json to .*: pause B")
    repeat(scenario(sources, "bucket", "a replacement, twice").simulate, r"A before delete reshard-manifest.json: pause B")


def test_a_task_that_is_recorded_late_does_not_write_over_a_complete_checkpoint(sources: Path) -> None:
    for kind in KINDS:
        repeat(scenario(sources, kind, "two tasks, one target").simulate, r"A before .*/task.json: pause B")


def test_what_a_killed_process_has_left_after_the_end_is_not_what_another_task_replaces(sources: Path) -> None:
    """Records without their complete checkpoint would count as an unfinished task, whose files another one deletes."""
    for kind in KINDS:
        repeat(scenario(sources, kind, "two tasks, one target").simulate, r"A before delete .*/records/rank_1.json: crash")


# Defects that are injected, to show that the invariants find them.


def test_a_run_that_does_not_end_other_tasks_is_found(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TargetFolder, "discard", lambda *_: None)
    with pytest.raises(AssertionError, match="these files are wrong"):
        repeat(
            scenario(sources, "folder", "two tasks, one target").simulate,
            r"A .* to reshard-manifest.json: pause B",
            r"B .* to reshard-manifest.json: switch A",
        )


def test_a_process_that_does_not_check_its_lock_is_found(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers publish into one target."""
    monkeypatch.setattr(LockHandle, "check", lambda _: None)
    monkeypatch.setattr(TaskState, "read", lambda _: True)
    with pytest.raises(AssertionError, match="these files are wrong"):
        repeat(scenario(sources, "folder", "two tasks, one target").simulate, r"A before create .*/tmp/rank_0.*: pause B")


def test_a_published_link_to_the_file_of_another_run_is_found(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LockHandle, "check", lambda _: None)
    monkeypatch.setattr(TaskState, "read", lambda _: True)
    with pytest.raises(AssertionError, match="these files are wrong"):
        repeat(scenario(sources, "folder", "equal files").simulate, r"A before HardLink rank_0.*: pause B")
    with pytest.raises(AssertionError, match="these files are wrong"):
        repeat(scenario(sources, "folder", "clones").simulate, r"A before create .*/tmp/rank_1.*: pause B")


def test_a_lock_that_never_expires_is_found(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_has_expired", lambda *_: False)
    with pytest.raises(AssertionError, match="the last run failed: TargetLocked"):
        repeat(scenario(sources, "folder", "the same task twice").simulate, r"A before create .*/tmp/rank_0.*: crash")


def test_a_commit_that_cannot_be_resumed_is_found(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskState, "begin_commit", lambda *_: None)
    with pytest.raises(AssertionError, match="files of the old checkpoint are lost"):
        repeat(scenario(sources, "folder", "a replacement, twice").simulate)


def test_an_exploration_names_the_schedule_of_a_violation(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_has_expired", lambda *_: False)
    with pytest.raises(ViolationError, match=r"TargetLocked.*\nschedule .*: A before .*: crash"):
        explore(scenario(sources, "folder", "the same task twice").simulate, bound=1)


@pytest.mark.parametrize("kind", KINDS)
class TestSimulated(StoreContract):
    """The simulated stores keep the promises of the real ones, apart from those about real servers and clocks."""

    @pytest.fixture
    def store(self, kind: str) -> Store:
        return KINDS[kind](World(), TARGET)

    def test_nested_places_are_recognized(self, store: Store) -> None:
        assert store.around()[0] == TARGET
