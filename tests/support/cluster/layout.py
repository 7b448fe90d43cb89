"""Files of a cluster, and the addresses and names of its components."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

# Every cluster has a network of its own, so they may all have the same addresses.
NODE = "node"
BRIDGE = "pods"
NODE_ADDRESS = "10.88.0.1"
PODS = "10.88.0.0/16"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
SERVER = f"https://{NODE_ADDRESS}:6443"
ETCD = "http://127.0.0.1:2379"
PROXY_HEALTH = "127.0.0.1:10256"
CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")  # /run too is its own


class ClusterError(Exception):
    """A part of the cluster does not work; the message names it."""


@dataclass(frozen=True)
class Layout:
    """The paths of one cluster. Its folder's name, unique on the machine, names its cgroups too."""

    state: Path

    @property
    def cgroup(self) -> str:
        """The name of the control group that has all its pods."""
        return self.state.name

    @property
    def certificates(self) -> Path:
        """Keys and certificates, as NAME.key and NAME.crt."""
        return self.state / "certificates"

    @property
    def configuration(self) -> Path:
        """The files that components read at their start."""
        return self.state / "configuration"

    @property
    def logs(self) -> Path:
        """Folder of the components' logs, as NAME.log."""
        return self.state / "logs"

    @property
    def audit_log(self) -> Path:
        """Audit log of service accounts' requests to the API, a line of JSON each."""
        return self.logs / "audit.log"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's access."""
        return self.configuration / "kubeconfig"

    @property
    def token(self) -> Path:
        """The administrator's token, alone in a file."""
        return self.configuration / "token"

    @property
    def process(self) -> Path:
        """File with the PID, outside of the namespaces, of the process whose namespaces are the cluster's."""
        return self.state / "process"

    @property
    def entrance(self) -> Path:
        """A script that runs a command, or a shell, inside."""
        return self.state / "enter"

    @property
    def volume_plugins(self) -> Path:
        """The folder of FlexVolume drivers, as VENDOR~DRIVER/DRIVER. Controllers and kubelets notice new ones."""
        return self.state / "volume-plugins"

    def data(self, component: str) -> Path:
        """The folder for what a component stores."""
        return self.state / "data" / component


def search_path() -> str:
    """The folders of all programs: those that were built for the tests come first."""
    return os.pathsep.join(filter(None, [os.environ.get("RESHARD_PROGRAMS"), os.environ.get("PATH", os.defpath)]))


def program(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise ClusterError(f"the program '{name}' is not here; run tests/cluster/prepare.sh and export what it prints")
    return found
