"""The test cluster's command line.

python -m cluster run [--control-plane-only] -- COMMAND...   run a command in a cluster, and end with its exit code
python -m cluster up [--control-plane-only]                  keep a cluster up until interrupted
python -m cluster images [DOCKERFILE CONTEXT NAME]...        make the images, and print their archives
"""

import argparse
import os
import sys
from pathlib import Path

from cluster import images, namespace
from cluster.layout import ClusterError


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description="A Kubernetes cluster for tests.")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, text in (("run", "run a command in a cluster"), ("up", "keep a cluster up until interrupted")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--control-plane-only", action="store_true", help="the API and its controllers, no node")
        action.add_argument("--keep", action="store_true", help="keep logs and data")
    actions.choices["run"].add_argument("command", nargs="+", help="the command, after --")
    action = actions.add_parser("images", help="make the images, and print their archives as a line for the environment")
    action.add_argument("recipe", nargs="*", help="DOCKERFILE CONTEXT NAME, for each image in addition to the standard ones")
    options = parser.parse_args()
    try:
        return _images(options.recipe) if options.action == "images" else _cluster(options)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _cluster(options: argparse.Namespace) -> int:
    level = ["--control-plane-only"] if options.control_plane_only else []
    return namespace.run(getattr(options, "command", []), level, keep=options.keep)


def _images(recipe: list[str]) -> int:
    archives = [images.base(), images.sandbox()]
    for dockerfile, context, name in zip(*[iter(recipe)] * 3, strict=True):
        archives.append(images.build(Path(dockerfile), Path(context), name))
    print(f"RESHARD_IMAGES={os.pathsep.join(map(str, archives))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
