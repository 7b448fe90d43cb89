from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kubernetes import client
from kubernetes_objects import pod_spec, wait_for

from cluster import images

if TYPE_CHECKING:
    from pathlib import Path

NAME = "localhost/reshard-example:tests"
# As the project's own: parts of several stages, and a virtual environment.
DOCKERFILE = """
ARG BASE_IMAGE=none
FROM ${BASE_IMAGE} AS build
RUN python3 -m venv --without-pip /opt/venv
COPY said.txt /opt/venv/said.txt
FROM ${BASE_IMAGE}
COPY --from=build /opt/venv /opt/venv
USER 65532
ENTRYPOINT ["/opt/venv/bin/python", "-c", "import sys; print(sys.prefix, open('/opt/venv/said.txt').read())"]
"""


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A context, and a cache of images that has the base image only."""
    cache = tmp_path / "cache/images"
    cache.mkdir(parents=True)
    (cache / images.base().name).symlink_to(images.base())
    monkeypatch.setenv("RESHARD_CACHE", str(cache.parent))
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "said.txt").write_text("hello")
    return folder


def test_a_dockerfile_becomes_an_image_that_pods_run(context: Path, api: client.ApiClient, namespace: str) -> None:
    images.load(images.build(context / "Dockerfile", context, NAME))
    pod = pod_spec(NAME, [])
    del pod["containers"][0]["command"]
    core = client.CoreV1Api(api)

    core.create_namespaced_pod(namespace, {"metadata": {"name": "says"}, "spec": pod})

    wait_for(lambda: core.read_namespaced_pod("says", namespace).status.phase in {"Succeeded", "Failed"})
    assert "/opt/venv hello" in core.read_namespaced_pod_log("says", namespace)


def test_an_image_is_rebuilt_only_when_its_context_changes(context: Path) -> None:
    first = images.build(context / "Dockerfile", context, NAME)
    made = first.stat().st_ino

    assert images.build(context / "Dockerfile", context, NAME).stat().st_ino == made
    (context / "said.txt").write_text("goodbye")
    assert images.build(context / "Dockerfile", context, NAME) != first


def test_a_failed_build_reports_the_reason(context: Path) -> None:
    (context / "Dockerfile").write_text("ARG BASE_IMAGE=none\nFROM ${BASE_IMAGE}\nRUN echo wrong >&2; exit 9\n")

    with pytest.raises(images.ClusterError, match=r"(?s)exit status 9|wrong"):
        images.build(context / "Dockerfile", context, NAME)
    assert not list(context.parent.glob("cache/images/reshard-example-*.tar"))
