"""Start a whole cluster in the current namespaces."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from cluster import access, certificates, control_plane, groups, images, node
from cluster.components import Component, wait
from cluster.layout import CONTAINERD_SOCKET, ETCD, NODE, PROXY_HEALTH, Layout

_PATIENCE = 120.0  # seconds; it takes some five where nothing else runs


def start(layout: Layout, *, with_node: bool) -> None:
    """Start the control plane, and the node if asked, and wait until they can be used."""
    certificates.make(layout.certificates)
    access.write_configuration(layout)
    control_plane.write_configuration(layout)
    if with_node:
        node.write_configuration(layout)
        groups.make(layout.cgroup)
    foundations, rest = _control_plane(layout)
    if with_node:
        containerd, others = _node(layout)
        foundations.append(containerd)
        rest += others
    # Not all at once: on a busy machine the controllers would give up before there is an API.
    for components in (foundations, rest):
        for component in components:
            component.start()
        wait(components, _PATIENCE)


def _control_plane(layout: Layout) -> tuple[list[Component], list[Component]]:
    """Return the control plane's components: those that the others depend on, and the others."""

    def controllers_run() -> bool:
        # Every pod needs these: before that, creating one is refused.
        needed = ("serviceaccounts/default", "configmaps/kube-root-ca.crt")
        return all(access.get(layout, f"/api/v1/namespaces/default/{path}") for path in needed)

    etcd = _component(layout, "etcd", control_plane.etcd, lambda: access.healthy(f"{ETCD}/health"))
    api = _component(layout, "kube-apiserver", control_plane.apiserver, lambda: access.get(layout, "/readyz"))
    return [etcd, api], [_component(layout, "kube-controller-manager", control_plane.controller_manager, controllers_run)]


def _node(layout: Layout) -> tuple[Component, list[Component]]:
    """Return the node's components: the one that the others depend on, and the others."""

    def node_is_ready() -> bool:
        status = json.loads(access.get(layout, f"/api/v1/nodes/{NODE}"))["status"]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status.get("conditions", []))

    return _component(layout, "containerd", node.containerd, _containerd_listens), [
        _component(layout, "kube-scheduler", control_plane.scheduler, lambda: True),
        _component(layout, "kubelet", node.kubelet, node_is_ready),
        _component(layout, "kube-proxy", node.proxy, lambda: access.healthy(f"http://{PROXY_HEALTH}/healthz")),
        *_images(layout),
    ]


def _images(layout: Layout) -> list[Component]:
    archives = [Path(archive) for archive in os.environ.get("RESHARD_IMAGES", "").split(os.pathsep) if archive]
    return [Component(path.stem, images.loading(path), None, layout.logs / f"{path.stem}.log") for path in archives]


def _component(layout: Layout, name: str, command: Callable[[Layout], list[str]], ready: Callable[[], object]) -> Component:
    return Component(name, command(layout), ready, layout.logs / f"{name}.log")


def _containerd_listens() -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(CONTAINERD_SOCKET))
    return True
