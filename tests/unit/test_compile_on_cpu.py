"""examples/compile-on-cpu: what does not need MindSpore."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from pages import ROOT

from reshard.spec.resource import parse_resource

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

EXAMPLE = ROOT / "examples" / "compile-on-cpu"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """The module of the example."""
    spec = importlib.util.spec_from_file_location("compile_strategy", EXAMPLE / "compile_strategy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compile_strategy"] = module  # a dataclass looks for its module here
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("devices", "stages"), [(1, 1), (2, 2), (4, 1), (8, 4), (16, 2), (24, 3), (16384, 16)])
def test_numbers_of_devices_that_mindspore_accepts(example: ModuleType, devices: int, stages: int) -> None:
    assert example.Target(devices, stages).stage_devices == devices // stages


@pytest.mark.parametrize(
    ("devices", "stages", "said"),
    [
        (0, 1, "1, 2, 4 or a multiple of 8"),
        (-8, 1, "1, 2, 4 or a multiple of 8"),
        (6, 1, "1, 2, 4 or a multiple of 8"),
        (12, 1, "1, 2, 4 or a multiple of 8"),
        (8, 3, "8 devices cannot be divided among 3 stages"),
        (8, 0, "8 devices cannot be divided among 0 stages"),
    ],
)
def test_numbers_that_it_refuses(example: ModuleType, devices: int, stages: int, said: str) -> None:
    with pytest.raises(example.CompileError, match=said):
        example.Target(devices, stages)


def test_a_strategy_for_another_number_of_devices_is_refused(example: ModuleType) -> None:
    target = example.Target(16, 2)
    example.check({"a": 8, "b": 8}, target, 1)
    with pytest.raises(example.CompileError, match="stage 1: b is laid out on 4 devices instead of 8"):
        example.check({"a": 8, "b": 4}, target, 1)
    with pytest.raises(example.CompileError, match="stage 1 has no parameters"):
        example.check({}, target, 1)


def test_a_build_of_mindspore_without_the_function_is_refused(example: ModuleType, tmp_path: Path) -> None:
    import _ctypes  # noqa: PLC0415 - only this test needs a shared library, of any content

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmindspore_core.so").symlink_to(_ctypes.__file__)
    with pytest.raises(example.CompileError, match="this build of MindSpore is not supported"):
        example.register_target(tmp_path, b"Ascend")


def test_an_existing_folder_is_not_changed(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["network.py", "--devices", "8", "--output", str(tmp_path)]) == 1
    assert f"{tmp_path} exists" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_resource_uses_the_file_that_the_job_writes() -> None:
    pod = yaml.safe_load((EXAMPLE / "job.yaml").read_text())["spec"]["template"]["spec"]
    (merge,) = pod["containers"]
    parsed = parse_resource((EXAMPLE / "transform.yaml").read_text(), "transform.yaml")
    resource = yaml.safe_load((EXAMPLE / "transform.yaml").read_text())["spec"]["target"]
    claim = next(volume for volume in pod["volumes"] if volume["name"] == "checkpoints")["persistentVolumeClaim"]
    assert merge["args"][-1] == f"/checkpoints/{resource['strategy']['path']}"
    assert claim["claimName"] == resource["storage"]["persistentVolumeClaim"]["claimName"]
    assert parsed is not None


def test_the_folder_contains_the_files_that_the_pod_mounts() -> None:
    folder = yaml.safe_load((EXAMPLE / "kustomization.yaml").read_text())
    (generated,) = folder["configMapGenerator"]
    job = yaml.safe_load((EXAMPLE / "job.yaml").read_text())["spec"]["template"]["spec"]
    command = job["initContainers"][0]["command"]
    mounted = {argument.removeprefix("/compile/").partition(":")[0] for argument in command if argument.startswith("/compile/")}
    assert mounted == set(generated["files"])
    assert all((EXAMPLE / name).is_file() for name in (*folder["resources"], *generated["files"]))
