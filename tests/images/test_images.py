"""The project's own images: their contents, and `make images`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tarfile
import urllib.request
from pathlib import Path
from typing import IO, Any

import pytest
from cluster.layout import program, search_path
from transforms_on_cluster import ROOT

from cluster import images


def configuration(archive: Path) -> dict[str, Any]:
    """Return an image's run configuration from its archive, with the names of all files in its layers."""
    with tarfile.open(archive) as opened:

        def blob(digest: str) -> IO[bytes]:
            found = opened.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert found is not None
            return found

        index = opened.extractfile("index.json")
        assert index is not None
        manifest = json.load(blob(json.load(index)["manifests"][0]["digest"]))
        found: dict[str, Any] = json.load(blob(manifest["config"]["digest"]))["config"]
        found["files"] = set()
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer["digest"])) as content:
                found["files"] |= {name.removeprefix("./") for name in content.getnames()}
    return found


@pytest.mark.parametrize("part", ["converter", "operator"])
def test_the_projects_images_are_restricted_and_have_no_tools_to_build_with(part: str) -> None:
    (archive,) = (Path(p) for p in os.environ["RESHARD_IMAGES"].split(os.pathsep) if f"reshard-{part}-" in p)
    found = configuration(archive)
    assert found["User"] == "65532:65532"
    assert found["Labels"]["org.opencontainers.image.title"] == f"reshard-{part}"
    labels = {f"org.opencontainers.image.{name}" for name in ("created", "licenses", "revision", "source", "version")}
    assert labels <= found["Labels"].keys()
    assert not {f"opt/reshard/bin/{tool}" for tool in ("pip", "pip3")} & found["files"]
    assert not {f"usr/bin/{tool}" for tool in ("gcc", "cc", "make", "git", "curl")} & found["files"]
    assert any(name.endswith("/reshard/errors.py") for name in found["files"])
    assert archive.stat().st_size < 130e6


def test_make_images_pushes_both_to_a_registry(tmp_path: Path) -> None:
    storage = tmp_path / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n')
    own = images.network_settings(tmp_path)
    options = ["--isolation", "chroot", "--build-arg", f"BASE_IMAGE=oci-archive:{images.base()}", *own]
    environment = {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(storage),
        "BUILD_OPTIONS": " ".join(options),
        "PUSH_OPTIONS": "--tls-verify=false",
        "PATH": search_path(),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([program("registry"), "--port", str(port)], stderr=subprocess.DEVNULL) as registry:
        try:
            places = [f"REGISTRY=127.0.0.1:{port}/team", "PLATFORMS=linux/amd64", "ENGINE=buildah", "TAG=9.9"]
            made = subprocess.run(
                [program("unshare"), "--mount", program("make"), "images", *places],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
            for part in ("converter", "operator"):
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{port}/v2/team/reshard-{part}/manifests/9.9", timeout=10
                ) as answer:
                    found = json.load(answer)
                assert [m["platform"]["architecture"] for m in found["manifests"]] == ["amd64"]
        finally:
            registry.kill()
