"""MindSpore's conversions and ours of its own files, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import contents
import pytest
from deviations import UNCONVERTED
from transforms import CONVERTED, NAME_MAP

from reshard.errors import DataError, RequestError
from reshard.mindspore import ckpt_to_safetensors, safetensors_to_ckpt

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = ("all.ckpt", "all.safetensors", "all_crc.ckpt", "all_crc.safetensors", "empty.safetensors", "pieces.ckpt", "text.ckpt")
NOTHING = "nothing.ckpt"  # as MindSpore saves it on a rank to which no parameter falls
OTHER = {".ckpt": ".safetensors", ".safetensors": ".ckpt"}


@pytest.fixture(scope="module")
def theirs(once: Callable[..., Path]) -> Path:
    return once("convert")


def convert(path: Path, *arguments: Any) -> None:
    (ckpt_to_safetensors if path.suffix == ".ckpt" else safetensors_to_ckpt)(str(path), *arguments)


def equal(ours: Path, theirs: Path) -> bool:
    if ours.suffix == ".ckpt":
        return contents.without_empty(ours.read_bytes()) == theirs.read_bytes()
    return contents.same_safetensors(ours.read_bytes(), theirs.read_bytes())


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_is_converted_as_by_mindspore(name: str, theirs: Path, tmp_path: Path) -> None:
    outcome = json.loads((theirs / "outcome.json").read_text())
    assert sorted(outcome) == sorted([*SAMPLES, NOTHING])
    path = theirs / "source" / "rank_0" / name
    convert(path, str(tmp_path))
    made = tmp_path / f"{path.stem}{OTHER[path.suffix]}"
    if outcome[name]:
        assert name in UNCONVERTED
        convert(made, str(tmp_path / "back"))
        assert contents.messages((tmp_path / "back" / name).read_bytes()) == contents.messages(path.read_bytes())
    else:
        assert name not in UNCONVERTED
        assert equal(made, theirs / "single" / made.name)


def test_a_file_that_holds_nothing_is_converted_by_neither(theirs: Path, tmp_path: Path) -> None:
    path = theirs / "source" / "rank_0" / NOTHING
    assert path.read_bytes() == b""
    assert "parameter dict is empty" in json.loads((theirs / "outcome.json").read_text())[NOTHING]
    with pytest.raises(DataError, match="Empty"):
        ckpt_to_safetensors(str(path), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_tree_is_converted_as_by_mindspore(theirs: Path, tmp_path: Path) -> None:
    for convert_tree in (ckpt_to_safetensors, safetensors_to_ckpt):
        convert_tree(str(theirs / "source"), str(tmp_path), NAME_MAP, CONVERTED, 2)
    expected = sorted((theirs / "tree").rglob("*.*"))
    assert [path.relative_to(theirs / "tree") for path in expected] == sorted(
        p.relative_to(tmp_path) for p in tmp_path.rglob("*.*")
    )
    assert len(expected) == 10
    for path in expected:
        assert equal(tmp_path / path.relative_to(theirs / "tree"), path), path


def test_mindspore_reads_the_same_tensors_from_our_files(theirs: Path, oracle: Callable[..., Any], tmp_path: Path) -> None:
    source = theirs / "source" / "rank_0"
    found = {}
    for name in (name for name in SAMPLES if name not in UNCONVERTED):
        folder = tmp_path / name.replace(".", "-")
        convert(source / name, str(folder))
        found[name] = next(folder.iterdir()).rename(folder / f"ours{OTHER[Path(name).suffix]}")  # it has no CRC to check
    loaded = oracle("load", *(source / name for name in found), *found.values())
    for name, made in found.items():
        assert loaded[str(made)] == loaded[str(source / name)]


def test_mindspore_loses_one_of_two_parameters_with_one_name(theirs: Path, oracle: Callable[..., Any], tmp_path: Path) -> None:
    assert list(oracle("load", theirs / "clash" / "pieces.safetensors").popitem()[1]) == ["large"]
    with pytest.raises(RequestError, match="NamesClash"):
        ckpt_to_safetensors(str(theirs / "source" / "rank_0" / "pieces.ckpt"), str(tmp_path), {"before": "large"})
    assert not list(tmp_path.iterdir())
