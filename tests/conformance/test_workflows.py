"""The workflows of MindSpore's document from end to end, as docs/workflows describes them.

The document's network is trained by MindSpore and saved as 8 ranks save it. Every form of a workflow on its page is run as
written there; the result is loaded into MindSpore, which must then return the same outputs for the same images, and again
after one more step of training.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pages import WORKFLOWS, all_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

# Results of the pages, and the strategy of training.py that each is cut by.
TARGETS = {
    "dst_checkpoints": "dst_strategy.ckpt",
    "dst_by_rank": "dst_strategy.ckpt",
    "dst_stages": "dst_strategy.ckpt",
    "back_again": "src_strategy.ckpt",
    "dst_inference": "predict_strategy.ckpt",
    "dst_whole": "",
    "unified": "dst_strategy.ckpt",
}
PAGES = [page for page in WORKFLOWS if page.name != "README.md"]
BINARIES = Path(sys.executable).parent
# Any number of processes, on this machine only, run by any user.
MPIRUN = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}


def forms(page: Path, folder: Path) -> dict[str, str]:
    """Return the forms of a page's workflow, each as a shell script: all command lines; Python; resources; each console's lines.

    Python and resources become files in the folder. Python that begins with its file's name is run by a console's lines.
    """
    found: dict[str, str] = {}
    for number, (kind, text) in enumerate(all_blocks(page)):
        named = kind == "python" and text.startswith("# ")
        file = folder / (text.splitlines()[0][2:] if named else f"{number}.{kind}")
        file.write_text(text, encoding="utf-8")
        if kind == "sh":
            found[kind] = found.get(kind, "") + text
        elif kind == "console":
            found[f"console-{number}"] = text
        elif kind == "python" and not named:
            found[kind] = found.get(kind, "") + f"python {file}\n"
        elif kind == "yaml":
            found[kind] = found.get(kind, "") + f"reshard run {file} --volume checkpoints=.\n"
    return found


def carried_out(page: Path, trained: Path, folder: Path) -> dict[str, str]:
    """Run the forms of a page. Return the arguments of `oracle.py go_on` by form and target."""
    folder.mkdir()
    found = {}
    for form, script in forms(page, folder).items():
        work = folder / form
        work.mkdir()
        for name in os.listdir(trained):  # noqa: PTH208 - names, not paths
            (work / name).symlink_to(trained / name)
        for path in folder.glob("*.py"):
            (work / path.name).symlink_to(path)
        environment = {**os.environ, **MPIRUN, "PATH": f"{BINARIES}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["/bin/sh", "-euc", script], cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{page.name}: {script}\n{done.stderr}"
        made = [name for name in TARGETS if (work / name).exists()]
        assert made, script
        found |= {f"{page.stem} {form} {name}": f"{work / name}:{TARGETS[name]}" for name in made}
    return found


@pytest.fixture(scope="session")
def trained(once: Callable[..., Path]) -> Path:
    return once("train")


@pytest.fixture(scope="session")
def said(oracle: Callable[..., Any], trained: Path, filled: Callable[..., Path]) -> dict[str, Any]:
    """Outputs of MindSpore after it loaded the results of the pages' forms: by page, form and target."""
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not here (Debian: openmpi-bin)")

    def fill(folder: Path) -> None:
        made: dict[str, str] = {}
        for page in PAGES:
            made |= carried_out(page, trained, folder / page.stem)
        found = oracle("go_on", *made.values())
        (folder / "said.json").write_text(json.dumps({name: found[loaded] for name, loaded in made.items()}), encoding="utf-8")

    answers: dict[str, Any] = json.loads((filled("workflows", fill) / "said.json").read_text(encoding="utf-8"))
    return answers


@pytest.mark.parametrize("page", [page.stem for page in PAGES])
def test_the_network_outputs_the_same_as_before(page: str, said: dict[str, Any], trained: Path) -> None:
    before, after_a_step = json.loads((trained / "said.json").read_text(encoding="utf-8"))
    assert before != after_a_step
    mine = {name: found for name, found in said.items() if name.startswith(f"{page} ")}
    assert len(mine) >= 3  # commands, a script and a resource
    for name, found in mine.items():
        has_moments = not name.endswith("dst_inference")
        assert found == [before, after_a_step if has_moments else None], name


def test_every_target_is_compared(said: dict[str, Any]) -> None:
    assert {name.split()[-1] for name in said} == TARGETS.keys()
