"""Resources that try to reach what is not theirs: refused by the API server, or by the pod that would act on them."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from cluster.layout import program
from kubernetes.client.exceptions import ApiException
from kubernetes_objects import wait_for
from operator_process import account, operator_process
from transforms_on_cluster import GROUP, PLURAL, VERSION, with_field

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.layout import Layout
    from kubernetes import client
    from transforms_on_cluster import Transforms

CLAIM = {"persistentVolumeClaim": {"claimName": "c", "path": "a"}}
SPEC: dict[str, Any] = {"source": {"storage": CLAIM}, "target": {"storage": {"persistentVolumeClaim": {"claimName": "d"}}}}


def nested(levels: int) -> Any:
    return json.loads('{"a":' * levels + "1" + "}" * levels)


PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
TERM = {"topologyKey": "zone"}
LAYOUT = {"apiVersion": "reshard.dev/layout-v1", "mesh": "dp=2", "rules": [{"match": "*"}]}
NESTED: dict[str, Any] = {
    "alias": {"aliases": {"a": nested(100)}},
    "list of aliases": {"aliases": {"a": [nested(100)]}},
    "pattern": {"rules": [{"match": nested(100)}]},
    "list of patterns": {"rules": [{"match": [nested(100)]}]},
    "axes": {"rules": [{"match": "*", "shard": {"0": nested(100)}}]},
    "order": {"rules": [{"match": "*", "order": [[["dp"]]]}]},
    "stage": {"rules": [{"match": "*", "stage": nested(100)}]},
    "zero": {"rules": [{"match": "*", "zero": nested(100)}]},
    "zero in a list": {"rules": [{"match": "*", "zero": [nested(100)]}]},
    "field of zero": {"rules": [{"match": "*", "zero": {"axes": "dp", "other": nested(100)}}]},
    "axes of zero": {"rules": [{"match": "*", "zero": {"axes": nested(100)}}]},
    "axes of zero of all rules": {"zero": {"axes": nested(100)}},
    "offset": {"pipeline": {"layer": "l.*", "layers": 1, "offset": [nested(100)]}},
    "counts": {"pipeline": {"layer": "l.*", "counts": [[nested(100)]]}},
    "experts": {"derive": {"sourceMesh": "dp=2", "experts": nested(100)}},
    "replicated axes": {"derive": {"sourceMesh": "dp=2", "replicated": nested(100)}},
    "unsharded": {"derive": {"sourceMesh": "dp=2", "unsharded": nested(100)}},
}
REFUSED = {
    "path with ..": ("source.storage.persistentVolumeClaim.path", "../../etc"),
    "path with .. at the end": ("source.storage.persistentVolumeClaim.path", "a/.."),
    "absolute path": ("target.storage.persistentVolumeClaim.path", "/etc"),
    "path with a line break and ..": ("source.storage.persistentVolumeClaim.path", "a\n/../b"),
    "path that is a URL": ("source.storage.persistentVolumeClaim.path", "file:///etc"),
    "strategy outside": ("source.strategy", {"path": "../s.ckpt"}),
    "prefix outside": ("source.storage", {"s3": {"bucket": "abc", "prefix": "../x"}}),
    "file prefix that leads out": ("target.filePrefix", "../../x"),
    "file prefix with a line break": ("target.filePrefix", "a\nb"),
    "key that leads out": ("target.encryption", {"secretKeyRef": {"name": "k", "key": "../token"}}),
    "key ..": ("target.encryption", {"secretKeyRef": {"name": "k", "key": ".."}}),
    "credentials in an endpoint": ("source.storage", {"s3": {"bucket": "abc", "endpoint": "http://a:b@169.254.169.254"}}),
    "endpoint with a line break": ("source.storage", {"s3": {"bucket": "abc", "endpoint": "http://a\nHost: b"}}),
    "file as endpoint": ("source.storage", {"s3": {"bucket": "abc", "endpoint": "file:///etc"}}),
    "claim outside": ("source.storage.persistentVolumeClaim.claimName", "../other/claim"),
    "name with an empty label": ("source.storage.persistentVolumeClaim.claimName", "a..b"),
    "name with a label that ends with a hyphen": ("source.storage.persistentVolumeClaim.claimName", "a-.b"),
    "Secret of another namespace": ("target.encryption", {"secretKeyRef": {"name": "kube-system/secret", "key": "k"}}),
    "Secret of another namespace in a variable": (
        "execution.podTemplate.env",
        [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "kube-system/secret", "key": "k"}}}],
    ),
    "credentials of another namespace": (
        "source.storage",
        {"s3": {"bucket": "abc", "credentialsSecretRef": {"name": "../kube-system/secret"}}},
    ),
    "huge list of rules": ("parameters.rename", [{"from": str(number), "to": "x"} for number in range(1025)]),
    "huge pattern": ("parameters.include", ["*" * 1025]),
    "huge list of values": (
        "execution.podTemplate.affinity",
        {"podAffinity": {PREFERRED: [{"weight": 1, "podAffinityTerm": TERM}] * 65}},
    ),
    "huge path of a field": ("execution.podTemplate.env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "a" * 1025}}}]),
    **{f"nested {name}": ("target.layout", LAYOUT | fields) for name, fields in NESTED.items()},
}


UNKNOWN = {
    "namespace of a claim": ("source.storage", {"persistentVolumeClaim": {"claimName": "c", "namespace": "kube-system"}}),
    "namespace of a Secret": (
        "target.encryption",
        {"secretKeyRef": {"name": "k", "key": "a", "namespace": "kube-system"}},
    ),
    "command": ("execution.podTemplate.command", ["sh"]),
    "arguments": ("execution.podTemplate.args", ["--debug"]),
    "volumes": ("execution.podTemplate.volumes", [{"name": "v", "hostPath": {"path": "/"}}]),
    "host network": ("execution.podTemplate.hostNetwork", True),
    "privileges": ("execution.podTemplate.securityContext", {"privileged": True}),
    "nested affinity": ("execution.podTemplate.affinity", {"nodeAffinity": nested(100)}),
    "nested source of a variable": ("execution.podTemplate.env", [{"name": "A", "valueFrom": nested(100)}]),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_the_schema_refuses(transforms: Transforms, attack: str) -> None:
    path, value = REFUSED[attack]
    with pytest.raises(ApiException) as refused:
        transforms.create("attack", with_field(SPEC, path, value), unknown="Ignore")
    assert refused.value.status == 422, refused.value.body


@pytest.mark.parametrize("attack", UNKNOWN)
def test_the_schema_drops_unknown_fields(transforms: Transforms, attack: str) -> None:
    path, value = UNKNOWN[attack]
    transforms.create("attack", with_field(SPEC, path, value), unknown="Ignore")
    stored = json.dumps(transforms.custom.get_namespaced_custom_object(*transforms.where, "attack")["spec"])
    assert not re.search('"(namespace|command|args|hostPath|hostNetwork|privileged|a)": ', stored)


def test_one_resource_cannot_stop_the_operator_for_others(
    transforms: Transforms, api: client.ApiClient, layout: Layout, namespace: str, tmp_path: Path
) -> None:
    """An object of more than a thousand levels could not be parsed by any list or watch of the operator."""
    deep = with_field(SPEC, "execution.podTemplate.affinity", {"nodeAffinity": "DEEP"})
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "CheckpointTransform", "metadata": {"name": "deep"}, "spec": deep}
    text = json.dumps(body).replace('"DEEP"', '{"a":' * 3000 + "1" + "}" * 3000)
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"
    with operator_process(account(api, layout, namespace, tmp_path), tmp_path):
        subprocess.run(
            [program("kubectl"), "create", "--raw", path, "-f", "-"], input=text, capture_output=True, text=True, check=True
        )
        transforms.create("usual", SPEC)
        wait_for(
            lambda: [job for job in transforms.batch.list_namespaced_job(namespace).items if job.metadata.name[:5] == "usual"]
        )
