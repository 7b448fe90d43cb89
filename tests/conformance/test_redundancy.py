"""Checkpoints without redundancy: MindSpore's read by us, ours by MindSpore."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import contents
import pytest
from test_transform import PREFIX, defined, file_of, reshard_case, strategy
from transforms import COUNT, Case, make

from reshard import Options, Request, transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from definition import Cut


def _known(cut: Cut | None) -> bool:
    """Return whether MindSpore can name the ranks that hold each slice: not if several axes cut a dimension."""
    return cut is None or all(len(axes) <= 1 for axes in cut.maps)


ALL = [make(number) for number in range(COUNT)]
SAVED = [c for c in ALL if c.source_named and c.source_ranks > 1 and all(_known(t.source) for t in c.tensors)][:40]
LOADED = [
    c
    for c in ALL
    if c.target_named
    and c.target_ranks > 1
    and all(_known(t.target) for t in c.tensors)
    and all(c.target(rank) for rank in range(c.target_ranks))
    and not any(t.dtype == "Int4" for t in c.tensors)  # of which MindSpore makes no zeros
][:40]


@pytest.fixture(scope="session")
def thin(once: Callable[..., Path]) -> Path:
    """The inputs of cases, each slice saved once."""
    return once("thin", *(case.number for case in SAVED))


@pytest.mark.parametrize("case", SAVED, ids=lambda case: case.name)
def test_files_saved_by_mindspore_without_redundancy_are_completed(case: Case, thin: Path, tmp_path: Path) -> None:
    folder = thin / str(case.number)
    before, after = (strategy(folder, case, side) for side in ("source", "target"))
    reshard_case(case, folder / "source", tmp_path, before, after)
    for rank in range(case.target_ranks):
        ours = file_of(tmp_path, rank, case.target_format)
        assert contents.tensors(ours, case.target_format) == defined(case, rank)
        if case.target_format == "safetensors":
            assert contents.header(ours).get("__metadata__", {}).get("remove_redundancy") in {None, "False"}


@pytest.fixture(scope="session")
def gathered(
    oracle: Callable[..., Any], transformed: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, list[Any]]]]:
    """Parameters of MindSpore's ranks after they loaded a checkpoint that we wrote without redundancy."""
    folder = tmp_path_factory.mktemp("ours")
    for case in LOADED:
        inputs = transformed(case.number)
        kind = "Ckpt" if case.target_format == "ckpt" else "Safetensors"
        options = Options(format=kind, file_prefix=PREFIX, remove_redundancy=True, allow_inconsistent=case.inconsistent)
        before, after = (strategy(inputs, case, side) for side in ("source", "target"))
        made = Request(str(inputs / "source"), str(folder / str(case.number)), before, after, options)
        transform_checkpoint(made)
    found: dict[str, list[dict[str, list[Any]]]] = oracle("gather", folder, *(case.number for case in LOADED))
    return found


@pytest.mark.parametrize("case", LOADED, ids=lambda case: case.name)
def test_mindspore_loads_our_files_without_redundancy(case: Case, gathered: dict[str, list[dict[str, list[Any]]]]) -> None:
    for rank, found in enumerate(gathered[str(case.number)]):
        expected = {
            name: [dtype, list(shape), hashlib.sha256(content).hexdigest()]
            for name, (dtype, shape, content) in defined(case, rank).items()
        }
        assert found == expected
