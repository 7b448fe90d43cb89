"""`reshard diff` compares checkpoints of MindSpore with what MindSpore's transforms make of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_transform import ALL, PREFIX, differences, file_of, strategy

from reshard.transform.diff import diff_checkpoints

if TYPE_CHECKING:
    from pathlib import Path

    from test_transform import Transformed
    from transforms import Case

    from reshard.transform.diff import DiffResult

# Both formats, stages on either side. MindSpore transforms a parameter of case 1 in another way than its strategies say.
CASES = [ALL[number] for number in (0, 1, 2, 4, 5, 7, 10, 11)]


def diff(case: Case, folder: Path, transformed: Path) -> DiffResult:
    before, after = (strategy(folder, case, side) for side in ("source", "target"))
    return diff_checkpoints(str(folder / "source"), str(transformed), strategy_a=before, strategy_b=after)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_checkpoint_equals_its_transform_unless_mindspore_deviates(case: Case, transformed: Transformed) -> None:
    folder = transformed(case.number)
    files = {rank: file_of(folder / "mindspore", rank, case.target_format) for rank in range(case.target_ranks)}
    deviating = {found.tensor.name for rank, content in files.items() for found in differences(case, rank, content)}
    assert len(deviating) == (case.number == 1)
    found = diff(case, folder, folder / "mindspore")
    assert {each.name for each in found.differences} == deviating
    assert found.equal == len(case.tensors) - len(deviating)


def test_one_changed_element_is_found(transformed: Transformed, tmp_path: Path) -> None:
    case, rank = ALL[4], 1
    folder = transformed(case.number)
    shutil.copytree(folder / "mindspore", tmp_path, dirs_exist_ok=True)
    tensor = next(tensor for tensor in case.tensors if tensor.target is not None)
    held = case.target(rank)[tensor.name]
    path = tmp_path / f"rank_{rank}" / f"{PREFIX}{rank}.ckpt"
    content = bytearray(path.read_bytes())
    assert content.count(held.tobytes()) == 1
    at = content.index(held.tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    found = diff(case, folder, tmp_path)
    (difference,) = found.differences
    assert (difference.name, difference.difference, difference.elements) == (tensor.name, "Content", 1)
    assert difference.b is not None
    assert difference.b.place is not None
    assert difference.index is not None
    assert (difference.b.place.path, difference.b.place.offset) == (f"rank_{rank}/{path.name}", at)
    assert np.array_equal(case.whole(tensor)[difference.index], held.flat[0])
    assert found.equal == len(case.tensors) - 1
