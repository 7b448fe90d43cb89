"""The programs that `make bench` compares: their commands, and the checkpoints in the forms that they read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cases import Case

HERE = Path(__file__).parent
RESHARD = str(Path(sys.executable).with_name("reshard"))
_MINDSPORE = """
import sys, mindspore
source, target, before, after, kind = sys.argv[1:]
mindspore.transform_checkpoints(source, target, "checkpoint_", before, after, output_format=kind)
"""
_MINDSPORE_UNIFY = """
import sys, mindspore
source, target, before, *_ = sys.argv[1:]
mindspore.unified_safetensors(source, before, target)
"""
_MINDSPORE_LOAD = """
import sys, mindspore
source, target, _, after, _ = sys.argv[1:]
mindspore.load_distributed_checkpoint(
    None, predict_strategy=after, format="safetensors", unified_safetensors_dir=source, dst_safetensors_dir=target
)
"""
_TORCH_SAVE = """
import os, sys
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
source, target = sys.argv[1:]
os.makedirs(target)
dcp_to_torch_save(source, f"{target}/model.pt")
"""
_TORCH_CONSOLIDATE = """
import json, os, sys
from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
source, target = sys.argv[1:]
os.makedirs(target)
names = set()
for entry in os.scandir(source):
    if entry.name.endswith(".safetensors"):
        with open(entry.path, "rb") as file:
            names.update(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
consolidate_safetensors_files(source, target, dict.fromkeys(names - {"__metadata__"}, 1), num_threads=os.cpu_count())
"""
_PROGRAMS = {"reshard": _MINDSPORE, "unify": _MINDSPORE_UNIFY, "load": _MINDSPORE_LOAD}
# Programs that are also measured without the source in the page cache, and on a tmpfs.
COLD = ("cp -r", "limit: files", "reshard", "baseline")
LIMITS = ("limit: files", "limit: write", "limit: read", "limit: memory")
_LEAST_FOR_LIMITS = 100 << 20
_WORKERS = (1, 2, 4, 8)


class Settings(NamedTuple):
    """Choices that apply to all programs.

    Attributes:
        baseline: the `reshard` command of another build, if there is one.
        verification: level of all builds.
    """

    baseline: str | None
    verification: str


def contestants(case: Case, place: Path, target: Path, settings: Settings) -> tuple[Path, dict[str, list[str]]]:
    """Return the source, and the commands that do the same work, by the name of the program."""
    before, after = str(place / "source.ckpt"), str(place / "target.ckpt")
    source, unified = str(place / "src"), str(place / "unified")
    unify = ["--source", source, "--source-strategy", before, "--output", "unified", "--max-file-size-bytes", str(256 << 20)]
    sides = ["--source", source, "--source-strategy", before, "--target-strategy", after]
    if case.work == "unify":
        sides = unify
    elif case.work == "load":
        subprocess.run([RESHARD, "transform", *unify, "--target", unified, "--overwrite"], check=True, capture_output=True)
        source, sides = unified, ["--source", unified, "--target-strategy", after]
    elif case.work.startswith("dcp-"):
        source = divided(place, "torch-dcp", case.source_ranks)
        to = {
            "dcp-huggingface": ["--format", "huggingface"],
            "dcp-dcp": ["--format", "torch-dcp", "--target-ranks", str(case.target_ranks)],
            "dcp-ranks": ["--target-strategy", after],
        }
        sides = ["--source", source, *to[case.work]]
    arguments = ["transform", *sides, "--target", str(target), "--verification", settings.verification, "--json"]
    commands = {"cp -r": ["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "cp", source, str(target)]}
    size = sum(path.stat().st_size for path in Path(source).rglob("*") if path.is_file())
    if size >= _LEAST_FOR_LIMITS:
        of_limits = ([source, str(target), str(case.replicas)], [str(target), str(size * case.replicas)], [source], [str(size)])
        for name, each in zip(LIMITS, of_limits, strict=True):
            commands[name] = [sys.executable, str(HERE / "limits.py"), name.rpartition(" ")[2], *each]
    if case.work == "workers":
        return Path(source), commands | {
            f"reshard, {number} workers": [RESHARD, *arguments, "--workers", str(number)] for number in _WORKERS
        }
    commands |= builds(case, arguments, settings)
    mindspore = os.environ.get("RESHARD_MINDSPORE_PYTHON")
    if case.peers and mindspore and case.work in _PROGRAMS:
        commands["MindSpore"] = [mindspore, "-c", _PROGRAMS[case.work], source, str(target), before, after, case.format]
    torch = os.environ.get("TORCH")
    if torch and case.work == "dcp-huggingface":
        commands["dcp_to_torch_save"] = [torch, "-c", _TORCH_SAVE, source, str(target)]
        shards = divided(place, "torch-safetensors", case.source_ranks)
        commands["consolidate_safetensors_files"] = [torch, "-c", _TORCH_CONSOLIDATE, shards, str(target)]
    return Path(source), commands


def builds(case: Case, arguments: list[str], settings: Settings) -> dict[str, list[str]]:
    """Return the commands of this build, and of another one."""
    commands = {"reshard": [RESHARD, *arguments]}
    if case.replicas > 1:
        commands["reshard, hard links"] = [RESHARD, *arguments, "--link-replicas", "hard-link"]
    if settings.baseline:
        commands["baseline"] = [settings.baseline, *arguments]
    return commands


def divided(place: Path, form: str, ranks: int) -> str:
    """Return the case's checkpoint in a format of PyTorch, divided among ranks. It is written once."""
    target = place / form
    if not target.exists():
        source = ["--source", str(place / "src"), "--source-strategy", str(place / "source.ckpt")]
        options = ["--target", str(target), "--format", form, "--target-ranks", str(ranks)]
        subprocess.run([RESHARD, "transform", *source, *options], check=True, capture_output=True)
    return str(target)
