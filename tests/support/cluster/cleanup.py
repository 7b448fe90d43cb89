"""`python -m cluster.cleanup STATE [--keep]`: removes the kernel's leftovers of a cluster, however the cluster ended.

Its standard input is a pipe that ends with the cluster's processes, so no other process has to be alive to notify it.
"""

import shutil
import sys
import time
from pathlib import Path

from cluster import groups
from cluster.layout import Layout


def main(layout: Layout, *, keep: bool) -> int:
    """Wait for the end, then remove the control groups, and the state unless it is kept."""
    sys.stdin.buffer.read()
    end = time.monotonic() + 60  # the last processes may take a moment to die
    while time.monotonic() < end:
        gone = groups.remove(layout.cgroup)
        if gone and not keep:
            shutil.rmtree(layout.state, ignore_errors=True)
            gone = not layout.state.exists()
        if gone:
            return 0
        time.sleep(0.1)
    print(f"cluster: {layout.state} and its control groups cannot be removed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(Layout(Path(sys.argv[1])), keep="--keep" in sys.argv))
