"""`make bench`: time and memory of whole transforms, compared with `cp -r` of the same bytes and with peers.

Peers are MindSpore, where it is installed, PyTorch, where `TORCH` is the path of a Python interpreter that imports it, and
another build of this project (`--baseline COMMAND`). Every round runs all programs in turn, each on an empty target. A run
begins when what was deleted is on the disk, and ends when the result is. The source is in the page cache ("hot"). Some
programs run without it as well ("cold"), and on a tmpfs if it has enough space. `limits.py` measures in the same rounds what the
machine can do with as many bytes. The tables show medians, and medians of the ratios within a round.
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
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from instant_uploads import processor_seconds

from cache import cached_bytes, drop, warm
from cases import CASES, FOLDER, Case, make
from contestants import COLD, HERE, LIMITS, Settings, contestants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Programs that print lines of JSON, and what they measure.
_PRINTED = {
    "starting": "processor seconds to start",
    "planning": "plan of 405B parameters with Adam's moments, 16,384 -> 12,288 ranks",
    "model": "metadata of 128,000 shards, and a million irregular boxes",
    "sampling": "comparison of replicas, 2.1 GB",
    "loading": "load into memory",
}
_OTHERS = (*_PRINTED, "parts")
_TMPFS = Path("/dev/shm")  # noqa: S108 - a file system, not a file
_LEAST_ON_TMPFS = 100 << 20
# The first round only warms up. A case that runs out of time has at least this many others.
_FEWEST_ROUNDS = 3
_SLOW_ROUNDS = 2
_HEAD = (
    "case",
    "program",
    "hot",
    "ratio to `cp -r`",
    "share of the limit",
    "share of the write rate",
    "cold",
    "ratio to `cp -r`",
    "share of the limit",
    "ratio to the baseline, hot / cold",
    "processor time, hot / cold",
    "ratio to the baseline, hot / cold",
    "peak memory",
    "left in the page cache",
    "fetched / distinct",
    "rounds",
)


@dataclass
class Measured:
    """Measurements of one program's runs, all of them with the source in the page cache or all without.

    Attributes:
        left_bytes: bytes of the source and the target in the page cache after a run.
    """

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    left_bytes: list[int | None] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def seconds_of(measured: Measured) -> list[float]:
    """Return the seconds of each run."""
    return measured.seconds


def processor_of(measured: Measured) -> list[float]:
    """Return the processor seconds of each run."""
    return measured.processor_seconds


def ratio(of: Measured | None, to: Measured | None, what: Callable[[Measured], list[float]] = seconds_of) -> str:
    """Return the median ratio within a round, or "" if there is none."""
    pairs = list(zip(what(of), what(to), strict=False)) if of is not None and to is not None else []
    return f"{statistics.median(a / b for a, b in pairs):.2f}" if pairs else ""


def median(measured: Measured, what: Callable[[Measured], list[float]] = seconds_of) -> str:
    """Return the median, or "" if there is none."""
    return f"{statistics.median(what(measured)):.2f} s" if what(measured) else ""


def run(command: list[str], source: Path, target: Path, measured: Measured, *, cold: bool) -> bool:
    """Run a command on an empty target, after what was deleted is on the disk. Return whether it succeeded."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    (drop if cold else warm)(source)
    before = (cached_bytes(source) or 0) if cold else 0  # the kernel may keep pages that it has just read
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None  # noqa: S101 - it was asked for
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        return False
    peak = usage.ru_maxrss * 1024
    if command[1].endswith("limits.py"):
        seconds = json.loads(output)["seconds"]  # without the start of the program
    if "--json" in command:
        measured.report = json.loads(output)
        peak = measured.report["peak_rss_bytes"]  # the kernel's figure counts what it was forked from
    measured.seconds.append(seconds)
    measured.processor_seconds.append(usage.ru_utime + usage.ru_stime)
    measured.peak_bytes.append(peak)
    left = cached_bytes(source, target) if cold else cached_bytes(target)
    measured.left_bytes.append(None if left is None else max(0, left - before))  # less, if the run removed pages of before
    return True


