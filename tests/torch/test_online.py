"""Online load as torch tensors: each rank gets the bytes that DTensor gives it when torch loads the checkpoint."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from torch_files import DATA
from torch_program import run

from reshard.checkpoint.dtypes import BY_TORCH_NAME

if TYPE_CHECKING:
    from pathlib import Path

RANKS = 3
FOLDERS = [DATA / name for name in ("placements", "items", "fsdp2", "fsdp2_tp", "2.4.1/placements", "2.14.1/threads")]
PATHS = [path for path in sys.path if path]


def test_each_rank_gets_what_dtensor_gives_it() -> None:
    by_torch = run("spread", folders=FOLDERS, ranks=RANKS)
    answer = run("online", paths=PATHS, sources=FOLDERS, ranks=RANKS)
    by_reshard = answer["loaded"]
    assert answer["filled"] == by_reshard  # the same in tensors that the program brings
    for folder, expected, found in zip(FOLDERS, by_torch, by_reshard, strict=True):
        types = json.loads((folder / "expected.json").read_text())
        for name, hashes in (expected["R"] | expected["S(0)"]).items():
            assert [rank[name]["sha256"] for rank in found] == hashes, (folder, name)
            assert {rank[name]["dtype"] for rank in found} == {types[name]["dtype"]}
        assert found[0].keys() == expected["R"].keys()


def test_tensors_of_each_type_equal_those_that_torch_saved() -> None:
    files: list[Path] = [DATA / "files" / name for name in ("types.pt", "shared.pt")]
    answer = run("online", paths=PATHS, sources=files, ranks=1)
    recorded = json.loads((DATA / "files" / "expected.json").read_text())
    for path, (found,) in zip(files, answer["loaded"], strict=True):
        assert found == recorded[path.name]
    assert answer["filled"] == answer["loaded"]
    assert answer["shared"] == list(BY_TORCH_NAME)


def test_tensors_that_cannot_be_filled_are_refused() -> None:
    fits, *refused = run("online", paths=PATHS, sources=[], ranks=1)["refused"]
    assert fits == ""
    expected = [
        "is on the device meta",
        "is not contiguous",
        "is not contiguous",
        "has the type torch.float64, but the tensor has torch.float32",
        "is not contiguous",
        "has no memory",
        "is not contiguous",
        "is a NestedTensor",
    ]
    assert len(refused) == len(expected)
    for what, beginning in zip(refused, expected, strict=True):
        assert what.startswith(f"the buffer {beginning}")
