"""The lock, the records and the commit under all schedules of a few processes, and the defects that were found that way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from simulation.explorer import explore
from simulation.scenarios import KINDS, scenarios
from simulation.stores import World
from simulation.transforms import TARGET
from store_contract import StoreContract

if TYPE_CHECKING:
    from pathlib import Path

    from simulation.transforms import Scenario

    from reshard.storage.protocol import Store

# For each scenario. `make simulate` takes longer, and covers all schedules.
SECONDS = 1.5
NAMES = (
    "the same task twice",
    "two pods of a Job",
    "three pods of a Job",
    "two tasks, one target",
    "a replacement, twice",
    "two replacements",
    "verified files",
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def scenario(sources: Path, kind: str, name: str) -> Scenario:
    return scenarios(sources, KINDS[kind])[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_schedule_makes_a_wrong_target(sources: Path, kind: str, name: str) -> None:
    counts = explore(scenario(sources, kind, name).simulate, bound=2, seconds=SECONDS)
    assert counts.schedules > 1


@pytest.mark.parametrize("kind", KINDS)
class TestSimulated(StoreContract):
    """The simulated stores keep the promises of the real ones, apart from those about real servers and clocks."""

    @pytest.fixture
    def store(self, kind: str) -> Store:
        return KINDS[kind](World(), TARGET)

    def test_nested_places_are_recognized(self, store: Store) -> None:
        assert store.around()[0] == TARGET
