"""A transform fits into the memory that its plan states: it runs in a control group with exactly this limit."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import disk
import models
import pytest
from memory_limit import can_limit, run_within

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not can_limit(), reason="control groups for memory cannot be created")
RESHARD = (sys.executable, "-m", "reshard")
NAMES = 200
ROWS, COLUMNS = 1536, 4096  # 24 MB, more than the buffers of a worker


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on a disk: the pages of a tmpfs would count as memory of the process that writes them."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


def checkpoint(folder: Path, kind: str) -> disk.Checkpoint:
    """Four ranks, which hold small parameters and slices of a large one."""
    rows = disk.Cut((4,), ((0,), ())), 0, disk.Cut((2,), ((), (0,))), 0
    small = disk.Cut((4,), ((0,),)), 0, disk.Cut((2,), ((0,),)), 0
    tensors = (
        models.Tensor("large", "Float32", (ROWS, COLUMNS), *rows),
        *(models.Tensor(f"model.layers.{n}.attention.weight.with.a.usual.name", "Float32", (8,), *small) for n in range(NAMES)),
    )
    return disk.write(folder, models.Model(4, 1, 2, 1, tensors, 1, remove_redundancy=False), kind)


def check(command: list[str]) -> float:
    """Run a transform within the bound of its plan. Return the bound divided by the peak, because too much is a waste."""
    planned = run_within(1 << 30, [*RESHARD, "plan", *command, "--json"])
    assert planned.code == 0, planned.errors
    bound = json.loads(planned.output)["memory_bytes"]
    done = run_within(bound, [*RESHARD, "transform", *command, "--json"])
    assert done.code == 0, (bound, done.errors[-500:])
    return bound / json.loads(done.output)["peak_rss_bytes"]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ckpt", ()),
        ("ckpt", ("--io", "direct")),
        ("ckpt", ("--io", "buffered", "--verification", "full")),
        ("ckpt", ("--workers", "8", "--crc")),
        ("safetensors", ()),
        ("safetensors", ("--cast", "l*=float16")),
        ("ckpt", ("--encryption-key-file", "KEY")),
    ],
)
def test_files_of_ranks(folder: Path, kind: str, more: tuple[str, ...]) -> None:
    made = checkpoint(folder, kind)
    (folder / "KEY").write_bytes(bytes(range(16)))
    options = [str(folder / each) if each == "KEY" else each for each in more]
    assert check([*made.arguments(folder / "out", *options)[1:]]) < 3
