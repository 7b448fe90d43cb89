"""Two operators at once: one works, the other takes over, and neither undoes what the other does."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from typing import TYPE_CHECKING

from kubernetes_objects import wait_for
from operator_process import account, operator_process
from pretend_cluster import resource
from pretend_kubelet import PretendKubelet

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.layout import Layout
    from transforms_on_cluster import Transforms

SPEC = resource()["spec"]


def holder(transforms: Transforms) -> str | None:
    """Return the holder of the Lease."""
    items = transforms.leases.list_namespaced_lease(transforms.namespace).items
    return items[0].spec.holder_identity if items else None


def test_a_paused_replica_finds_itself_replaced(transforms: Transforms, layout: Layout, tmp_path: Path) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path)
    kubelet = PretendKubelet(transforms.api, transforms.namespace)
    with operator_process(who, tmp_path, "first") as first, kubelet.running():
        wait_for(lambda: holder(transforms) == "first")
        with operator_process(who, tmp_path, "second"):
            kubelet.held.add("ranks")
            transforms.create("shared", SPEC)
            transforms.wait("shared", lambda s: s.get("phase") == "Resharding")
            first.send_signal(signal.SIGSTOP)
            kubelet.held.clear()
            transforms.ended("shared")
            assert holder(transforms) == "second"
            first.send_signal(signal.SIGCONT)
            assert first.wait(timeout=120) == 1
    assert len(transforms.jobs()) == 3
    assert "another replica has taken over" in (tmp_path / "first.log").read_text()


def test_a_replica_that_ends_releases_its_lease(transforms: Transforms, layout: Layout, tmp_path: Path) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path)
    with operator_process(who, tmp_path, "first") as first:
        wait_for(lambda: holder(transforms) == "first")
        first.terminate()
        assert first.wait(timeout=120) == 0
    assert not holder(transforms)
    with operator_process(who, tmp_path, "second"):
        wait_for(lambda: holder(transforms) == "second")


def test_the_operator_reports_that_it_is_healthy(transforms: Transforms, layout: Layout, tmp_path: Path) -> None:
    who = account(transforms.api, layout, transforms.namespace, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    who.environment["RESHARD_HEALTH_PORT"] = str(port)

    def health() -> dict[str, object] | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
                found: dict[str, object] = json.load(answer)
                return found
        except OSError:
            return None

    with operator_process(who, tmp_path):
        wait_for(lambda: (health() or {}).get("watches") == 1)
        assert "s ago" in str((health() or {})["resync"])


def test_two_replicas_without_a_lease_do_the_work_once(transforms: Transforms, layout: Layout, tmp_path: Path) -> None:
    """Without the Lease: names, preconditions and resource versions alone keep it right."""
    who = account(transforms.api, layout, transforms.namespace, tmp_path)
    who.environment["RESHARD_LEASE"] = ""
    kubelet = PretendKubelet(transforms.api, transforms.namespace)
    with operator_process(who, tmp_path, "first"), operator_process(who, tmp_path, "second"), kubelet.running():
        for name in ("a", "b", "c"):
            target = SPEC["target"] | {"storage": {"persistentVolumeClaim": {"claimName": "claim", "path": name}}}
            transforms.create(name, SPEC | {"target": target})
        for name in ("a", "b", "c"):
            transforms.ended(name, seconds=60)

        def completed() -> set[str]:
            events = transforms.core.list_namespaced_event(transforms.namespace).items
            return {event.involved_object.name for event in events if event.reason == "Complete"}

        wait_for(lambda: completed() == {"a", "b", "c"})
    assert len(transforms.jobs()) == 9
