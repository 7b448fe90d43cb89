"""Commands and configuration files of a node's programs."""

import json
from dataclasses import dataclass
from pathlib import Path

from cluster import access, certificates
from cluster.certificates import AUTHORITY
from cluster.images import SANDBOX
from cluster.layout import BRIDGE, CONTAINERD_SOCKET, NODE, NODE_ADDRESS, PODS, PROXY_HEALTH, Layout, program


@dataclass(frozen=True)
class Node:
    """A node. All nodes share a network, so their addresses and ports differ; each has a /run of its own.

    Attributes:
        first_pod: address of its first pod. The pods of a node have consecutive addresses.
        port: port of the kubelet.
        health_port: port on which the kubelet reports its health.
        taint: key of the taint that it is registered with, so that only pods which tolerate it run there. Empty: none.
    """

    layout: Layout
    name: str = NODE
    address: str = NODE_ADDRESS
    first_pod: str = "10.88.0.2"
    port: int = 10250
    health_port: int = 10248
    taint: str = ""

    @property
    def configuration(self) -> Path:
        """The files that its programs read at their start."""
        return self.layout.configuration / self.name

    @property
    def cgroup(self) -> str:
        """The control group that has all its pods."""
        return f"{self.layout.cgroup}/{self.name}"

    def data(self, component: str) -> Path:
        """The folder for what a component stores."""
        return self.layout.data(self.name) / component


def containerd(node: Node) -> list[str]:
    """Return the command of containerd."""
    return [program("containerd"), "--config", str(node.configuration / "containerd.toml")]


def kubelet(node: Node) -> list[str]:
    """Return the command of the kubelet."""
    return [
        program("kubelet"),
        f"--config={node.configuration / 'kubelet.json'}",
        f"--kubeconfig={node.configuration / 'kubelet.kubeconfig'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]


def proxy(node: Node) -> list[str]:
    """Return the command of kube-proxy, which routes services' addresses, for all nodes."""
    return [program("kube-proxy"), f"--config={node.configuration / 'kube-proxy.json'}"]


def write_configuration(node: Node) -> None:
    """Write the files that the programs above are started with."""
    files = {
        "containerd.toml": _containerd(node),
        "cni/pods.conflist": json.dumps(_pod_network(node)),
        "kubelet.json": json.dumps(_kubelet(node)),
        "kube-proxy.json": json.dumps(_proxy(node)),
    }
    for name, text in files.items():
        path = node.configuration / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    keys = node.layout.certificates
    certificates.make_for_node(keys, node.name)
    user = {"client-certificate": f"{keys / node.name}.crt", "client-key": f"{keys / node.name}.key"}
    access.write_kubeconfig(node.layout, node.configuration / "kubelet.kubeconfig", user)


def _containerd(node: Node) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower the score, and ends with an error that does not say so.
    return f"""
version = 2
root = "{node.data("containerd")}"
state = "{CONTAINERD_SOCKET.parent}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{node.configuration / "cni"}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _pod_network(node: Node) -> dict[str, object]:
    # Addresses in use are remembered under /run, so that they are free again when the node is gone.
    ranges = [[{"subnet": PODS, "rangeStart": node.first_pod}]]
    addresses = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": addresses}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}


def _kubelet(node: Node) -> dict[str, object]:
    nothing = "0%"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{node.layout.certificates / AUTHORITY}.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "podLogsDir": str(node.layout.logs / node.name / "pods"),
        "volumePluginDir": str(node.layout.volume_plugins),
        "resolvConf": "",
        "clusterDNS": [NODE_ADDRESS],  # no server there, so that a pod's requests fail at once
        "clusterDomain": "cluster.local",
        "oomScoreAdj": 0,
        "port": node.port,
        "healthzPort": node.health_port,
        "registerWithTaints": [{"key": node.taint, "effect": "NoSchedule"}] if node.taint else [],
        "maxPods": 500,
        "kubeAPIQPS": 500,
        "kubeAPIBurst": 1000,
        "eventRecordQPS": 0,
        # A full disk is the machine's matter: no pod is evicted and no image removed for it.
        "evictionHard": {"nodefs.available": nothing, "imagefs.available": nothing, "memory.available": nothing},
        "imageGCHighThresholdPercent": 100,
    }


def _proxy(node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(node.layout.kubeconfig)},
        "clusterCIDR": PODS,
        "hostnameOverride": node.name,
        "healthzBindAddress": PROXY_HEALTH,
        "mode": "iptables",
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0},  # it is the machine's, not the network's
    }
