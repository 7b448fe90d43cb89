"""Transforms whose pods are simulated: the operator's side of many ranks and many resources."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kubernetes_access import requests
from pretend_cluster import COMMIT, LAST, PLAN, RANKS
from transforms_on_cluster import RELEASE, SYSTEM

from cluster import simulated

if TYPE_CHECKING:
    from cluster.layout import Layout
    from transforms_on_cluster import Stage


def execution(placement: dict[str, Any], ranks: int, **more: Any) -> dict[str, Any]:
    """Return spec.execution of a transform with so many ranks. The pod of the last one reports that it has committed."""
    said = {"plan": PLAN | {"targetRanks": ranks}, "ranks": RANKS, f"ranks-{ranks - 1}": LAST, "commit": COMMIT}
    template = {"annotations": simulated.messages(said), **placement}
    return {"parallelism": ranks, "ranksPerPod": 1, "podTemplate": template} | more


class Usage(NamedTuple):
    """What the operator's process uses: resident memory in bytes, now and at its highest, descriptors and threads."""

    memory: int
    highest_memory: int
    descriptors: int
    threads: int


def usage() -> Usage:
    """Return the usage of the operator, which runs as one process.

    Raises:
        LookupError: it does not run.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if b"reshard_operator" not in (process / "cmdline").read_bytes():
                continue
            lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
            now, highest = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
            return Usage(now, highest, len(list((process / "fd").iterdir())), int(lines["Threads"]))
    raise LookupError("the operator does not run")


def all_ended(stage: Stage) -> dict[str, Any] | None:
    """Return the statuses of all transforms in the namespace, once all have ended."""
    items = stage.custom.list_namespaced_custom_object(*stage.where)["items"]
    found = {item["metadata"]["name"]: item.get("status", {}) for item in items}
    return found if all("completionTime" in status for status in found.values()) else None


def status_writes(layout: Layout, namespace: str) -> list[dict[str, Any]]:
    """Return the audit log's entries of statuses that the operator wrote in a namespace, in order."""
    return [
        entry
        for entry in requests(layout, SYSTEM, f"{RELEASE}-operator")
        if entry["objectRef"].get("subresource") == "status" and entry["objectRef"]["namespace"] == namespace
    ]
