"""The processor time to start: `reshard --version`, a transform of a tiny checkpoint, and the steps of a pod.

The modules of all builds are compiled, as in an installation. A pod's volumes are folders.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cases import Case, Tensor, make

ROUNDS = 15
TINY = Case("tiny", "a tiny checkpoint, 2 -> 1", (Tensor("w", (4, 4), 0, 0),), 2, 1)
_CLAIM = {"persistentVolumeClaim": {"claimName": "a"}}
_SPEC = {
    "source": {"storage": {"persistentVolumeClaim": {"claimName": "a", "path": "src"}}, "strategy": {"path": "source.ckpt"}},
    "target": {"storage": _CLAIM, "strategy": {"path": "target.ckpt", "storage": _CLAIM}},
}
_STEP = """
import sys
from reshard.spec import mounts
mounts.VOLUMES = sys.argv.pop(1)
from reshard.cli import program
sys.exit(program())
"""


def processor_seconds(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Run a command. Return the processor time that it took, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def volumes(place: Path, folder: Path) -> dict[str, str]:
    """Create the folders of a pod's volumes. Return its environment."""
    (folder / "spec").mkdir(parents=True)
    text = json.dumps(_SPEC)
    (folder / "spec" / "000").write_text(text)
    for role in ("source", "target-strategy"):
        (folder / role).symlink_to(place)
    (folder / "target").mkdir()
    return {
        "RESHARD_SPEC": str(folder / "spec"),
        "RESHARD_SPEC_SHA256": hashlib.sha256(text.encode()).hexdigest(),
        "RESHARD_OWNER": "pod",
        "RESHARD_TARGET_RANKS": "1",
        "RESHARD_PARALLELISM": "1",
        "JOB_COMPLETION_INDEX": "0",
    }


def measure(reshard: str, place: Path, folder: Path) -> dict[str, float]:
    """Run each command once, on an empty target. Return the processor seconds of each."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    folder = folder / hashlib.sha256(reshard.encode()).hexdigest()[:8]
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    shutil.rmtree(folder / "work", ignore_errors=True)
    pod = volumes(place, folder / "work" / "pod")
    sides = ["--source", place / "src", "--source-strategy", place / "source.ckpt", "--target-strategy", place / "target.ckpt"]
    commands = {
        "--version": [reshard, "--version"],
        "transform": [reshard, "transform", *map(str, sides), "--target", str(folder / "work" / "target")],
    }
    seconds = {name: processor_seconds(command, environment)[0] for name, command in commands.items()}
    step = [str(Path(reshard).with_name("python")), "-c", _STEP, str(folder / "work" / "pod"), "step"]
    seconds["step plan"], planned = processor_seconds([*step, "plan"], environment | pod)
    found = json.loads(planned)
    pod |= {"RESHARD_DIGEST": found["digest"], "RESHARD_GROUPING": json.dumps(found.get("grouping"))}
    seconds["step ranks"], _ = processor_seconds([*step, "ranks"], environment | pod)
    return seconds


def main() -> None:
    """Measure in turn, and print one line of JSON for each build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", help="the reshard command of another build")
    builds = [str(Path(sys.executable).with_name("reshard")), *filter(None, [parser.parse_args().baseline])]
    with tempfile.TemporaryDirectory() as folder:
        place = make(TINY, Path(folder))
        rounds = [[measure(build, place, Path(folder)) for build in builds] for _ in range(ROUNDS + 1)][1:]
    for number, build in enumerate(builds):
        medians = {name: statistics.median(each[number][name] for each in rounds) for name in rounds[0][number]}
        print(json.dumps({"build": build if number else "this"} | {name: round(value, 3) for name, value in medians.items()}))


if __name__ == "__main__":
    main()
