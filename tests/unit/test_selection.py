"""Selection of the file in `rank_<r>/`."""

from __future__ import annotations

import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import ReshardError
from reshard.source.listing import is_candidate
from reshard.source.selection import epoch_and_step, option_for, select_files

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
def test_steps_are_compared_as_numbers(names: dict[int, list[str]], chosen: dict[int, str]) -> None:
    assert select_files(names).files == chosen


def test_the_newest_step_of_all_ranks_is_taken_and_reported() -> None:
    found = select_files({0: ["a-1_5.ckpt", "a-1_6.ckpt"], 1: ["a-1_5.ckpt"]})
    assert found.files == {0: "a-1_5.ckpt", 1: "a-1_5.ckpt"}
    assert found.notes == ("the newest step that every rank has is step 5 of epoch 1; rank 0 has a newer one",)


def test_a_step_or_a_pattern_can_be_selected() -> None:
    names = {0: ["a-1_5.ckpt", "a-1_6.ckpt", "b-1_6.ckpt"]}
    assert select_files(names, step=5).files == {0: "a-1_5.ckpt"}
    assert select_files(names, pattern="b*").files == {0: "b-1_6.ckpt"}


def test_ranks_with_files_of_several_names_are_read_if_a_pattern_selects_them() -> None:
    names = {0: ["rank_0/net-1_1.ckpt"], 1: ["rank_1/tuned-1_1.ckpt"]}
    found = select_files(names, pattern="*")
    assert found.files == {0: "rank_0/net-1_1.ckpt", 1: "rank_1/tuned-1_1.ckpt"}
    assert found.notes == ("the ranks have files with different names, such as rank_0/net-1_1.ckpt, rank_1/tuned-1_1.ckpt",)


@pytest.mark.parametrize(
    "names",
    [
        {0: ["net_rank0_1-2_50.ckpt"], 1: ["net_rank1_1-2_50.ckpt"]},
        {0: ["net_device1.ckpt"], 1: ["net_device0.ckpt"]},
        {4: ["checkpoint_1.ckpt"], 5: ["checkpoint_0.ckpt"]},
        {0: ["checkpoint_5.ckpt"], 5: ["checkpoint_5.ckpt"]},
    ],
)
def test_numbers_in_names_that_may_not_be_ranks(names: dict[int, list[str]]) -> None:
    assert select_files(names).files == {rank: name for rank, [name] in names.items()}


def test_a_breakpoint_is_read_only_if_a_pattern_selects_it() -> None:
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
        ({0: ["rank_0/net-1_1.ckpt"], 1: ["rank_1/tuned-1_1.ckpt"]}, {}, "AmbiguousFiles"),
        ({0: ["rank_0/net.ckpt"], 1: ["rank_1/model.ckpt"]}, {}, "AmbiguousFiles"),
        ({0: ["rank_0/net-1_1.ckpt"], 1: ["rank_1/net_1-1_1.ckpt"]}, {}, "AmbiguousFiles"),  # the second is of a second run
        ({0: ["rank_0/checkpoint_1.ckpt"], 1: ["rank_1/checkpoint_0.ckpt"]}, {}, "SourceRanksMismatch"),
        ({0: ["rank_0/n_rank1-1_1.ckpt"], 1: ["rank_1/n_rank0-1_1.ckpt"]}, {"pattern": "*"}, "SourceRanksMismatch"),
        ({0: ["a-1_1.ckpt"]}, {"step": 2}, "StepMissing"),
        ({0: ["a_breakpoint.ckpt"]}, {}, "SourceRankMissing"),
        ({0: ["a.ckpt"]}, {"step": 2}, "StepMissing"),
    ],
)
def test_ambiguous_selections_are_refused(names: dict[int, list[str]], asked: dict[str, int], reason: str) -> None:
    with pytest.raises(ReshardError) as caught:
        select_files(names, **asked)
    assert caught.value.reason == reason


OLD, NEW = "net-1_100.ckpt", "net-2_200.ckpt"


def test_a_run_that_continued_with_other_ranks_in_its_folder() -> None:
    shrunk = {rank: [OLD, NEW] if rank < 2 else [OLD] for rank in range(4)}
    found = select_files(shrunk, expected=range(2))
    assert (found.files, found.step) == ({0: NEW, 1: NEW}, (2, 200))
    assert found.notes == ("the files of rank 2-3 are not read, because the strategy describes only rank 0-1",)
    assert select_files(shrunk, expected=range(4)).files == dict.fromkeys(range(4), OLD)
    grown = {rank: [OLD, NEW] if rank < 2 else [NEW] for rank in range(4)}
    found = select_files(grown, expected=range(2))
    assert (found.files, found.step) == ({0: OLD, 1: OLD}, (1, 100))
    assert (
        found.notes[0]
        == "step 200 of epoch 2 is not read, because rank 2-3 also has it, and the strategy does not describe that rank"
    )
    assert select_files(grown, expected=range(4)).step == (2, 200)


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        ({rank: [NEW] for rank in range(4)}, {}),
        ({0: [OLD, NEW], 1: [OLD, NEW], 2: [NEW]}, {"step": 200}),
        ({rank: [f"checkpoint_{rank}.ckpt"] for rank in range(4)}, {}),
    ],
)
def test_ranks_of_the_same_step_that_the_strategy_does_not_describe(names: dict[int, list[str]], asked: dict[str, int]) -> None:
    with pytest.raises(ReshardError) as caught:
        select_files(names, expected=range(2), **asked)
    assert caught.value.reason == "SourceRanksMismatch"


