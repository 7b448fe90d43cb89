"""What `pip install reshard` gives without extras, and what it says when one is needed."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from typing import TYPE_CHECKING

import disk
import pytest

if TYPE_CHECKING:
    from pathlib import Path

_LOAD = """
import sys, reshard
source, before, after, folder = sys.argv[1:]
loaded = reshard.load(source, before, after, rank=1)
print(*sorted(loaded))
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> disk.Checkpoint:
    return disk.write(tmp_path_factory.mktemp("checkpoint"), disk.example())


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AWS_"))}
    return subprocess.run(
        [str(program), *arguments], cwd=program.parent, env=environment, capture_output=True, text=True, check=False
    )


def test_it_reshards(clean: Path, checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(clean / "reshard", *checkpoint.arguments(out, "--verification", "full"))
    assert (done.returncode, done.stdout != "") == (0, True), done.stderr
    assert disk.differences(checkpoint.model, out, "ckpt") == []
    assert run(clean / "reshard", "verify", str(out)).returncode == 0
    assert run(clean / "reshard", "inspect", str(out)).returncode == 0
    drawn = run(clean / "reshard", "plan", *checkpoint.arguments(tmp_path / "next")[1:], "--parameter", "*")
    assert (drawn.returncode, "4 → 6 ranks" in drawn.stdout) == (0, True), drawn.stderr
    converted = run(clean / "reshard", "convert", str(out), str(tmp_path / "converted"), "--format", "safetensors")
    assert converted.returncode == 0, converted.stderr


def test_it_loads(clean: Path, checkpoint: disk.Checkpoint) -> None:
    sides = (checkpoint.source, checkpoint.source_strategy, checkpoint.target_strategy)
    loaded = run(clean / "python", "-c", _LOAD, *map(str, sides), "")
    assert loaded.stdout.split() == ["b", "m", "step", "w"], loaded.stderr


def test_what_needs_an_extra_names_it_in_one_line(clean: Path, checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(16))
    encrypted = [*checkpoint.arguments(tmp_path / "out"), "--encryption-key-file", str(key)]
    for extra, program, arguments in (
        ("s3", "reshard", ["inspect", "s3://bucket/prefix"]),
        ("crypto", "reshard", encrypted),
        ("operator", "python", ["-m", "reshard_operator"]),
    ):
        ended = run(clean / program, *arguments)
        assert ended.returncode == 78, ended.stderr
        said = ended.stderr.splitlines()[-1]
        assert "PackageMissing: " in said
        assert said.endswith(f" is needed and not installed; pip install 'reshard[{extra}]'")
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


def test_json_says_nothing_else(clean: Path, checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    done = run(clean / "reshard", *checkpoint.arguments(tmp_path / "out", "--json"))
    assert json.loads(done.stdout)["complete"] is True


def test_the_wheel_holds_both_packages_and_nothing_of_the_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"reshard/py.typed", "reshard/cli/__init__.py", "reshard_operator/__main__.py"} <= set(names)
    assert not [name for name in names if not name.startswith(("reshard/", "reshard_operator/", "reshard-"))]
    assert any(name.endswith("/licenses/LICENSE") for name in names)
