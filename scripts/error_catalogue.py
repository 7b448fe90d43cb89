"""Print docs/errors.md, made from docs/errors.yaml (`make docs`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

CATALOGUE = Path(__file__).parents[1] / "docs" / "errors.yaml"
_HEAD = """# Errors and conditions

This page lists every reason that Reshard reports. Reasons are stable. In scripts, match the reason, not the text of the message.

- **Command line.** The command prints `reshard: REASON: LOCATION: PROBLEM; REMEDY` and a link to the entry on this page. With
  `--json`, it also prints an object `error` to standard output, with the keys `reason`, `message`, `where`, `remedy`, `exitCode`
  and `documentation`. The [exit code](architecture.md#exit-codes) indicates whether a retry can help.
- **Python.** Functions raise a `ReshardError`, which has the attributes `reason`, `what`, `where`, `fix` and `documentation`.
- **Kubernetes.** The reason of the condition `Ready` of a CheckpointTransform comes from the operator, from a failed pod, or from
  Kubernetes. The Event of a failed transform contains a link to the entry on this page.

The `kubectl` commands on this page use the current namespace. If the transform is in another namespace, add `--namespace`.

`make docs` generates this page from `errors.yaml`.
"""
_STATES = {
    "running": "The transform is in progress.",
    "queued": "The transform is queued.",
    "suspended": "The transform is suspended.",
    "waiting": "The transform waits, and continues when the cause is removed.",
    "stuck": "The transform waits, and fails with `PodsNotStarting` after `spec.execution.startupDeadlineSeconds`.",
    "failed": "The transform has failed. Finished ranks are kept.",
    "complete": "The transform is complete.",
}


def page() -> str:
    """Return the page."""
    catalogue = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return _HEAD + "".join("\n" + "\n".join(_entry(reason, entry)) + "\n" for reason, entry in catalogue.items())


def _entry(reason: str, entry: dict[str, Any]) -> Iterator[str]:
    yield f"## {reason}\n\n{entry['meaning']}\n"
    if "exitCodes" in entry:
        codes = " or ".join(map(str, entry["exitCodes"]))
        yield f"- Exit code: {codes}"
    if "state" in entry:
        yield f"- Condition: {_STATES[entry['state']]}"
    if "command" in entry:
        yield f"- Command: `{entry['command']}`"
    if "remedy" in entry:
        yield f"- Remedy: {entry['remedy']}"


if __name__ == "__main__":
    print(page(), end="")
