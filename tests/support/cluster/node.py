"""Commands and configuration files of the node's programs."""

import json

from cluster.certificates import AUTHORITY
from cluster.images import SANDBOX
from cluster.layout import BRIDGE, CONTAINERD_SOCKET, NODE, NODE_ADDRESS, PODS, PROXY_HEALTH, Layout, program


def containerd(layout: Layout) -> list[str]:
    """Return the command of containerd."""
    return [program("containerd"), "--config", str(layout.configuration / "containerd.toml")]


def kubelet(layout: Layout) -> list[str]:
    """Return the command of the kubelet."""
    return [
        program("kubelet"),
        f"--config={layout.configuration / 'kubelet.json'}",
        f"--kubeconfig={layout.configuration / 'kubelet.kubeconfig'}",
        f"--hostname-override={NODE}",
        f"--node-ip={NODE_ADDRESS}",
    ]


def proxy(layout: Layout) -> list[str]:
    """Return the command of kube-proxy, which routes services' addresses."""
    return [program("kube-proxy"), f"--config={layout.configuration / 'kube-proxy.json'}"]


def write_configuration(layout: Layout) -> None:
    """Write the files that the programs above are started with."""
    files = {
        "containerd.toml": _containerd(layout),
        "cni/pods.conflist": json.dumps(_pod_network()),
        "kubelet.json": json.dumps(_kubelet(layout)),
        "kube-proxy.json": json.dumps(_proxy(layout)),
    }
    for name, text in files.items():
        path = layout.configuration / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _containerd(layout: Layout) -> str:
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower the score, and ends with an error that does not say so.
    return f"""
version = 2
root = "{layout.data("containerd")}"
state = "{CONTAINERD_SOCKET.parent}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{SANDBOX}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{layout.configuration / "cni"}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _pod_network() -> dict[str, object]:
    # Addresses in use are remembered under /run, so that they are free again when the cluster is gone.
    addresses = {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": addresses}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, portmap]}


def _kubelet(layout: Layout) -> dict[str, object]:
    nothing = "0%"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{layout.certificates / AUTHORITY}.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "podLogsDir": str(layout.logs / "pods"),
        "volumePluginDir": str(layout.data("volume-plugins")),
        "resolvConf": "",
        "clusterDNS": [NODE_ADDRESS],  # no server there, so that a pod's requests fail at once
        "clusterDomain": "cluster.local",
        "oomScoreAdj": 0,
        "maxPods": 500,
        "kubeAPIQPS": 500,
        "kubeAPIBurst": 1000,
        "eventRecordQPS": 0,
        # A full disk is the machine's matter: no pod is evicted and no image removed for it.
        "evictionHard": {"nodefs.available": nothing, "imagefs.available": nothing, "memory.available": nothing},
        "imageGCHighThresholdPercent": 100,
    }


def _proxy(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfig)},
        "clusterCIDR": PODS,
        "hostnameOverride": NODE,
        "healthzBindAddress": PROXY_HEALTH,
        "mode": "iptables",
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0},  # it is the machine's, not the network's
    }
