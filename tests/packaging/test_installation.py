"""Wheels in clean environments of each Python: features without extras, and the error if an extra is needed."""

from __future__ import annotations

import email
import json
import shutil
import zipfile
from pathlib import Path

import disk
import pytest
from distributions import PYTHONS, ROOT, Dist, environment, run

_LOAD = """
import sys, reshard
source, before, after = sys.argv[1:]
loaded = reshard.load(source, before, after, rank=1)
print(*sorted(loaded))
"""

on_each_python = pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).name)


@on_each_python
def test_the_library_and_the_command_line_work_without_extras(python: str, dist: Dist, tmp_path: Path) -> None:
    checkpoint = disk.write(tmp_path / "checkpoint", disk.example())
    with environment(python, tmp_path / "environment", [dist.file("reshard-*.whl")]) as programs:
        it_reshards(programs / "reshard", checkpoint, tmp_path)
        it_loads(programs / "python", checkpoint)
        an_extra_that_is_missing_is_named_in_one_line(programs / "reshard", checkpoint, tmp_path)
        the_demo_runs(programs, tmp_path)


def it_reshards(reshard: Path, checkpoint: disk.Checkpoint, folder: Path) -> None:
    out = folder / "out"
    done = run(reshard, *checkpoint.arguments(out, "--verification", "full"))
    assert (done.returncode, done.stdout != "") == (0, True), done.stderr
    assert disk.differences(checkpoint.model, out, "ckpt") == []
    assert run(reshard, "verify", out).returncode == 0
    assert run(reshard, "inspect", out).returncode == 0
    plan = run(reshard, "plan", *checkpoint.arguments(folder / "next")[1:], "--parameter", "*")
    assert (plan.returncode, "4 → 6 ranks" in plan.stdout) == (0, True), plan.stderr
    converted = run(reshard, "convert", out, folder / "converted", "--format", "safetensors")
    assert converted.returncode == 0, converted.stderr
    again = run(reshard, *checkpoint.arguments(folder / "json", "--json"))
    assert json.loads(again.stdout)["complete"] is True


def it_loads(python: Path, checkpoint: disk.Checkpoint) -> None:
    sides = (checkpoint.source, checkpoint.source_strategy, checkpoint.target_strategy)
    loaded = run(python, "-c", _LOAD, *sides)
    assert loaded.stdout.split() == ["b", "m", "step", "w"], loaded.stderr


def an_extra_that_is_missing_is_named_in_one_line(reshard: Path, checkpoint: disk.Checkpoint, folder: Path) -> None:
    key = folder / "key"
    key.write_bytes(bytes(16))
    encrypted = [*checkpoint.arguments(folder / "encrypted"), "--encryption-key-file", str(key)]
    for extra, arguments in (("s3", ["inspect", "s3://bucket/prefix"]), ("crypto", encrypted)):
        ended = run(reshard, *arguments)
        assert ended.returncode == 78, ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert "PackageMissing: " in last
        assert f"pip install '.[{extra}]'" in last
        assert "Traceback" not in ended.stderr
    assert not (folder / "encrypted").exists()


def the_demo_runs(programs: Path, folder: Path) -> None:
    shutil.copytree(ROOT / "examples", folder / "demo" / "examples")
    (folder / "demo" / "tests").symlink_to(ROOT / "tests")
    shown = run(Path("/bin/sh"), folder / "demo" / "examples" / "demo.sh", programs=programs)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert list((folder / "demo" / "build").glob("demo/dst_checkpoints_2/**/*.safetensors"))


@on_each_python
def test_the_operator_works_with_the_packages_that_its_image_has(python: str, dist: Dist, tmp_path: Path) -> None:
    wheel = dist.file("reshard_operator-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needed = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    others = [name for name in needed if not name.startswith("reshard==")]
    assert len(others) == len(needed) - 1
    wheels = ["--no-deps", dist.file("reshard-*.whl"), wheel]
    with environment(python, tmp_path / "environment", [*others], wheels) as programs:
        ended = run(programs / "python", "-m", "reshard_operator")
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.startswith("reshard-operator: VariableMissing: RESHARD_CONVERTER_IMAGE: ")
        assert len(ended.stderr.splitlines()) == 1
        assert run(programs / "python", "-c", "import numpy").returncode == 1
