"""Set up network and mounts of the namespaces like those of a machine. Runs inside of them, before any component."""

import subprocess
from pathlib import Path

from cluster.layout import BRIDGE, NODE, NODE_ADDRESS, PODS, Layout, program

# The kubelet would set these for the whole machine, with a reboot after a panic. It finds the values that it expects.
_KERNEL = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}


def prepare(layout: Layout) -> None:
    """Make this process' namespaces fit for a cluster."""
    mounts(layout, NODE)
    _network()


def mounts(layout: Layout, node: str) -> None:
    """Make the mounts of this process' namespace fit for a node."""
    _call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/netns").mkdir()
    for shared in ("/var/lib", "/var/log"):  # some components write there regardless of options; it goes to the state
        over = layout.data(node) / "over" / shared.lstrip("/")
        upper, work = over / "upper", over / "work"
        for path in (upper, work):
            path.mkdir(parents=True)
        _call("mount", "-t", "overlay", "-o", f"lowerdir={shared},upperdir={upper},workdir={work}", "overlay", shared)
    # The kubelet's sockets need a short path, and its measurements a real file system.
    kubelet = Path("/var/lib/kubelet")
    data = layout.data(node) / "kubelet"
    for folder in (kubelet, data):
        folder.mkdir(exist_ok=True)
    _call("mount", "--bind", str(data), str(kubelet))
    for name, value in _KERNEL.items():
        wanted = layout.state / "kernel" / name
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.write_text(f"{value}\n")
        if Path("/proc/sys", name).exists():
            _call("mount", "--bind", str(wanted), f"/proc/sys/{name}")


def _network() -> None:
    width = PODS.partition("/")[2]
    _call("ip", "link", "set", "lo", "up")
    _call("ip", "link", "add", BRIDGE, "type", "bridge")
    _call("ip", "address", "add", f"{NODE_ADDRESS}/{width}", "dev", BRIDGE)
    _call("ip", "link", "set", BRIDGE, "up")
    _call("ip", "route", "add", "default", "dev", BRIDGE)  # it leads nowhere; services' addresses need one to be tried
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _call(name: str, *arguments: str) -> None:
    subprocess.run([program(name), *arguments], check=True)