def test_a_missing_step_is_refused_with_an_existing_one() -> None:
    with pytest.raises(ReshardError, match=r"select a step that every rank has, such as --step 200 "):
        select_files({0: [OLD, NEW], 1: [OLD, NEW]}, step=300)


def test_a_step_of_several_epochs_is_taken_from_the_newest_and_reported() -> None:
    names = ["net-1_50.ckpt", "net-2_50.ckpt"]
    found = select_files({0: names, 1: names}, step=50)
    assert found.files == dict.fromkeys(range(2), "net-2_50.ckpt")
    note = (
        "step 50 exists in 2 epochs, and epoch 2 is read; to read another one, use --files '*-1_50.*' (spec.source.files.pattern)"
    )
    assert found.notes == (note,)


@pytest.mark.parametrize(
    ("prefixes", "ranks"),
    [
        (["net_1", "net_1", "net_2", "net_1"], "2"),
        (["net_3", "net_3", "net_1", "net_1"], "2-3"),
        (["net_rank0_1", "net_rank1_2"], "1"),
        (["net_1", "net_0"], "1"),
        (["net_1", "net_1", "net_1", "net_1"], ""),
        (["net_0", "net_1", "net_2", "net_3"], ""),  # ranks
        (["net_0", "net_1", "net_0", "net_1"], ""),  # devices of two nodes
        (["net", "net", "net", "net"], ""),
    ],
)
def test_ranks_with_files_of_another_start_are_named(prefixes: list[str], ranks: str) -> None:
    found = select_files({rank: [f"rank_{rank}/{prefix}-1_50.ckpt"] for rank, prefix in enumerate(prefixes)})
    said = [note for note in found.notes if "another training run" in note]
    assert len(said) == bool(ranks)
    assert all(f"the files of rank {ranks} are from" in note for note in said)


def test_restarted_ranks_are_named_when_refused_or_requested() -> None:
    names = {rank: [f"rank_{rank}/net{'_1' if rank == 2 else ''}-1_50.ckpt"] for rank in range(4)}
    with pytest.raises(ReshardError, match=r"AmbiguousFiles.*the files of rank 2 are from another training run"):
        select_files(names)
    assert any("the files of rank 2 are from another training run" in note for note in select_files(names, pattern="*").notes)


def test_older_steps_are_kept_in_case_that_the_newest_is_damaged() -> None:
    found = select_files({0: [OLD, NEW], 1: [OLD, NEW]})
    assert [(older.step, older.files) for older in found.older] == [((1, 100), {0: OLD, 1: OLD})]
    assert select_files({0: [OLD, NEW]}, step=200).older == ()
    assert option_for((2, 200), [(1, 100), (2, 200)]) == "--step 200 (spec.source.files.step)"
    assert option_for((1, 200), [(1, 200), (2, 200)]) == "--files '*-1_200.*' (spec.source.files.pattern)"


_STEPPED = [f"{prefix}-{at}.{kind}" for prefix in "ab" for at in ("1_5", "1_9", "2_5", "2_9") for kind in ("ckpt", "safetensors")]
_OTHER = ["a.ckpt", "checkpoint_1.ckpt", "a-1_5_breakpoint.ckpt", "a-1_\u0665.ckpt", ".a-1_5.ckpt", "notes.txt"]
_NAMES = st.sampled_from(_STEPPED + _OTHER)


@examples(1000)
@given(
    st.dictionaries(st.integers(0, 5), st.lists(_NAMES, max_size=5, unique=True), max_size=6),
    st.none() | st.sampled_from([5, 9]),
    st.none() | st.sampled_from(["a*", "*.ckpt", "*-1_*"]),
    st.none() | st.integers(1, 6).map(range),
)
def test_steps_are_never_mixed(
    names: dict[int, list[str]], step: int | None, pattern: str | None, expected: range | None
) -> None:
    try:
        found = select_files(names, step=step, pattern=pattern, expected=expected)
    except ReshardError:
        return
    wanted = {rank for rank in names if expected is None or rank in expected}
    for selected in (found, *found.older):
        assert selected.files.keys() == wanted
        assert {epoch_and_step(name) for name in selected.files.values()} == ({selected.step} if wanted else set())
        assert all(name in names[rank] for rank, name in selected.files.items())
    assert step is None or not wanted or found.step is None or found.step[1] == step
    assert step is None or not wanted or found.step is not None
    for rank in names.keys() - wanted:  # those of another run are of other steps
        others = [name for name in names[rank] if is_candidate(name, pattern) and "breakpoint" not in name]
        assert found.step not in map(epoch_and_step, others) or not wanted
