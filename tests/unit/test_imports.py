"""The operator's image has the spec and the errors, and none of the converter's libraries."""

from __future__ import annotations

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


@pytest.mark.parametrize("module", MODULES)
def test_an_import_loads_no_heavy_modules(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_a_transform_of_files_of_ranks_loads_no_other_formats(tmp_path: Path) -> None:
    file = tmp_path / "source" / "rank_0" / "a.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(safetensors({"w": np.zeros((4, 4), np.float32)}, {"format": "ms"}))
    arguments = ["transform", "--source", str(tmp_path / "source"), "--target", str(tmp_path / "target")]
    program = f"import sys, reshard.cli; assert reshard.cli.main({arguments}) == 0; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"reshard.model", "reshard.formats.torch.reader", "reshard.formats.protocol", "reshard.pictures.svg"} & set(loaded)


def test_public_names_exist() -> None:
    assert all(hasattr(reshard, name) for name in reshard.__all__)
    with pytest.raises(AttributeError):
        _ = reshard.nothing
