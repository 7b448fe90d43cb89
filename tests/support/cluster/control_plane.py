"""Commands of the control plane's programs."""

import json

from cluster.certificates import AUTHORITY, KUBELET_CLIENT, SERVER, SERVICE_ACCOUNTS
from cluster.layout import ETCD, NODE_ADDRESS, SERVICES, Layout, program

# With the default of 20 requests a second, tests would mostly wait for the controllers.
_QUICK = ("--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=1000")


def etcd(layout: Layout) -> list[str]:
    """Return the command of etcd. Its data need not survive a power failure."""
    return [
        program("etcd"),
        f"--data-dir={layout.data('etcd')}",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--logger=zap",
        "--unsafe-no-fsync",
    ]


def apiserver(layout: Layout) -> list[str]:
    """Return the command of the API server, with the authorization and admission of a real cluster."""
    keys = layout.certificates
    return [
        program("kube-apiserver"),
        f"--etcd-servers={ETCD}",
        f"--advertise-address={NODE_ADDRESS}",
        f"--service-cluster-ip-range={SERVICES}",
        f"--tls-cert-file={keys / SERVER}.crt",
        f"--tls-private-key-file={keys / SERVER}.key",
        f"--client-ca-file={keys / AUTHORITY}.crt",
        f"--token-auth-file={layout.configuration / 'tokens.csv'}",
        f"--service-account-key-file={keys / SERVICE_ACCOUNTS}.crt",
        f"--service-account-signing-key-file={keys / SERVICE_ACCOUNTS}.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--authorization-mode=Node,RBAC",
        # OpenShift enables the second one.
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        f"--kubelet-client-certificate={keys / KUBELET_CLIENT}.crt",
        f"--kubelet-client-key={keys / KUBELET_CLIENT}.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        # Debian's etcd cannot report the progress of a watch, so watches that begin with a list would fail; kwok's do.
        "--feature-gates=WatchList=false",
        f"--audit-policy-file={layout.configuration / 'audit.json'}",
        f"--audit-log-path={layout.audit_log}",
    ]


# Requests of operators, which tests check. Reads of the chart's operator, and requests of components, would make it long.
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:reshard-system"], "verbs": ["get", "list", "watch"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}


def write_configuration(layout: Layout) -> None:
    """Write the files that the programs above are started with."""
    (layout.configuration / "audit.json").write_text(json.dumps(_AUDIT))
    layout.volume_plugins.mkdir()


def controller_manager(layout: Layout) -> list[str]:
    """Return the command of the controllers: Jobs, claims, service accounts, garbage collection."""
    return [
        program("kube-controller-manager"),
        f"--kubeconfig={layout.kubeconfig}",
        f"--root-ca-file={layout.certificates / AUTHORITY}.crt",
        f"--service-account-private-key-file={layout.certificates / SERVICE_ACCOUNTS}.key",
        f"--flex-volume-plugin-dir={layout.volume_plugins}",
        *_QUICK,
    ]


def scheduler(layout: Layout) -> list[str]:
    """Return the command of the scheduler."""
    return [program("kube-scheduler"), f"--kubeconfig={layout.kubeconfig}", *_QUICK]
