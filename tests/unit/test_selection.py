"""Which file of `rank_<r>/` is meant."""

from __future__ import annotations

import pytest

from reshard.errors import ReshardError
from reshard.source.selection import select_files

WITH_STEPS = ["net-9_1.ckpt", "net-10_1.ckpt", "net-10_1_breakpoint.ckpt", "checkpoint-graph.meta", "x.txt", ".hidden.ckpt"]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ({0: WITH_STEPS, 1: WITH_STEPS}, {0: "net-10_1.ckpt", 1: "net-10_1.ckpt"}),
        ({0: ["checkpoint_0.ckpt"], 3: ["checkpoint_3.ckpt"]}, {0: "checkpoint_0.ckpt", 3: "checkpoint_3.ckpt"}),
        ({0: ["net_1-3_20.safetensors", "net_1-3_100.safetensors"]}, {0: "net_1-3_100.safetensors"}),
        ({0: ["a-1_5.ckpt", "a-2_1.ckpt"]}, {0: "a-2_1.ckpt"}),
        ({0: ["any name.ckpt"]}, {0: "any name.ckpt"}),
    ],
)
def test_the_newest_step_counts_as_numbers(names: dict[int, list[str]], chosen: dict[int, str]) -> None:
    assert select_files(names).files == chosen


def test_the_newest_step_that_every_rank_has_and_a_word_about_it() -> None:
    found = select_files({0: ["a-1_5.ckpt", "a-1_6.ckpt"], 1: ["a-1_5.ckpt"]})
    assert found.files == {0: "a-1_5.ckpt", 1: "a-1_5.ckpt"}
    assert found.notes == ("epoch 1, step 5 is the newest that every rank has; rank 0 has a newer one",)


def test_a_step_or_a_pattern_can_be_asked_for() -> None:
    names = {0: ["a-1_5.ckpt", "a-1_6.ckpt", "b-1_6.ckpt"]}
    assert select_files(names, step=5).files == {0: "a-1_5.ckpt"}
    assert select_files(names, pattern="b*").files == {0: "b-1_6.ckpt"}


def test_a_breakpoint_is_read_only_if_a_pattern_asks_for_it() -> None:
    assert select_files({0: WITH_STEPS}, pattern="net-*.ckpt").files == {0: "net-10_1.ckpt"}
    assert select_files({0: WITH_STEPS}, pattern="*_breakpoint.ckpt").files == {0: "net-10_1_breakpoint.ckpt"}


@pytest.mark.parametrize(
    ("names", "asked", "reason"),
    [
        ({0: ["a.ckpt"], 1: []}, {}, "SourceRankMissing"),
        ({0: ["a.ckpt"]}, {"pattern": "b*"}, "SourceRankMissing"),
        ({0: ["a.ckpt"], 1: ["a.safetensors"]}, {}, "MixedFormats"),
        ({0: ["a.ckpt", "b.ckpt"]}, {}, "AmbiguousFiles"),
        ({0: ["a-1_1.ckpt", "b-1_1.ckpt"]}, {}, "AmbiguousFiles"),
        ({0: ["a-1_1.ckpt", "b.ckpt"]}, {}, "AmbiguousFiles"),
        ({0: ["a-1_1.ckpt"], 1: ["a-1_2.ckpt"]}, {}, "StepMissing"),
        ({0: ["a-1_1.ckpt"]}, {"step": 2}, "StepMissing"),
        ({0: ["a_breakpoint.ckpt"]}, {}, "SourceRankMissing"),
        ({0: ["a.ckpt"]}, {"step": 2}, "StepMissing"),
    ],
)
def test_what_is_not_clear_is_refused(names: dict[int, list[str]], asked: dict[str, int], reason: str) -> None:
    with pytest.raises(ReshardError) as caught:
        select_files(names, **asked)  # type: ignore[arg-type]
    assert caught.value.reason == reason
