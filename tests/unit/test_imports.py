"""The operator's image has the spec and the errors, and none of the converter's libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

import reshard

HEAVY = {"numpy", "boto3", "rich", "google.protobuf", "xxhash", "zlib_ng", "ml_dtypes", "tenacity"}


MODULES = ["reshard", "reshard.spec.resource", "reshard.errors", "reshard.cli", "reshard_operator.__main__"]


@pytest.mark.parametrize("module", MODULES)
def test_an_import_loads_no_heavy_modules(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not HEAVY & set(loaded)


def test_public_names_exist() -> None:
    assert all(hasattr(reshard, name) for name in reshard.__all__)
    with pytest.raises(AttributeError):
        _ = reshard.nothing
