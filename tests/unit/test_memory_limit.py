"""A transform fits into the memory that its plan states: it runs in a control group with exactly this limit."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import disk
import many
import models
import pytest
from effort import PROFILE
from memory_limit import can_limit, run_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import thin_s3

pytestmark = pytest.mark.skipif(not can_limit(), reason="control groups for memory cannot be created")
RESHARD = (sys.executable, "-m", "reshard")
ROWS, COLUMNS = 1536, 4096  # 24 MB, more than the buffers of a worker
# Numbers of parameters, shards and objects. A tenth is enough to notice a term that is missing in the bound.
FRACTION = 1 if PROFILE == "all" else 10
NAMES, TENSORS, SHARDS, OBJECTS = 100_000 // FRACTION, 20_000 // FRACTION, 128_000 // FRACTION, 60_000 // FRACTION
# A larger multiple of the peak would waste the memory of the cluster. These files do not fill all buffers of an object store.
MOST_RATIO = 3.5


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a disk, with a key: the pages of a tmpfs would count as memory of the process that writes them."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        (Path(name) / "KEY").write_bytes(bytes(range(16)))
        yield Path(name)


def checkpoint(folder: Path, kind: str) -> disk.Checkpoint:
    """Four ranks, which hold small parameters and slices of a large one."""
    rows = disk.Cut((4,), ((0,), ())), 0, disk.Cut((2,), ((), (0,))), 0
    small = disk.Cut((4,), ((0,),)), 0, disk.Cut((2,), ((0,),)), 0
    tensors = (
        models.Tensor("large", "Float32", (ROWS, COLUMNS), *rows),
        *(models.Tensor(f"model.layers.{n}.attention.weight.with.a.usual.name", "Float32", (8,), *small) for n in range(200)),
    )
    return disk.write(folder, models.Model(4, 1, 2, 1, tensors, 1, remove_redundancy=False), kind)


def put(server: thin_s3.ThinServer, source: Path) -> None:
    """Upload a source."""
    for path in source.glob("rank_*/*"):
        server.put("bucket", f"src/{path.relative_to(source)}", path.read_bytes())


def bound_of(*command: str) -> int:
    """Return the bound in the plan of a transform."""
    planned = run_within(2 << 30, [*RESHARD, "plan", *command, "--json"])
    assert planned.code == 0, planned.errors
    return int(json.loads(planned.output)["memory_bytes"])


def check(*command: str) -> tuple[int, int]:
    """Run a transform within the bound of its plan. Return the bound and the peak of its resident memory."""
    bound = bound_of(*command)
    done = run_within(bound, [*RESHARD, "transform", *command, "--json"])
    assert done.code == 0, (bound, done.errors[-500:])
    peak = json.loads(done.output)["peak_rss_bytes"]
    assert bound < MOST_RATIO * peak
    return bound, peak


def check_growth(few: Sequence[str], many: Sequence[str]) -> None:
    """Check that the bound grows at least as the peak does. The bound of few items has a reserve, which would hide a defect."""
    bounds, peaks = zip(check(*few), check(*many), strict=True)
    assert bounds[1] - bounds[0] > peaks[1] - peaks[0], (bounds, peaks)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ckpt", ()),
        ("ckpt", ("--io", "direct")),
        ("ckpt", ("--io", "buffered", "--verification", "full")),
        ("ckpt", ("--workers", "8", "--crc")),
        ("safetensors", ("--cast", "l*=float16", "--format", "torch-dcp")),
        ("ckpt", ("--encryption-key-file", "KEY")),
    ],
)
def test_files_of_ranks(folder: Path, kind: str, more: tuple[str, ...]) -> None:
    made = checkpoint(folder, kind)
    options = [str(folder / each) if each == "KEY" else each for each in more]
    check(*made.arguments(folder / "out", *options)[1:])


def test_a_quarter_of_the_bound_is_too_little(folder: Path) -> None:
    """Otherwise, the limits of these tests have no effect."""
    command = checkpoint(folder, "ckpt").arguments(folder / "out")[1:]
    done = run_within(bound_of(*command) // 4, [*RESHARD, "transform", *command])
    assert done.code == -signal.SIGKILL


def test_an_encrypted_source_and_a_unified_target(folder: Path) -> None:
    made, key = checkpoint(folder, "ckpt"), str(folder / "KEY")
    assert disk.run(made, folder / "encrypted", "--encryption-key-file", key) == 0
    sides = ("--source", str(folder / "encrypted"), "--source-strategy", str(made.target_strategy), "--decryption-key-file", key)
    check(*sides, "--target", str(folder / "unified"), "--output", "unified", "--format", "safetensors")


@pytest.mark.parametrize("keys", [(), ("--encryption-key-file", "--decryption-key-file")])
def test_buckets(folder: Path, server: thin_s3.ThinServer, keys: tuple[str, ...]) -> None:
    made, key = checkpoint(folder, "ckpt"), str(folder / "KEY")
    if keys:
        assert disk.run(made, folder / "encrypted", keys[0], key) == 0
    source = folder / "encrypted" if keys else made.source
    put(server, source)
    before = made.target_strategy if keys else made.source_strategy
    sides = ("--source", "s3://bucket/src", "--source-strategy", str(before), "--target-strategy", str(made.target_strategy))
    check(*sides, "--target", "s3://bucket/out", *(each for name in keys for each in (name, key)))


def test_many_names(folder: Path) -> None:
    made = [many.names(folder / str(count), count, 2) for count in (1, NAMES)]
    check_growth(*([*sides, "--target", f"{folder}/out{i}", "--format", "ckpt"] for i, sides in enumerate(made)))


def test_many_names_that_only_strategies_contain(folder: Path) -> None:
    made = [many.names(folder / str(absent), 10, 2, absent=absent) for absent in (0, NAMES)]
    check_growth(*([*sides, "--target", f"{folder}/out{i}", "--allow-missing"] for i, sides in enumerate(made)))


def test_many_names_in_buckets(folder: Path, server: thin_s3.ThinServer) -> None:
    sides = many.names(folder, NAMES, 2)
    put(server, folder / "src")
    check("--source", "s3://bucket/src", *sides[2:], "--target", "s3://bucket/out")


def converted(folder: Path, *more: str) -> list[str]:
    """Arguments that convert a checkpoint."""
    return ["--source", str(folder), "--target", f"{folder}-out", *more]


@pytest.mark.parametrize(("tensors", "shards", "include"), [(TENSORS, 1, "*"), (1, SHARDS, "*"), (TENSORS, 4, "*.000000.*")])
def test_many_shards(folder: Path, tensors: int, shards: int, include: str) -> None:
    """Without a selection, and with one."""
    for name, each in (("few", (2, 1)), ("many", (tensors, shards))):
        many.shards(folder / name, 64, *each)
    check_growth(*(converted(folder / name, "--format", "huggingface", "--include", include) for name in ("few", "many")))


def test_many_excluded_tensors_of_a_file(folder: Path) -> None:
    for name, count in (("few", 2), ("many", OBJECTS)):
        many.pickled(folder / f"{name}.pt", count)
    more = ("--format", "huggingface", "--include", "*.000000.*")
    check_growth(*(converted(folder / f"{name}.pt", *more) for name in ("few", "many")))


@pytest.mark.parametrize("target", ["torch-dcp", "huggingface"])
def test_many_objects(folder: Path, target: str) -> None:
    for name, count in (("few", 1), ("many", OBJECTS)):
        many.objects(folder / name, 2, count)
    check_growth(*(converted(folder / name, "--format", target) for name in ("few", "many")))
