"""A second node: a kubelet and a containerd in mount and PID namespaces of their own, which end with their first process.

`python -m cluster.second STATE` is that process.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from cluster import first_process, isolation
from cluster.components import Component, wait
from cluster.layout import Layout, program
from cluster.node import Node
from cluster.start import PATIENCE, components_of, write_files

NAME = "second"
TAINT = "tests/second-node"
# It may run on this node, and does so while it can.
PREFERRED: dict[str, Any] = {
    "tolerations": [{"key": TAINT, "operator": "Exists"}],
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 100,
                    "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]},
                }
            ]
        }
    },
}


def _machine(layout: Layout) -> Node:
    return Node(layout, NAME, "10.88.128.1", "10.88.128.2", 10350, 10348, TAINT)


@contextmanager
def second_node(layout: Layout) -> Iterator[Component]:
    """Run a second node until the context ends. A kill of its process ends all its processes, as a power failure does."""
    machine = _machine(layout)
    shutil.rmtree(layout.data(NAME), ignore_errors=True)  # of an earlier one
    address = (f"{machine.address}/32", "dev", "lo")
    subprocess.run([program("ip"), "address", "add", *address], check=True)
    write_files(machine)
    spaces = [program("unshare"), "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    command = [*spaces, sys.executable, "-m", "cluster.second", str(layout.state)]
    ready = layout.data(NAME) / "ready"
    component = Component(NAME, command, ready.exists, layout.logs / f"{NAME}.log")
    component.start()
    try:
        wait([component], PATIENCE)
        yield component
    finally:
        component.process.kill()
        component.process.wait()
        subprocess.run([program("ip"), "address", "delete", *address], check=True)
        subprocess.run([program("kubectl"), "delete", "node", NAME, "--ignore-not-found"], check=True)


def _main() -> NoReturn:
    machine = _machine(Layout(Path(sys.argv[1])))
    isolation.mounts(machine.layout, machine.name)
    containerd, others = components_of(machine)
    for components in ([containerd], others):
        for component in components:
            component.start()
        wait(components, PATIENCE)
    (machine.layout.data(NAME) / "ready").touch()
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(first_process.run(_main))
