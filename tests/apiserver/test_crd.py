"""The resource's schema, as a real API server reads it."""

from __future__ import annotations

import copy
import json
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import yaml
from cluster.layout import program
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes_objects import wait_for
from transforms_on_cluster import GROUP, PLURAL, ROOT, VERSION, with_field

from reshard.spec.resource import TransformSpec, parse_spec

if TYPE_CHECKING:
    from collections.abc import Callable

CRD = ROOT / "crds" / "checkpointtransforms.yaml"
STORAGE = {"persistentVolumeClaim": {"claimName": "c", "path": "a/b"}}
SPEC: dict[str, Any] = {"source": {"storage": STORAGE}, "target": {"storage": STORAGE | {}}}


class Resources:
    """Creates and changes resources in one namespace."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._custom, self._where = client.CustomObjectsApi(api), (GROUP, VERSION, namespace, PLURAL)

    def create(self, spec: dict[str, Any], name: str = "x") -> dict[str, Any]:
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "CheckpointTransform", "metadata": {"name": name}, "spec": spec}
        found: dict[str, Any] = self._custom.create_namespaced_custom_object(*self._where, body, field_validation="Strict")
        return found

    def change(self, spec: dict[str, Any], name: str = "x") -> dict[str, Any]:
        found: dict[str, Any] = self._custom.patch_namespaced_custom_object(*self._where, name, {"spec": spec})
        return found

    def refusal(self, act: Callable[[dict[str, Any]], Any], spec: dict[str, Any]) -> str:
        with pytest.raises(ApiException) as refused:
            act(spec)
        return str(json.loads(refused.value.body)["message"])


@pytest.fixture
def resources(api: client.ApiClient, namespace: str, crd: None) -> Resources:  # noqa: ARG001 - it has to be there
    return Resources(api, namespace)


def test_a_minimal_resource_gets_the_librarys_defaults(resources: Resources) -> None:
    made = resources.create(SPEC)
    assert made["status"] == {"observedGeneration": -1}
    assert parse_spec(made["spec"], "x") == parse_spec(SPEC, "x")


FIELDS_OF_RANK_FILES = {
    "format": "Ckpt",
    "filePrefix": "p_",
    "copyMode": "Server",
    "linkReplicas": "Clone",
    "crc": True,
    "onlyRanks": "0",
}


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_accepted(resources: Resources, example: Any) -> None:
    resources.create(yaml.safe_load(example.read_text())["spec"])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("source.storage", {}, "exactly one of persistentVolumeClaim and s3"),
        ("source.storage.persistentVolumeClaim.path", "../x", "path must be relative to the claim"),
        ("source.storage.persistentVolumeClaim.path", "/x", "path must be relative to the claim"),
        ("target.storage.persistentVolumeClaim.path", "a//b", "path must be relative to the claim"),
        ("target.storage.persistentVolumeClaim.path", "a/", "path must be relative to the claim"),
        ("source.strategy", {"path": "a/../b"}, "path must be relative to the claim"),
        ("source.strategy", {"path": "b", "storage": {}}, "exactly one of persistentVolumeClaim and s3"),
        ("source.strategy", {}, "exactly one of path and configMapKeyRef"),
        (
            "source.strategy",
            {"path": "b", "configMapKeyRef": {"name": "s", "key": "k"}},
            "exactly one of path and configMapKeyRef",
        ),
        ("source.strategy", {"configMapKeyRef": {"name": "s", "key": "k"}, "storage": STORAGE}, "storage requires path"),
        ("source.strategy", {"configMapKeyRef": {"name": "s", "key": "a/b"}}, "should match"),
        ("source.storage.s3", {"bucket": "b"}, "exactly one of persistentVolumeClaim and s3"),
        ("source.storage", {"s3": {"bucket": "a/b"}}, "should match"),
        ("source.storage", {"s3": {"bucket": "abc", "prefix": "/x"}}, "prefix must not contain"),
        ("source.storage", {"s3": {"bucket": "abc", "endpoint": "https://key:secret@host"}}, "should match"),
        ("source.storage", {"s3": {"bucket": "abc", "endpoint": "http://host:65536"}}, "should match"),
        ("source.storage", {"s3": {"bucket": "abc", "endpoint": "http://host:name"}}, "should match"),
        ("source.storage", {"s3": {"bucket": "abc", "endpoint": "http://[::1"}}, "should match"),
        ("target.encryption", {"secretKeyRef": {"name": "k"}}, "secretKeyRef.key: Required value"),
        ("source.decryption", {"secretKeyRef": {"name": "k", "key": "a/b"}}, "should match"),
        ("source.decryption", {"secretKeyRef": {"name": "k", "key": "a"}, "mode": "ROT13"}, "supported values"),
        ("target.copyMode", "Magic", "supported values"),
        ("target.linkReplicas", "Magic", "supported values"),
        ("execution.io", "Magic", "supported values"),
        ("execution.mode", "Magic", "supported values"),
        ("target.format", "HuggingFac", "should match '^(Source|Ckpt|Safetensors|HuggingFace|TorchDcp|"),
        ("parameters.rename", [{"to": "b"}], "exactly one of from and pattern"),
        ("parameters.rename", [{"from": "a", "pattern": "a", "to": "b"}], "exactly one of from and pattern"),
        ("parameters.rename", [{"from": "a"}], "Required value"),
        ("parameters.rename", [{"from": "a", "to": ""}], "at least 1 chars long"),
        ("target.output", "unified", "supported values"),
        ("target.maxFileSizeBytes", 1 << 20, "maxFileSizeBytes requires the output Unified"),
        (
            "target",
            {"storage": STORAGE, "output": "Unified", "maxFileSizeBytes": 1023},
            "greater than or equal to 1024",
        ),
        ("target", {"storage": STORAGE, "output": "Unified", "strategy": {"path": "a"}}, "accepts no strategy"),
        ("target", {"storage": STORAGE, "output": "Unified", "format": "Ckpt"}, "unified checkpoints are always safetensors"),
        ("target.onlyRanks", "0,,2", "should match"),
        ("target.onlyRanks", 2, "must be of type string"),
        ("target.ranks", "0-3", "must be of type integer"),
        ("target.ranks", 0, "should be greater than or equal to 1"),
        ("target.ranks", 65_537, "should be less than or equal to 65536"),
        *(
            ("target", SPEC["target"] | target, "ranks requires the output PerRank")
            for target in (
                {"ranks": 2, "output": "Unified"},
                {"ranks": 2, "format": "HuggingFace"},
                {"ranks": 2, "strategy": {"path": "s"}},
            )
        ),
        ("target", SPEC["target"] | {"format": "HuggingFace", "strategy": {"path": "a"}}, "accepts no strategy"),
        ("target", SPEC["target"] | {"format": "HuggingFace", "output": "Stage"}, "accepts no output other than Unified"),
        *(
            ("target", SPEC["target"] | {"filePrefix": "p_"} | target, "have fixed file names; omit filePrefix")
            for target in ({"output": "Unified"}, {"output": "Same"}, {"format": "HuggingFace"})
        ),
        ("target.copySettings", True, "copySettings requires the format HuggingFace"),
        *(
            ("target", SPEC["target"] | {"writeStrategy": True} | target, "writeStrategy requires the output PerRank")
            for target in ({"output": "Unified"}, {"output": "Index"}, {"format": "HuggingFace"}, {"format": "TorchDcp"})
        ),
        *(
            ("target", SPEC["target"] | {"format": "TorchDcp", field: value}, "Megatron require the output PerRank")
            for field, value in {"output": "Index", "crc": True, "filePrefix": "p_"}.items()
        ),
        ("target", SPEC["target"] | {"format": "Megatron", "output": "Unified"}, "Megatron require the output PerRank"),
        ("source.format", "TorchDcp", "should match"),
        ("parameters.include", [""], "at least 1 chars long"),
        ("parameters.exclude", "optim.*", "must be of type array"),
        ("parameters.cast", [{"pattern": "*", "to": "bfloat16"}], "supported values"),
        ("parameters.cast", [{"pattern": "*", "to": "Int8"}], "supported values"),
        ("parameters.cast", [{"to": "BFloat16"}], "pattern: Required value"),
        ("parameters.pad", [{"name": "w", "dimension": 0}], "length: Required value"),
        ("parameters.pad", [{"name": "w", "dimension": -1, "length": 8}], "should be greater than or equal to 0"),
        ("parameters.pad", [{"name": "w", "dimension": 0, "length": 0}], "should be greater than or equal to 1"),
        *(
            ("target", SPEC["target"] | {"output": "Index", field: value}, "output Index writes no rank files")
            for field, value in FIELDS_OF_RANK_FILES.items()
        ),
        ("target.filePrefix", "a/b", "should match"),
        ("verification", "full", "supported values"),
        ("execution.parallelism", 0, "should be greater than or equal to 1"),
        ("execution.ranksPerPod", 0, "should be greater than or equal to 1"),
        ("execution.ranksPerPod", 1.5, "must be of type"),
        ("execution.ranksPerPod", "2", "should match"),
        ("execution.ranksPerPod", "auto", "should match"),
        ("execution.attempt", 0, "should be greater than or equal to 1"),
        ("execution.podTemplate.annotations", {"a": "é" * 4096} | {str(i): "😀" * 4096 for i in range(15)}, "at most 240 KiB"),
        ("execution.podTemplate.env", [{"name": f"A{i}", "value": "😀" * 4096} for i in range(33)], "at most 512 KiB"),
        ("execution.podTemplate.securityContext.runAsUser", 1 << 31, "should be less than or equal to 2147483647"),
        ("sauce", 1, "unknown field"),
        ("source.files.step", -1, "should be greater than or equal to 0"),
    ],
)
def test_invalid_requests_are_refused(resources: Resources, path: str, value: Any, said: str) -> None:
    assert said in resources.refusal(resources.create, with_field(SPEC, path, value))


@pytest.mark.parametrize(
    "target",
    [
        {"format": "HuggingFace", "maxFileSizeBytes": 1 << 20, "copySettings": True},
        {"format": "HuggingFace", "output": "Unified", "onlyRanks": "0"},
        *({"format": name, "ranks": 6, "onlyRanks": "0-2,5"} for name in ("TorchDcp", "TorchSafetensors", "Megatron")),
        {"format": "TorchDcp", "strategy": {"path": "s"}},
        {"format": "Safetensors", "ranks": 2, "crc": True, "filePrefix": "p_"},
        {"format": "toy-format", "output": "Unified", "maxFileSizeBytes": 1 << 20, "copySettings": True},
        {"output": "Index", "ranks": 2},
    ],
    ids=str,
)
def test_fields_of_formats_that_go_together(resources: Resources, target: dict[str, Any]) -> None:
    spec = {"source": SPEC["source"] | {"format": "torch-dcp"}, "target": SPEC["target"] | target}
    parameters = {"include": ["model.*"], "exclude": ["*.bias"], "cast": [{"pattern": "*", "to": "Float16"}]}
    made = resources.create(spec | {"parameters": parameters})
    assert parse_spec(made["spec"], "x") == parse_spec(spec | {"parameters": parameters}, "x")


@pytest.mark.parametrize("side", ["source", "target"])
def test_output_same_takes_no_strategy(resources: Resources, side: str) -> None:
    spec = with_field(SPEC, "target.output", "Same")
    spec[side]["strategy"] = {"path": "s"}
    assert "the output Same accepts no strategy" in resources.refusal(resources.create, spec)


KEY = {"secretKeyRef": {"name": "k", "key": "a"}}


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ({}, {"encryption": KEY, "format": "Safetensors"}, "safetensors files cannot be encrypted"),
        ({}, {"encryption": KEY, "copyMode": "Server"}, "server-side copies cannot encrypt"),
        ({}, {"encryption": KEY, "output": "Stage"}, "stage files cannot be encrypted"),
        ({}, {"encryption": KEY, "output": "Index"}, "an index contains nothing"),
        ({"decryption": KEY}, {"copyMode": "Server"}, "server-side copies cannot decrypt"),
    ],
)
def test_fields_that_contradict_encryption_are_refused(
    resources: Resources, source: dict[str, Any], target: dict[str, Any], said: str
) -> None:
    spec = {"source": SPEC["source"] | source, "target": SPEC["target"] | target}
    assert said in resources.refusal(resources.create, spec)


LAYOUT = {
    "apiVersion": "reshard.dev/layout-v1",
    "mesh": "pp=2,dp=2,tp=4",
    "aliases": {"vocab": ["dp", "tp"]},
    "rules": [
        {"match": ["*.wq", "*.wk"], "shard": {"0": "tp"}, "order": ["tp", "dp"], "stage": 0},
        {"match": "norm*", "shard": {"0": ["dp", "tp"]}, "stage": "last", "zero": {"axes": "dp"}},
        {"match": "e*", "stage": "all", "zero": {"axes": ["dp", "tp"], "dim": 1}},
        {"match": "f*", "stage": 1, "zero": {"threshold": 1, "size": 2}},
        {"match": "*", "stage": "all", "zero": False},
    ],
    "pipeline": {"layer": "layers.*.", "layers": 4, "offset": [1, -1]},
    "zero": {"threshold": 0},
}
FIXED = {
    "source.layout": LAYOUT,
    "target.layout": LAYOUT,
    "target.scale": "dp*2,tp/2",
    "source.decryption": KEY,
    "target.encryption": KEY,
    "source.strategy": {"path": "s"},
    "source.files.step": 3,
    "source.stages": 2,
    "source.allowSingleRank": True,
    "source.allowEqualSlices": True,
    "source.replicas": "LowestRank",
    "source.files.pattern": "x",
    "source.storage.persistentVolumeClaim.path": "other",
    "target.storage.persistentVolumeClaim.path": "other",
    "target.strategy": {"path": "s"},
    "target.format": "Ckpt",
    "target.filePrefix": "p_",
    "target.output": "Unified",
    "target.onlyRanks": "0",
    "target.ranks": 2,
    "source.format": "torch-dcp",
    "target.crc": True,
    "target.removeRedundancy": True,
    "target.writeStrategy": True,
    "target.copyMode": "Server",
    "target.linkReplicas": "HardLink",
    "target.fileMode": "0600",
    "parameters.sourceOnly": "Keep",
    "parameters.allowMissing": True,
    "parameters.allowInconsistent": ["rng.*"],
    "parameters.include": ["model.*"],
    "parameters.pad": [{"name": "w", "dimension": 0, "length": 8}],
    "parameters.cast": [{"pattern": "*", "to": "BFloat16"}],
    "parameters.exclude": ["optim.*"],
    "parameters.rename": [{"from": "a", "to": "b"}, {"pattern": "a.*", "to": "b.*"}],
    "verification": "Full",
    "overwrite": "Replace",
    "dryRun": True,
    "execution.mode": "SinglePod",
    "execution.ranksPerPod": 2,
    "execution.backoffLimitPerIndex": 3,
    "execution.startupDeadlineSeconds": 5,
    "execution.activeDeadlineSeconds": 5,
    "execution.ttlSecondsAfterFinished": 5,
    "execution.io": "Buffered",
    "execution.podTemplate": {"labels": {"a": "b"}},
}


# Fields of one output or format, and what selects it.
FIXED_OF_ONE = {"target.maxFileSizeBytes": 1 << 20, "target.copySettings": True}
SELECTED_BY = {"target.maxFileSizeBytes": {"output": "Unified"}, "target.copySettings": {"format": "HuggingFace"}}


@pytest.mark.parametrize("path", [*FIXED, *FIXED_OF_ONE])
def test_immutable_fields_cannot_be_added_changed_or_removed(resources: Resources, path: str) -> None:
    changed, before, least = (
        with_field(SPEC, path, (FIXED | FIXED_OF_ONE)[path]),
        with_field(SPEC, path, None),
        copy.deepcopy(SPEC),
    )
    for spec in (changed, before, least):
        spec["target"] |= SELECTED_BY.get(path, {})
    resources.create(least)
    assert "create another CheckpointTransform" in resources.refusal(resources.change, changed)
    resources.create(changed, "y")
    with pytest.raises(ApiException, match="create another CheckpointTransform"):
        resources.change(before, "y")


def test_a_layout_is_stored_as_it_is_and_may_not_change(resources: Resources) -> None:
    """The schema does not know the types of some fields, and an object would lose the order of a mesh."""
    spec = with_field(SPEC, "target.layout", LAYOUT)
    made = resources.create(spec)
    assert parse_spec(made["spec"], "x") == parse_spec(spec, "x")
    for path, value in (("match", ["*.wq"]), ("shard", {"0": "dp"}), ("order", ["dp", "tp"]), ("stage", 1), ("zero", False)):
        changed = copy.deepcopy(LAYOUT)
        changed["rules"][0][path] = value
        assert "create another CheckpointTransform" in resources.refusal(
            resources.change, with_field(SPEC, "target.layout", changed)
        )


@pytest.mark.parametrize(
    ("side", "fields", "said"),
    [
        ("source", {"layout": LAYOUT, "strategy": {"path": "s"}}, "exclude each other"),
        ("target", {"layout": LAYOUT, "strategy": {"path": "s"}}, "exclude each other"),
        ("target", {"layout": LAYOUT, "ranks": 2}, "cannot be combined"),
        ("target", {"layout": LAYOUT, "output": "Unified"}, "accepts no strategy and no layout"),
        ("target", {"layout": LAYOUT, "output": "Same"}, "accepts no strategy and no layout"),
        ("target", {"layout": LAYOUT, "scale": "dp=2"}, "cannot be combined"),
        ("target", {"scale": "dp"}, "should match"),
        ("target", {"layout": LAYOUT | {"mesh": {"dp": 2}}}, "mesh"),
    ],
)
def test_layouts_that_contradict_other_fields_are_refused(
    resources: Resources, side: str, fields: dict[str, Any], said: str
) -> None:
    assert said in resources.refusal(resources.create, SPEC | {side: SPEC[side] | fields})


@pytest.mark.parametrize("changed", [{"region": "x"}, {"credentialsSecretRef": {"name": "others"}}, {"prefix": "other"}])
def test_a_bucket_may_not_change(resources: Resources, changed: dict[str, Any]) -> None:
    bucket = {"bucket": "abc", "credentialsSecretRef": {"name": "keys"}}
    resources.create(SPEC | {"target": {"storage": {"s3": bucket}}})
    assert "create another CheckpointTransform" in resources.refusal(resources.change, {"target": {"storage": {"s3": changed}}})


def test_every_field_is_under_a_rule() -> None:
    """A new field of the spec must be added above, or be a mutable one."""
    may_change = {"suspend", "execution.parallelism", "execution.attempt"}
    fields = set()
    for field in msgspec.structs.fields(TransformSpec):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            fields |= {f"{field.encode_name}.{inner.encode_name}" for inner in msgspec.structs.fields(field.type)}
        else:
            fields.add(field.encode_name)
    covered = {".".join(path.split(".")[:2]) for path in FIXED | FIXED_OF_ONE}
    assert fields == covered | may_change


def test_mutable_fields_can_be_changed(resources: Resources) -> None:
    resources.create(SPEC)
    resources.change({"suspend": True, "execution": {"parallelism": 3, "attempt": 2}})
    assert "may only increase" in resources.refusal(resources.change, {"execution": {"attempt": 1}})


def test_every_field_explains_itself() -> None:
    def walk(schema: dict[str, Any], path: str) -> None:
        for name, inner in schema.get("properties", {}).items():
            where = f"{path}.{name}"
            assert inner.get("description") or where in {".apiVersion", ".kind", ".metadata"}, where
            if name in {"affinity", "valueFrom"}:  # as in the Pod API
                continue
            walk(inner, where)
            walk(inner.get("items", {}), where)

    walk(yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")


def test_the_chart_has_the_same_bytes() -> None:
    assert (ROOT / "helm" / "reshard" / "files" / CRD.name).read_bytes() == CRD.read_bytes()


def test_kubectl_shows_phase_ranks_percent_and_age(api: client.ApiClient, namespace: str, resources: Resources) -> None:
    resources.create(SPEC)
    status = {"phase": "Resharding", "progress": "3/8", "percentage": 37}
    custom = client.CustomObjectsApi(api)
    custom.patch_namespaced_custom_object_status(GROUP, VERSION, namespace, PLURAL, "x", {"status": status})

    def shown() -> list[str]:
        done = subprocess.run([program("kubectl"), "get", "ckt", "-n", namespace], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()[-1].split()

    wait_for(lambda: shown()[:4] == ["x", "Resharding", "3/8", "37"])


@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize("name", ["gitops", "compile-on-cpu"])
def test_a_folder_for_gitops_is_accepted(name: str) -> None:
    folder = str(ROOT / "examples" / name)
    made = subprocess.run([program("kubectl"), "kustomize", folder], check=True, capture_output=True, text=True).stdout
    namespace = next(d for d in yaml.safe_load_all(made) if d["kind"] == "Namespace")
    apply = [program("kubectl"), "apply", "--server-side", "--filename", "-"]
    subprocess.run(apply, input=yaml.safe_dump(namespace), check=True, capture_output=True, text=True)
    for _ in range(2):
        subprocess.run(apply, input=made, check=True, capture_output=True, text=True)
    difference = [program("kubectl"), "diff", "--server-side", "--filename", "-"]
    assert subprocess.run(difference, input=made, check=False, capture_output=True, text=True).returncode == 0


def test_a_restricted_namespace_admits_the_pod_that_compiles(api: client.ApiClient, namespace: str) -> None:
    core = client.CoreV1Api(api)
    core.patch_namespace(namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    job = yaml.safe_load((ROOT / "examples" / "compile-on-cpu" / "job.yaml").read_text())
    pod = {"metadata": {"name": "compile"}, "spec": job["spec"]["template"]["spec"]}
    looser = copy.deepcopy(pod)
    looser["spec"]["initContainers"][0]["securityContext"] = {}

    def refused() -> bool:
        try:
            core.create_namespaced_pod(namespace, looser, dry_run="All")
        except ApiException as error:
            return "violates PodSecurity" in error.body
        return False

    wait_for(refused)  # the label takes effect after a moment
    core.create_namespaced_pod(namespace, pod, dry_run="All")
