"""The cluster's certificates: an authority, the server's, and those of clients that need one."""

import subprocess
from pathlib import Path

from cluster.layout import API_SERVICE, NODE_ADDRESS, program

AUTHORITY = "authority"
SERVER = "server"
KUBELET_CLIENT = "kubelet-client"
SERVICE_ACCOUNTS = "service-accounts"

# Python 3.13 refuses an authority without key usage, and a certificate that does not name its authority's key.
_OPENSSL = f"""
[req]
distinguished_name = subject
[subject]
[{AUTHORITY}]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[{SERVER}]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {",".join(f"IP:{address}" for address in ("127.0.0.1", API_SERVICE, NODE_ADDRESS))},\
{",".join(f"DNS:{name}" for name in ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"))}
"""


def make(folder: Path) -> None:
    """Make those of the control plane, as NAME.key and NAME.crt."""
    folder.mkdir(mode=0o700)
    (folder / "openssl.cnf").write_text(_OPENSSL)
    _make(folder, AUTHORITY, "/CN=reshard-tests", AUTHORITY)
    _make(folder, SERVICE_ACCOUNTS, "/CN=service-accounts", AUTHORITY)  # only its key is used
    _make(folder, SERVER, "/CN=kube-apiserver", SERVER, *_signed(folder))
    _make(folder, KUBELET_CLIENT, "/O=system:masters/CN=kube-apiserver-kubelet-client", "leaf", *_signed(folder))


def make_for_node(folder: Path, node: str) -> None:
    """Make the certificate of a node's kubelet, as NODE.key and NODE.crt."""
    _make(folder, node, f"/O=system:nodes/CN=system:node:{node}", "leaf", *_signed(folder))


def _signed(folder: Path) -> tuple[str, ...]:
    return ("-CA", str(folder / f"{AUTHORITY}.crt"), "-CAkey", str(folder / f"{AUTHORITY}.key"))


def _make(folder: Path, name: str, subject: str, extensions: str, *signed: str) -> None:
    key, certificate = str(folder / f"{name}.key"), str(folder / f"{name}.crt")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")  # far quicker to make than RSA's
    files = ("-config", str(folder / "openssl.cnf"), "-extensions", extensions, "-keyout", key, "-out", certificate)
    command = [program("openssl"), "req", "-x509", *curve, "-days", "30", "-subj", subject, *files, *signed]
    subprocess.run(command, check=True, capture_output=True)
