"""Credentials for the cluster's API, and requests with them."""

import json
import secrets
import ssl
import urllib.request
from pathlib import Path

from cluster.certificates import AUTHORITY
from cluster.layout import SERVER, Layout


def write_configuration(layout: Layout) -> None:
    """Write the administrator's token and kubeconfig file."""
    layout.configuration.mkdir(mode=0o700)
    token = secrets.token_urlsafe()
    layout.token.write_text(token)
    (layout.configuration / "tokens.csv").write_text(f"{token},administrator,administrator,system:masters\n")
    write_kubeconfig(layout, layout.kubeconfig, {"token": token})


def write_kubeconfig(layout: Layout, path: Path, user: dict[str, str]) -> None:
    """Write a kubeconfig file for a user with these credentials."""
    name = "tests"
    cluster = {"server": SERVER, "certificate-authority": f"{layout.certificates / AUTHORITY}.crt"}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    path.write_text(json.dumps(content))


def get(layout: Layout, path: str) -> str:
    """Return the API server's response for a path; raise OSError if it has none or does not answer."""
    authority = ssl.create_default_context(cafile=f"{layout.certificates / AUTHORITY}.crt")
    request = urllib.request.Request(SERVER + path, headers={"Authorization": f"Bearer {layout.token.read_text()}"})
    with urllib.request.urlopen(request, timeout=2, context=authority) as answer:
        return str(answer.read(), "utf-8")


def healthy(url: str) -> bool:
    """Return whether a component's health endpoint reports that it is healthy."""
    with urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
