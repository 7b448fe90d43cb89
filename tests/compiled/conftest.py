"""MindSpore's compiled strategies and checkpoints for the tests of this tier, and its networks' outputs after a transform."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compiling import TRANSFORMS
from mindspore_program import run
from shared_folder import filled

from reshard import Options, Request, transform_checkpoint

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strategies and source checkpoints of all networks."""

    def fill(folder: Path) -> None:
        run(HERE / "compiler.py", folder)
        run(HERE / "running.py", "save", folder)

    return filled(tmp_path_factory, "compiled", fill)


@pytest.fixture(scope="session")
def outputs(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[float]]]:
    """Outputs of networks that have loaded the transformed checkpoints: by network, source and target."""

    def fill(folder: Path) -> None:
        for name in TRANSFORMS:
            network, layout, target = name.split("/")
            source = str(compiled / network / f"{layout}_checkpoints")
            before, after = (strategy(compiled / network / each) for each in (layout, target))
            transform_checkpoint(Request(source, str(folder / name), before, after, Options(verification="Full")))
        (folder / "outputs.json").write_text(run(HERE / "running.py", "outputs", compiled, folder, *TRANSFORMS))

    path = filled(tmp_path_factory, "transformed", fill) / "outputs.json"
    return dict(zip(TRANSFORMS, json.loads(path.read_text()), strict=True))


def strategy(path: Path) -> str | None:
    """A file, a folder with a file for each stage, or none."""
    return next((str(each) for each in (path, path.with_suffix(".ckpt")) if each.exists()), None)