def measure(
    case: Case, folder: Path, settings: Settings, rounds: int, seconds: float, *, on_tmpfs: bool = False
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """Measure all programs on one case, in turn: with the source in the page cache, and without.

    Args:
        case: the case.
        folder: folder of the cases.
        settings: what is compared with this build.
        rounds: maximum number of rounds.
        seconds: time after which no other round starts.
        on_tmpfs: whether the folder is on a tmpfs.
    """
    place, target = make(case, folder), folder / "target"
    source, commands = contestants(case, place, target, settings)
    if on_tmpfs:
        commands = {name: command for name, command in commands.items() if name in COLD or name.startswith("reshard")}
    hot, cold = ({name: Measured() for name in commands} for _ in range(2))
    end = time.monotonic() + seconds
    for number in range(rounds + 1):
        if number > _FEWEST_ROUNDS and time.monotonic() > end:
            break
        names = list(commands)
        names = names[number % len(names) :] + names[: number % len(names)]  # none is always the first
        for name, is_cold in [*((name, False) for name in names), *((name, True) for name in names)]:
            if (is_cold and (on_tmpfs or name not in COLD)) or name not in commands:
                continue
            if name == "MindSpore" and not number <= _SLOW_ROUNDS:
                continue
            kept = (cold if is_cold else hot)[name] if number else Measured()
            if not run(commands[name], source, target, kept, cold=is_cold):
                if name.startswith("reshard"):
                    sys.exit(f"{commands[name]} failed")
                print(f"{case.name}: {name} failed, and is left out", file=sys.stderr)
                del commands[name]
    shutil.rmtree(target, ignore_errors=True)
    return hot, cold


def measure_on_tmpfs(case: Case, folder: Path, settings: Settings, rounds: int, seconds: float) -> dict[str, Measured]:
    """Measure a case on a tmpfs. Return nothing if it does not have enough space, or the case is small."""
    place = make(case, folder)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    needed = size + case.nbytes * case.replicas * 1.1
    if case.nbytes < _LEAST_ON_TMPFS or not _TMPFS.is_dir() or shutil.disk_usage(_TMPFS).free < needed:
        return {}
    with tempfile.TemporaryDirectory(dir=_TMPFS) as found:
        shutil.copytree(place, Path(found) / case.name)
        return measure(case, Path(found), settings, rounds, seconds, on_tmpfs=True)[0]


def rows(what: str, hot: dict[str, Measured], cold: dict[str, Measured]) -> Iterator[list[str]]:
    """Yield the rows of a case in the table."""
    for name, measured in hot.items():
        if not measured.seconds:
            continue
        limit, again, report = name in LIMITS, cold.get(name, Measured()), measured.report
        left = [each for each in (*measured.left_bytes, *again.left_bytes) if each is not None] if cold else []
        cp, files, write = (hot.get(each) if name != each else None for each in ("cp -r", "limit: files", "limit: write"))
        cold_cp, cold_files = (cold.get(each) if name != each else None for each in ("cp -r", "limit: files"))
        builds = [(measured, hot.get("baseline")), (again, cold.get("baseline"))] if name.startswith("reshard") else []
        yield [
            what if name == "cp -r" else "",
            name,
            median(measured),
            ratio(measured, cp),
            "" if limit else ratio(files, measured),
            "" if limit else ratio(write, measured),
            median(again),
            ratio(again, cold_cp),
            "" if limit else ratio(cold_files, again),
            _both(ratio(*pair) for pair in builds),
            _both(median(each, processor_of) for each in (measured, again)),
            _both(ratio(*pair, processor_of) for pair in builds),
            f"{max(*measured.peak_bytes, *again.peak_bytes, 0) / 1e6:.0f} MB" if report else "",
            f"{max(left) / 1e6:,.0f} MB" if left and not limit else "",
            f"{report['bytes_fetched'] / report['bytes_distinct']:.2f}" if report.get("bytes_distinct") else "",
            str(len(measured.seconds)),
        ]


def _both(found: Iterator[str]) -> str:
    return " / ".join(each for each in found if each)


def print_row(cells: tuple[str, ...] | list[str]) -> None:
    """Print a row of a table in Markdown."""
    print(f"| {' | '.join(cells)} |", flush=True)


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
    parser.add_argument("--rounds", type=int, default=9, help="maximum number of rounds of a case; 9")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time for all transforms together; unlimited")
    parser.add_argument("--verification", default="sample", choices=["none", "sample", "full"], help="that of all builds; sample")
    parser.add_argument("--baseline", help="the reshard command of another build, which takes the same options")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else only installed builds start from compiled modules
    settings = Settings(arguments.baseline, arguments.verification)
    cases = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    left = arguments.minutes * 60
    kept: dict[str, Any] = {}
    if cases:
        print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}\n")
        print_row(_HEAD)
        print_row(["---", "---", *["--:"] * (len(_HEAD) - 2)])
    for number, case in enumerate(cases):
        began, share = time.monotonic(), left / (len(cases) - number)
        hot, cold = measure(case, arguments.folder, settings, arguments.rounds, share * 3 / 4)
        for row in rows(case.what, hot, cold):
            print_row(row)
        share -= time.monotonic() - began
        in_memory = measure_on_tmpfs(case, arguments.folder, settings, arguments.rounds, share)
        for row in rows(f"{case.what}, on a tmpfs", in_memory, {}):
            print_row(row)
        left -= time.monotonic() - began
        kept[case.name] = {
            kind: {
                name: {"seconds": m.seconds, "processor": m.processor_seconds, "peak": m.peak_bytes, "left": m.left_bytes}
                for name, m in found.items()
            }
            for kind, found in (("hot", hot), ("cold", cold), ("tmpfs", in_memory))
        }
    kept |= measure_others(arguments.cases, arguments.folder, arguments.baseline)
    results = HERE / "results" / "local"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
