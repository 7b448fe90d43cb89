"""Start a whole cluster in the current namespaces."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from cluster import access, certificates, control_plane, groups, images, node
from cluster.components import Component, wait
from cluster.layout import CONTAINERD_SOCKET, ETCD, PROXY_HEALTH, Layout
from cluster.node import Node

PATIENCE = 120.0  # seconds; it takes some five where nothing else runs


def start(layout: Layout, *, with_node: bool) -> None:
    """Start the control plane, and the node if asked, and wait until they can be used."""
    certificates.make(layout.certificates)
    access.write_configuration(layout)
    control_plane.write_configuration(layout)
    foundations, rest = _control_plane(layout)
    if with_node:
        first = Node(layout)
        write_files(first)
        containerd, others = components_of(first)
        foundations.append(containerd)
        rest += others
        rest.append(_component(layout, "kube-scheduler", control_plane.scheduler, lambda: True))
        rest.append(Component("kube-proxy", node.proxy(first), _proxy_is_healthy, layout.logs / "kube-proxy.log"))
    # Not all at once: on a busy machine the controllers would give up before there is an API.
    for components in (foundations, rest):
        for component in components:
            component.start()
        wait(components, PATIENCE)


def _control_plane(layout: Layout) -> tuple[list[Component], list[Component]]:
    """Return the control plane's components: those that the others depend on, and the others."""

    def controllers_run() -> bool:
        # Every pod needs these: before that, creating one is refused.
        needed = ("serviceaccounts/default", "configmaps/kube-root-ca.crt")
        return all(access.get(layout, f"/api/v1/namespaces/default/{path}") for path in needed)

    etcd = _component(layout, "etcd", control_plane.etcd, lambda: access.healthy(f"{ETCD}/health"))
    api = _component(layout, "kube-apiserver", control_plane.apiserver, lambda: access.get(layout, "/readyz"))
    return [etcd, api], [_component(layout, "kube-controller-manager", control_plane.controller_manager, controllers_run)]


def write_files(machine: Node) -> None:
    """Write what the programs of a node read at their start, and create its control group."""
    node.write_configuration(machine)
    groups.make(machine.cgroup)


def components_of(machine: Node) -> tuple[Component, list[Component]]:
    """Return the components of a node: the one that the others depend on, and the others."""
    layout, logs = machine.layout, machine.layout.logs / machine.name

    def is_ready() -> bool:
        status = json.loads(access.get(layout, f"/api/v1/nodes/{machine.name}"))["status"]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status.get("conditions", []))

    archives = [Path(archive) for archive in os.environ.get("RESHARD_IMAGES", "").split(os.pathsep) if archive]
    return Component("containerd", node.containerd(machine), _containerd_listens, logs / "containerd.log"), [
        Component("kubelet", node.kubelet(machine), is_ready, logs / "kubelet.log"),
        *(Component(path.stem, images.loading(path), None, logs / f"{path.stem}.log") for path in archives),
    ]


def _component(layout: Layout, name: str, command: Callable[[Layout], list[str]], ready: Callable[[], object]) -> Component:
    return Component(name, command(layout), ready, layout.logs / f"{name}.log")


def _proxy_is_healthy() -> bool:
    return access.healthy(f"http://{PROXY_HEALTH}/healthz")


def _containerd_listens() -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(CONTAINERD_SOCKET))
    return True
