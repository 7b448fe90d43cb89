"""Processes of the converter in pods. The tests run in the PID namespace that contains those of the pods."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def process_of(uid: str, index: int) -> int | None:
    """Return the process that writes the ranks of a completion index of a transform, or None if it does not run."""
    wanted = {f"RESHARD_OWNER={uid}", f"JOB_COMPLETION_INDEX={index}"}
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if wanted <= set((place / "environ").read_bytes().decode(errors="replace").split("\0")):
                return int(place.name)
    return None
