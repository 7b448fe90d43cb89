"""`python -m cluster.inside [--control-plane-only] STATE [-- COMMAND...]`: the first process of the namespaces."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from cluster import first_process, isolation, start
from cluster.layout import ClusterError, Layout, search_path


def main() -> int:
    """Start the cluster and run the command in it, or say how to enter it and stay until interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("state", type=Path)
    parser.add_argument("--control-plane-only", action="store_true")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    layout = Layout(options.state)
    begin = time.monotonic()
    try:
        isolation.prepare(layout)
        start.start(layout, with_node=not options.control_plane_only)
    except KeyboardInterrupt:
        return 130
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"cluster: {shlex.join(error.cmd)} ended with {error.returncode}\n{error.stderr or ''}", file=sys.stderr)
        return 1
    print(f"cluster: ready after {time.monotonic() - begin:.1f} s", file=sys.stderr)
    environment = {
        "RESHARD_CLUSTER": str(layout.state),
        "KUBECONFIG": str(layout.kubeconfig),
        "KUBECACHEDIR": str(layout.data("kubectl")),
        "PATH": search_path(),
    }
    _write_entrance(layout, environment)
    if not options.command:
        _stay(layout)
    return _run(options.command, environment)


def _run(command: list[str], environment: dict[str, str]) -> int:
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        signal.signal(signal.SIGINT, lambda *_: None)  # the command's own matter
        code = process.wait()
    return 128 - code if code < 0 else code


def _stay(layout: Layout) -> NoReturn:
    print(f"cluster: enter with: sh {layout.entrance} [COMMAND...]", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends it
    while True:
        signal.pause()


def _write_entrance(layout: Layout, environment: dict[str, str]) -> None:
    variables = shlex.join(f"{name}={value}" for name, value in environment.items())
    spaces = f'nsenter --all --wd="$PWD" --target {layout.process.read_text()}'
    layout.entrance.write_text(f'[ $# -gt 0 ] || set -- "${{SHELL:-sh}}"\nexec {spaces} env {variables} "$@"\n')


if __name__ == "__main__":
    sys.exit(first_process.run(main))
