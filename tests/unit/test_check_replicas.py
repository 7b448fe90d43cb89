"""`reshard inspect --check-replicas`: all copies that differ are named, with the ranks that have each value."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import disk

from reshard.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def check(capsys: pytest.CaptureFixture[str], target: Path, *more: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["inspect", str(target), "--check-replicas", *more])
    return code, capsys.readouterr().out


def test_equal_copies_are_equal(made: disk.Checkpoint, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, made.source, "--strategy", str(made.source_strategy))[0] == 0
    assert disk.run(made, target) == 0
    assert check(capsys, target) == (0, "equal: all copies of each parameter\n")


def test_all_copies_that_differ_are_listed(made: disk.Checkpoint, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert disk.run(made, target, "--format", "safetensors") == 0
    (target / "reshard-manifest.json").unlink()
    path = target / "rank_4" / "checkpoint_4.safetensors"
    content = bytearray(path.read_bytes())
    for name in ("b", "step"):
        slice_ = made.model.target(4)[name].tobytes()
        assert content.count(slice_) == 1
        content[content.index(slice_) + len(slice_) - 1] ^= 1
    path.write_bytes(content)
    code, text = check(capsys, target, "--strategy", str(made.target_strategy))
    assert code == 1
    assert "different: copies of 2 parameters" in text
    code, text = check(capsys, target, "--strategy", str(made.target_strategy), "--json")
    found = {each["name"]: each for each in json.loads(text)["differing"]}
    assert (code, found.keys()) == (1, {"b", "step"})
    assert found["b"]["index"] == [15]
    assert "source rank 1 " in found["b"]["values"]
    assert "source rank 4" in found["b"]["values"]
    assert found["step"]["values"].count("source rank") == 2
    assert check(capsys, target, "--strategy", str(made.target_strategy), "--parameter", "w")[0] == 0
    assert (
        "different: copies of 1 parameter\n"
        in check(capsys, target, "--strategy", str(made.target_strategy), "--parameter", "b")[1]
    )
