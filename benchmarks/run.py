"""`make bench`: time and memory of whole transforms, compared with `cp -r` of the same bytes and with peers.

Peers are MindSpore, where it is installed, PyTorch, where `TORCH` is the path of a Python interpreter that imports it, and
another build of this project (`--baseline COMMAND`). Every round runs all contestants in turn, each on an empty target. A run
begins when what was deleted is on the disk, and ends when the result is. The source is in the page cache ("hot"). Some
contestants run without it as well ("cold"). `limits.py` measures in the same rounds what the machine can do with as many bytes.
The table shows medians, and medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from instant_uploads import processor_seconds

from cache import cached_bytes, drop, warm
from cases import CASES, Case, make

if TYPE_CHECKING:
    from collections.abc import Iterator

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
# Programs that print lines of JSON, and what they measure.
_PRINTED = {
    "starting": "processor seconds to start",
    "planning": "plan of 405B parameters with Adam's moments, 16,384 -> 12,288 ranks",
    "model": "metadata of 128,000 shards, and a million irregular boxes",
    "sampling": "comparison of replicas, 2.1 GB",
    "loading": "load into memory",
}
_OTHERS = (*_PRINTED, "parts")
_PROGRAMS = {"reshard": _MINDSPORE, "unify": _MINDSPORE_UNIFY, "load": _MINDSPORE_LOAD}
# Contestants that are also measured without the source in the page cache.
_COLD = ("cp -r", "reshard", "baseline")
_LIMITS = ("limit: write", "limit: read", "limit: copy")
_LEAST_FOR_LIMITS = 100 << 20


@dataclass
class Measured:
    """Measurements of one contestant's runs, all of them with the source in the page cache or all without.

    Attributes:
        left_bytes: bytes of the source and the target in the page cache after a run.
    """

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    left_bytes: list[int | None] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def ratio(self, other: Measured) -> float:
        """The median ratio of times within a round."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=False))


