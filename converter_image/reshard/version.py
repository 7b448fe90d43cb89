"""The version of this package, and its build and environment."""

from __future__ import annotations

import os
from typing import Any

__version__ = "0.1.0"

UNKNOWN = "unknown"
# Packages whose versions affect what is read or written, and packages that reshard works with.
_PACKAGES = ("numpy", "ml-dtypes", "msgspec", "protobuf", "botocore", "cryptography", "safetensors", "mindspore", "torch")


def build() -> tuple[str, str]:
    """Return the commit and the date of the build, or "unknown". The images set both in the environment."""
    return os.environ.get("RESHARD_BUILD_COMMIT") or UNKNOWN, os.environ.get("RESHARD_BUILD_DATE") or UNKNOWN


def describe() -> dict[str, Any]:
    """Return the version, the build, and the versions of Python and of packages (None if not installed)."""
    import platform  # noqa: PLC0415 - most commands start faster without it

    commit, date = build()
    return {
        "version": __version__,
        "commit": commit,
        "built": date,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": {name: _installed(name) for name in _PACKAGES},
    }


def _installed(package: str) -> str | None:
    from importlib import metadata  # noqa: PLC0415 - it takes longer than the library itself, which needs it for one command

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
