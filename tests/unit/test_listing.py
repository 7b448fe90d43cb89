"""Ranks and groups of files, derived from their names in a folder."""

from __future__ import annotations

import pytest

from reshard.errors import ReshardError
from reshard.source.listing import is_candidate, other_ranks, rank_folders, ranks_of_files, shards


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["rank_0", "rank_1", "logs"], {0: "rank_0", 1: "rank_1"}),
        (["rank0", "rank1"], {0: "rank0", 1: "rank1"}),
        (["rank_0", "device0", "device1"], {0: "rank_0"}),
        (["device_0", "device_11"], {0: "device_0", 11: "device_11"}),
        (["rank_\u0663", "rank_\u00b2", "rank_1x", "ranks_1"], {}),
    ],
)
def test_folders_of_ranks(names: list[str], folders: dict[int, str]) -> None:
    assert rank_folders(names, "x") == folders


@pytest.mark.parametrize(
    ("names", "reason"), [(["rank_1", "rank_01"], "DuplicateRank"), (["rank0", "device_0"], "AmbiguousFiles")]
)
def test_folders_that_two_ranks_share(names: list[str], reason: str) -> None:
    with pytest.raises(ReshardError) as caught:
        rank_folders(names, "x")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("names", "ranks"),
    [
        (["checkpoint_0.ckpt", "checkpoint_1.ckpt"], [0, 1]),
        (["net_rank0.safetensors", "net_rank12.safetensors"], [0, 12]),
        (["rank_0-1_100.ckpt", "rank_0-1_200.ckpt", "rank_1-1_100.ckpt"], [0, 1]),
        (["llama-model-0000000-0000002.safetensors", "llama-model-0000001-0000002.safetensors"], [0, 1]),
        (["llama-model-0000000-0000002.safetensors", "llama-opt-0000000-0000002.safetensors"], []),
        (["checkpoint_0.ckpt", "net_0.ckpt"], []),
        (["net-1_100.ckpt", "net-1_200.ckpt"], []),
        (["epoch_0.ckpt", "epoch_1.ckpt"], []),
        (["checkpoint_\u0660.ckpt", "checkpoint_\u0661.ckpt"], []),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], []),
    ],
)
def test_files_named_by_rank(names: list[str], ranks: list[int]) -> None:
    found = ranks_of_files(names)
    assert sorted(found) == ranks
    assert not found or sorted(name for each in found.values() for name in each) == sorted(names)


def test_other_ranks_are_found_by_equal_names() -> None:
    names = ["checkpoint_0.ckpt", "checkpoint_1.ckpt", "net_2.ckpt"]
    assert other_ranks("checkpoint_1.ckpt", names) == ["checkpoint_0.ckpt"]
    assert other_ranks("net-1_100.ckpt", ["net-1_200.ckpt"]) == []
    assert other_ranks("rank_3", ["rank_3", "rank_10", "device_1"]) == ["rank_10"]


def test_numbered_files_of_whole_tensors() -> None:
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert shards(names, "x") == names
    assert shards([*names, "other.safetensors"], "x") == []
    with pytest.raises(ReshardError, match=r"FileMissing: x: file 2 of 3 is missing; restore the missing files"):
        shards([names[0], names[2]], "x")


def test_a_pattern_is_of_names_or_of_paths() -> None:
    assert is_candidate("rank_0/net-1_5.ckpt", "net-*")
    assert not is_candidate("rank_0/net-1_5.ckpt", "rank_*")
    assert is_candidate("rank_0/ckpt/net-1_5.ckpt", "rank_*/ckpt/*")
    assert not is_candidate("rank_0/net-1_5.ckpt", "rank_1/*")
