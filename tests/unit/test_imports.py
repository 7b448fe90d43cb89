"""The operator's image has the spec and the errors, and none of the converter's libraries."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rawfiles import safetensors

import reshard

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {"numpy", "botocore", "rich", "google.protobuf", "xxhash", "zlib_ng", "ml_dtypes", "tenacity"}


MODULES = ["reshard", "reshard.spec.resource", "reshard.errors", "reshard.cli", "reshard_operator.__main__"]


def loaded_after(arguments: list[str]) -> set[str]:
    """Run a command in a new process, and return the modules that it has then loaded."""
    program = f"import sys, reshard.cli; assert reshard.cli.main({arguments}) == 0; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("module", MODULES)
def test_an_import_loads_no_heavy_modules(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_the_version_is_printed_without_the_library() -> None:
    loaded = loaded_after(["--version"])
    assert not HEAVY & loaded
    assert not {"asyncio", "email", "importlib.metadata", "socket", "yaml"} & loaded  # imported by packages, if at all


def test_a_transform_of_files_of_ranks_loads_only_what_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "source" / "rank_0" / "a.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(safetensors({"w": np.zeros((4, 4), np.float32)}, {"format": "ms"}))
    loaded = loaded_after(["transform", "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")])
    assert "numpy" in loaded
    assert not {"botocore", "google.protobuf", "rich", "yaml", "asyncio"} & loaded
    assert not {"reshard.model", "reshard.formats.torch.reader", "reshard.formats.protocol", "reshard.pictures.svg"} & loaded


def test_the_program_ends_without_a_search_for_garbage() -> None:
    program = "import gc, reshard.cli as c; c.program(['--version']); print(len(gc.get_objects()))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(ended.stdout.splitlines()[-1]) < 100


def test_numpy_starts_no_threads_in_the_program() -> None:
    program = "import os, reshard.cli as c; c.program(['--version']); import numpy; print(len(os.listdir('/proc/self/task')))"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "1"


_MAPPED = """
import ctypes
from reshard.cli import heap

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
heap.return_large_blocks()
freed = bytearray(16 << 20)
del freed
before = libc.mallinfo2().hblkhd
block = bytearray(4 << 20)
print(libc.mallinfo2().hblkhd - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc 2.33 or later")
def test_large_blocks_of_memory_are_returned_after_larger_ones() -> None:
    done = subprocess.run([sys.executable, "-c", _MAPPED], check=True, capture_output=True, text=True)
    assert int(done.stdout) >= 4 << 20


def test_public_names_exist() -> None:
    assert all(hasattr(reshard, name) for name in reshard.__all__)
    with pytest.raises(AttributeError):
        _ = reshard.nothing
