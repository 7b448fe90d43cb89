"""The memory of a load beside its result, measured in processes of their own, for results of two sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from pathlib import Path

    import thin_s3

MOST_BESIDE = 64_000_000
SOURCES, TARGETS = 4, 2
ROWS, COLUMNS, WHOLE = ((0,), ()), ((), (0,)), ((), ())
# Layouts of both sides: long runs, runs of the source or of the target that are short, and tensors that are small.
LAYOUTS = {"rows": (ROWS, ROWS), "joined": (COLUMNS, COLUMNS), "cut": (WHOLE, COLUMNS), "turned": (ROWS, COLUMNS)}
PROGRAM = """
import json, sys
import reshard

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name + ":"))

base, how = sys.argv[1:]
arguments = f"{base}/src", f"{base}/source.ckpt", f"{base}/target.ckpt"
reshard.load(*arguments, include=("small.*",), workers=8)  # imports modules, connects
start, result, count = memory("VmRSS"), 0, 0
if how == "load":
    found = reshard.load(*arguments, workers=8)
    result, count = sum(array.nbytes for array in found.values()), len(found)
else:
    for _, array in reshard.iter_tensors(*arguments, workers=8):
        result, count = max(result, array.nbytes), count + 1
        del array
print(json.dumps([count, memory("VmHWM") - start - result, result]))
"""


def write(folder: Path, side: int) -> int:
    """Write a sparse checkpoint, whose large tensors have `side` rows and columns. Return the number of tensors."""
    shapes = {f"{name}.{i}": (side, side) for i in range(3) for name in LAYOUTS} | {f"small.{i}": (4, 4) for i in range(1000)}
    for number, (file, ranks) in enumerate((("source.ckpt", SOURCES), ("target.ckpt", TARGETS))):
        layouts = {name: Layout((ranks,), LAYOUTS.get(name.partition(".")[0], (WHOLE, WHOLE))[number]) for name in shapes}
        (folder / file).write_bytes(dump(StrategyFile(file, {0: layouts}), "protobuf"))
    header, at = {}, 0
    for name, shape in shapes.items():
        layout = Layout((SOURCES,), LAYOUTS.get(name.partition(".")[0], (WHOLE, WHOLE))[0])
        rows, columns = (n // k for n, k in zip(shape, layout.parts, strict=True))
        header[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [at, at + rows * columns * 4]}
        at += rows * columns * 4
    content = json.dumps(header).encode()
    for rank in range(SOURCES):
        path = folder / "src" / f"rank_{rank}" / "net-1_1.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(len(content).to_bytes(8, "little") + content)
        os.truncate(path, 8 + len(content) + at)
    return len(shapes)


def beside(base: str, how: str, count: int) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, base, how], check=True, capture_output=True)
    loaded, nbytes, result = json.loads(done.stdout)
    assert loaded == count
    assert result
    return nbytes


@pytest.mark.parametrize("how", ["load", "iter_tensors"])
@pytest.mark.parametrize("side", [1024, 2048])
def test_local_files(how: str, side: int, tmp_path: Path) -> None:
    count = write(tmp_path, side)
    found = beside(str(tmp_path), how, count)
    assert found <= MOST_BESIDE


@pytest.mark.parametrize("how", ["load", "iter_tensors"])
@pytest.mark.parametrize("side", [1024, 2048])
def test_objects(how: str, side: int, tmp_path: Path, server: thin_s3.ThinServer) -> None:
    count = write(tmp_path, side)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            server.put("bucket", f"made/{path.relative_to(tmp_path)}", path.read_bytes())
    found = beside("s3://bucket/made", how, count)
    assert found <= MOST_BESIDE
