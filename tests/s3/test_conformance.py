"""Results of MindSpore and of the definition, from and to a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import contents
import effort
import pytest
import saved
from corpus_contract import CorpusContract
from places import SIDES
from test_transform import refused_by_rank
from transforms import COUNT, make

from reshard.mindspore import merge_pipeline_strategys, rank_list_for_transform
from reshard.storage.s3 import client

if TYPE_CHECKING:
    from pathlib import Path

    from places import Sides
    from transforms import Case

# Each case has one of the combinations of sides, or all of them in the profile `all`.
ALL = [
    pytest.param(case, sides, id=f"{case.name}-{'-to-'.join(sides)}")
    for case in map(make, range(COUNT))
    for place, sides in enumerate(SIDES)
    if effort.PROFILE == "all" or place == case.number % len(SIDES)
]


@pytest.fixture(scope="module", autouse=True)
def _no_client_stays() -> None:
    """Use the same client for all cases, because their environment is the same."""
    client.client_of.cache_clear()


class TestInBuckets(CorpusContract):
    pass


def strategy(sides: Sides, folder: Path, case: Case, side: str) -> str | None:
    """Return the path of a side's strategy, merged for every fourth case."""
    if not getattr(case, f"{side}_named"):
        return None
    saved.write_strategies(folder / side, case, side)
    stages = sides.source.put(folder / side)
    if case.number % 4:
        return stages
    merged = f"{sides.target.new()}.{'json' if case.json else 'ckpt'}"
    merge_pipeline_strategys(stages, merged)
    return merged


@pytest.mark.parametrize(("case", "sides"), ALL, indirect=["sides"])
def test_a_rank_of_every_case_is_right(case: Case, sides: Sides, tmp_path: Path) -> None:
    before, after = (strategy(sides, tmp_path, case, side) for side in ("source", "target"))
    rank = case.number % case.target_ranks
    read = rank_list_for_transform(rank, before, after)
    saved.write_source(tmp_path / "saved", case, read)
    source, made = sides.source.put(tmp_path / "saved"), sides.target.new()
    files = {each: f"{source}/rank_{each}/{case.file_name(each)}" for each in read}
    if refused_by_rank(case, rank, files, f"{made}/made.{case.target_format}", before, after):
        return
    found = contents.tensors((sides.target.get(made) / f"made.{case.target_format}").read_bytes(), case.target_format)
    types, held = case.types(), {name for each in read for name in case.source(each)}
    right = {name: (types[name], a.shape, a.tobytes()) for name, a in case.target(rank, read).items()}
    assert found == {name: value for name, value in right.items() if name in held}