def contestants(
    case: Case, place: Path, target: Path, *, with_mindspore: bool, baseline: str | None, verification: str
) -> tuple[Path, dict[str, list[str]]]:
    """Return the source, and the commands that do the same work."""
    before, after = str(place / "source.ckpt"), str(place / "target.ckpt")
    source, unified = str(place / "src"), str(place / "unified")
    unify = ["--source", source, "--source-strategy", before, "--output", "unified", "--max-file-size-bytes", str(256 << 20)]
    sides = ["--source", source, "--source-strategy", before, "--target-strategy", after]
    if case.work == "unify":
        sides = unify
    elif case.work == "load":
        subprocess.run([RESHARD, "transform", *unify, "--target", unified, "--overwrite"], check=True, capture_output=True)
        source, sides = unified, ["--source", unified, "--target-strategy", after]
    elif case.work in ("dcp-huggingface", "dcp-dcp"):
        source = divided(place, "torch-dcp", case.source_ranks)
        to = ["huggingface"] if case.work == "dcp-huggingface" else ["torch-dcp", "--target-ranks", str(case.target_ranks)]
        sides = ["--source", source, "--format", *to]
    commands = {
        "cp -r": ["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "cp", source, str(target)],
        "reshard": [RESHARD, "transform", *sides, "--target", str(target), "--verification", verification, "--json"],
    }
    size = sum(path.stat().st_size for path in Path(source).rglob("*") if path.is_file())
    if size >= _LEAST_FOR_LIMITS:
        limits = ([str(target), str(size)], [source], [str(size)])
        for name, arguments in zip(_LIMITS, limits, strict=True):
            commands[name] = [sys.executable, str(HERE / "limits.py"), name.rpartition(" ")[2], *arguments]
    if baseline:
        commands["baseline"] = [baseline, *commands["reshard"][1:]]
    mindspore = os.environ.get("RESHARD_MINDSPORE_PYTHON")
    if with_mindspore and mindspore and case.work in _PROGRAMS:
        commands["MindSpore"] = [mindspore, "-c", _PROGRAMS[case.work], source, str(target), before, after, case.format]
    torch = os.environ.get("TORCH")
    if torch and case.work == "dcp-huggingface":
        commands["dcp_to_torch_save"] = [torch, "-c", _TORCH_SAVE, source, str(target)]
        shards = divided(place, "torch-safetensors", case.source_ranks)
        commands["consolidate_safetensors_files"] = [torch, "-c", _TORCH_CONSOLIDATE, shards, str(target)]
    return Path(source), commands


def divided(place: Path, form: str, ranks: int) -> str:
    """Return the case's checkpoint in a format of PyTorch, divided among ranks. It is written once."""
    target = place / form
    if not target.exists():
        source = ["--source", str(place / "src"), "--source-strategy", str(place / "source.ckpt")]
        options = ["--target", str(target), "--format", form, "--target-ranks", str(ranks)]
        subprocess.run([RESHARD, "transform", *source, *options], check=True, capture_output=True)
    return str(target)


def run(command: list[str], source: Path, target: Path, measured: Measured, *, cold: bool) -> None:
    """Run a command on an empty target, after what was deleted is on the disk."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    (drop if cold else warm)(source)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None  # noqa: S101 - it was asked for
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    measured.seconds.append(time.perf_counter() - began)
    measured.processor_seconds.append(usage.ru_utime + usage.ru_stime)
    measured.peak_bytes.append(usage.ru_maxrss * 1024)
    if status:
        sys.exit(f"{command} failed with status {status}")
    measured.left_bytes.append(cached_bytes(source, target) if cold else cached_bytes(target))
    if command[1].endswith("limits.py"):
        measured.seconds[-1] = json.loads(output)["seconds"]  # without the start of the program
    if command[-1] == "--json":
        measured.report = json.loads(output)
        measured.peak_bytes[-1] = measured.report["peak_rss_bytes"]  # the kernel's figure counts what it was forked from


def measure(case: Case, folder: Path, runs: int, settings: dict[str, Any]) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """All contestants on one case, in turn: with the source in the page cache, and without."""
    place, target = make(case, folder), folder / "target"
    source, commands = contestants(case, place, target, **settings)
    hot, cold = ({name: Measured() for name in commands} for _ in range(2))
    for number in range(runs + 1):
        for name, command in commands.items():
            if name != "MindSpore" or number > runs - 3:  # last: what it leaves to the disk would burden the others
                run(command, source, target, hot[name] if number else Measured(), cold=False)  # the first round only warms up
        for name in _COLD:
            if name in commands:
                run(commands[name], source, target, cold[name] if number else Measured(), cold=True)
    shutil.rmtree(target, ignore_errors=True)
    return hot, cold


def rows(case: Case, hot: dict[str, Measured], cold: dict[str, Measured]) -> Iterator[list[str]]:
    """Yield the rows of a case in the table."""
    for name, measured in hot.items():
        limit, again = name in _LIMITS, cold[name]
        left = [each for each in (*measured.left_bytes, *again.left_bytes) if each is not None]
        report = measured.report
        yield [
            case.what if name == "cp -r" else "",
            name,
            f"{statistics.median(measured.seconds):.2f}",
            f"{measured.ratio(hot['cp -r']):.2f}" if name != "cp -r" else "",
            f"{statistics.median(again.seconds):.2f}" if again.seconds else "",
            f"{again.ratio(cold['cp -r']):.2f}" if again.seconds and name != "cp -r" else "",
            f"{hot[_LIMITS[0]].ratio(measured):.2f}" if not limit and _LIMITS[0] in hot else "",
            f"{measured.ratio(hot['baseline']):.3f}" if name == "reshard" and "baseline" in hot else "",
            "" if limit else " / ".join(f"{statistics.median(m.processor_seconds):.2f}" for m in (measured, again) if m.seconds),
            f"{max(*measured.peak_bytes, *again.peak_bytes) / 1e6:.0f} MB" if report else "",
            f"{max(left) / 1e6:.0f} MB" if left and not limit else "",
            f"{report['bytes_fetched'] / report['bytes_distinct']:.2f}" if "bytes_distinct" in report else "",
        ]


def measure_others(cases: list[str], folder: Path, baseline: str | None) -> dict[str, Any]:
    """Measure and print what is not a whole transform."""
    kept: dict[str, Any] = {}
    for name, what in _PRINTED.items():
        if not cases or name in cases:
            options = ["--folder", str(folder)] if name in ("sampling", "loading") else []
            options += ["--baseline", baseline] if name == "starting" and baseline else []
            command = [sys.executable, str(HERE / f"{name}.py"), *options]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            kept[name] = [json.loads(line) for line in done.stdout.splitlines()]
            for line in kept[name]:
                print(f"{what}: {json.dumps(line)}")
    if not cases or "parts" in cases:
        processor_seconds(100)  # only warms up
        kept["parts"] = {count: round(processor_seconds(count), 3) for count in (5_000, 10_000)}
        print("processor seconds by the number of parts of an upload, without sending:", json.dumps(kept["parts"]))
    return kept


def main() -> None:
    """Run the requested measurements, print a table, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *(case.name for case in CASES), *_OTHERS], help="those to measure; all")
    parser.add_argument("--runs", type=int, default=15, help="rounds of the LLaMA-shaped cases; a third of it for the others")
    parser.add_argument("--verification", default="sample", choices=["none", "sample", "full"], help="that of all builds; sample")
    parser.add_argument("--baseline", help="the reshard command of another build, which takes the same options")
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("RESHARD_CACHE", "/tmp/reshard")) / "bench")  # noqa: S108 - not secret
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else only installed builds start from compiled modules
    table = Table(title=f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    times = ("seconds, hot", "of cp -r", "cold", "of cp -r", "of write limit", "of baseline")
    numbers = (*times, "processor seconds, hot / cold", "peak memory", "left in page cache", "fetched / distinct")
    for name in ("case", "program", *numbers):
        table.add_column(name, justify="left" if name in ("case", "program") else "right")
    kept: dict[str, Any] = {}
    for case in CASES:
        if arguments.cases and case.name not in arguments.cases:
            continue
        llama = case.name in ("llama-safetensors", "llama-ckpt", "unify", "load")
        runs = arguments.runs if llama else -(-arguments.runs // 3)
        settings = {"with_mindspore": llama, "baseline": arguments.baseline, "verification": arguments.verification}
        hot, cold = measure(case, arguments.folder, runs, settings)
        for row in rows(case, hot, cold):
            table.add_row(*row)
        for kind, found in (("hot", hot), ("cold", cold)):
            columns = ("seconds", "processor_seconds", "peak_bytes", "left_bytes")
            kept.setdefault(case.name, {})[kind] = {
                name: {each: getattr(m, each) for each in columns} for name, m in found.items()
            }
    Console(width=200).print(table)
    kept |= measure_others(arguments.cases, arguments.folder, arguments.baseline)
    results = HERE / "results" / "local"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
