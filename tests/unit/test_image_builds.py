"""The commands of `make images`, recorded by a replacement of docker. The tier `images` builds real images."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from reshard import __version__

ROOT = Path(__file__).parents[2]
_DOCKER = """#!/bin/sh
case "$*" in
    "buildx version") ;;
    "buildx inspect") echo "Driver:  $DRIVER" ;;
    *) echo "$*" ;;
esac
"""


@pytest.mark.parametrize(("driver", "attests"), [("docker", False), ("docker-container", True), ("kubernetes", True)])
def test_attestations_are_requested_from_builders_that_support_them(driver: str, attests: bool, tmp_path: Path) -> None:
    (tmp_path / "docker").write_text(_DOCKER)
    (tmp_path / "docker").chmod(0o755)
    built = subprocess.run(
        ["/bin/sh", ROOT / "scripts" / "images.sh", "registry.example/team", "linux/amd64", __version__],
        env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "DRIVER": driver},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    converter, operator = built.stdout.splitlines()
    for command, part in ((converter, "converter"), (operator, "operator")):
        assert command.startswith("buildx build ")
        assert (" --sbom=true --provenance=mode=max " in command) is attests
        assert f" --tag registry.example/team/reshard-{part}:{__version__} --push " in command
        assert f" --build-arg VERSION={__version__} --build-arg REVISION=" in command
        assert " --build-arg CREATED=" in command
    assert ("no SBOM" in built.stderr) is not attests


@pytest.mark.parametrize("part", ["converter_image", "operator"])
def test_every_argument_of_a_build_is_used(part: str) -> None:
    dockerfile = (ROOT / part / "Dockerfile").read_text()
    for argument, label in (("VERSION", "version"), ("REVISION", "revision"), ("CREATED", "created")):
        assert f"\nARG {argument}=" in dockerfile
        assert f'org.opencontainers.image.{label}="${{{argument}}}"' in dockerfile
    assert "RESHARD_BUILD_COMMIT=${REVISION} RESHARD_BUILD_DATE=${CREATED}" in dockerfile
