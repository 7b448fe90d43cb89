"""Requests from resources: every field is used or refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reshard.checkpoint.manifest import FileRecord, Manifest, decode, encode
from reshard.errors import DataError, RequestError, UsageError
from reshard.spec.mounts import Volume, mounts, request_here, request_of_pod
from reshard.spec.ranks import format_ranks, parse_ranks
from reshard.spec.request import Options, Request
from reshard.spec.resource import TransformSpec, parse_resource, parse_spec
from reshard.spec.rules import RenameRule
from reshard.spec.storage_options import RequestStorageOptions, StorageOptions
from reshard.target.lock import LockOwner
from reshard.target.snapshot import TaskRecord
from reshard.transform.checks import with_output

RESOURCE = {
    "apiVersion": "reshard.dev/v1alpha1",
    "kind": "CheckpointTransform",
    "metadata": {"name": "x"},
    "spec": {
        "source": {
            "storage": {"persistentVolumeClaim": {"claimName": "a", "path": "run/src"}},
            "strategy": {"path": "run/src.ckpt"},
            "files": {"step": 7},
            "allowSingleRank": True,
            "allowEqualSlices": True,
        },
        "target": {
            "storage": {"persistentVolumeClaim": {"claimName": "b", "path": "dst"}},
            "strategy": {"path": "dst.ckpt", "storage": {"persistentVolumeClaim": {"claimName": "a"}}},
            "format": "Ckpt",
            "onlyRanks": "0-2",
            "crc": True,
            "fileMode": "0600",
        },
        "parameters": {"sourceOnly": "Keep", "rename": [{"from": "a", "to": "b"}, {"pattern": "a.*", "to": "b.*"}]},
        "overwrite": "Replace",
    },
}


def here(spec: TransformSpec, config_maps: dict[str, str] | None = None, **claims: str) -> Request:
    return request_here(spec, claims=claims, config_maps=config_maps or {}, secrets={})


def test_a_resource_becomes_a_request() -> None:
    request = here(parse_resource(yaml.safe_dump(RESOURCE), "x.yaml"), a="/a", b="/b/")
    assert (request.source, request.source_strategy) == ("/a/run/src", "/a/run/src.ckpt")
    assert (request.target, request.target_strategy) == ("/b/dst", "/a/dst.ckpt")
    assert request.options == Options(
        format="Ckpt",
        step=7,
        allow_single_rank=True,
        allow_equal_slices=True,
        only_ranks="0-2",
        crc=True,
        file_mode=0o600,
        source_only="Keep",
        rename=(RenameRule("b", name="a"), RenameRule("b.*", pattern="a.*")),
        overwrite="Replace",
    )


def test_a_strategy_may_be_an_entry_of_a_config_map() -> None:
    resource = msgspec.json.decode(msgspec.json.encode(RESOURCE))
    resource["spec"]["target"]["strategy"] = {"configMapKeyRef": {"name": "strategies", "key": "dst.json"}}
    spec = parse_resource(yaml.safe_dump(resource), "x.yaml")
    assert here(spec, {"strategies": "/s"}, a="/a", b="/b").target_strategy == "/s/dst.json"
    assert request_of_pod(spec).target_strategy == "/volumes/target-strategy/dst.json"
    with pytest.raises(UsageError, match="--config-map strategies=DIR"):
        here(spec, a="/a", b="/b")


def test_keys_are_separate_files() -> None:
    resource = msgspec.json.decode(msgspec.json.encode(RESOURCE))
    resource["spec"]["source"]["decryption"] = {"secretKeyRef": {"name": "keys", "key": "old"}}
    resource["spec"]["target"]["encryption"] = {"secretKeyRef": {"name": "keys", "key": "new"}, "mode": "SM4-CBC"}
    spec = parse_resource(yaml.safe_dump(resource), "x.yaml")
    assert mounts(spec)[-2:] == (
        ("decryption", Volume("Secret", "keys", "old"), "/keys/decryption", True),
        ("encryption", Volume("Secret", "keys", "new"), "/keys/encryption", True),
    )
    for request, folders in (
        (request_of_pod(spec), ("/keys/decryption", "/keys/encryption")),
        (request_here(spec, claims={"a": "/a", "b": "/b"}, config_maps={}, secrets={"keys": "/k"}), ("/k", "/k")),
    ):
        assert request.decryption is not None
        assert request.encryption is not None
        assert (request.decryption.key.file, request.decryption.mode) == (f"{folders[0]}/old", "AES-GCM")
        assert (request.encryption.key.file, request.encryption.mode) == (f"{folders[1]}/new", "SM4-CBC")
    with pytest.raises(UsageError, match=r"spec.source.decryption.*--secret keys=DIR"):
        here(spec, a="/a", b="/b")


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ({}, "Expected either `path` or `configMapKeyRef`"),
        ({"path": "a", "configMapKeyRef": {"name": "s", "key": "k"}}, "Expected either `path` or `configMapKeyRef`"),
        ({"configMapKeyRef": {"name": "s", "key": "../k"}}, "spec.source.strategy.configMapKeyRef.key"),
        ({"configMapKeyRef": {"name": "s", "key": ".."}}, "spec.source.strategy.configMapKeyRef.key"),
    ],
)
def test_a_strategy_is_in_one_place(strategy: dict[str, object], said: str) -> None:
    resource = msgspec.json.decode(msgspec.json.encode(RESOURCE))
    resource["spec"]["source"]["strategy"] = strategy
    with pytest.raises(UsageError, match=said):
        parse_resource(yaml.safe_dump(resource), "x.yaml")


def test_defaults_of_the_resource_are_those_of_the_library() -> None:
    storage = {"persistentVolumeClaim": {"claimName": "a"}}
    spec = msgspec.convert({"source": {"storage": storage}, "target": {"storage": storage}}, TransformSpec)
    assert here(spec, a="/a").options == Options()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("source", "storage", "persistentVolumeClaim", "path"), "../x", "spec.source.storage.persistentVolumeClaim.path"),
        (("source", "storage", "persistentVolumeClaim", "path"), "/x", "must be relative"),
        (("source", "strategy", "path"), "a//b", "spec.source.strategy.path"),
        (("target", "strategy", "path"), "a\0b", "spec.target.strategy.path"),
        (("target", "format"), "Zip", "spec.target.format"),
        (("target", "filePrefix"), "a/b", "spec.target.filePrefix"),
        (("target", "fileMode"), "999", "spec.target.fileMode"),
        (("target", "crc"), "yes please", "spec.target.crc"),
        (("parameters", "rename"), [{"from": "a", "to": None}], "rename"),
        (("parameters", "rename"), [{"from": "a", "too": "b"}], "spec.parameters.rename[0]"),
        (("parameters", "rename"), [{"pattern": "a*", "to": "b"}], "different numbers of"),
        (("target", "encryption"), {"mode": "AES-GCM"}, "secretKeyRef"),
        (("target", "encryption"), {"secretKeyRef": {"name": "k", "key": "a"}, "mode": "ROT13"}, "spec.target.encryption.mode"),
        (("source", "decryption"), {"secretKeyRef": {"name": "k", "key": "../a"}}, "spec.source.decryption.secretKeyRef.key"),
        (("verification",), "Perhaps", "spec.verification"),
        (("source", "files", "step"), -1, "spec.source.files.step"),
        (("sourcce",), {}, "sourcce"),
    ],
)
def test_invalid_fields_are_named(path: tuple[str, ...], value: object, said: str) -> None:
    resource = msgspec.json.decode(msgspec.json.encode(RESOURCE))
    place = resource["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UsageError) as caught:
        parse_resource(msgspec.json.encode(resource).decode(), "x.yaml")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            {"maxFileSizeBytes": 3 << 30},
            "max_file_size_bytes: only unified checkpoints",
        ),  # even if it states the default
        ({"format": "HuggingFace", "output": "Index"}, "output"),
        ({"output": "Unified", "strategy": None}, "output: the output Unified does not apply to the format Ckpt"),
        ({"format": "HuggingFace", "output": "PerRank"}, "target strategy: a unified checkpoint contains whole parameters"),
        ({"output": "Unified", "format": "Source"}, "target strategy: a unified checkpoint contains whole parameters"),
    ],
)
def test_fields_that_contradict_the_output_are_refused(target: dict[str, Any], said: str) -> None:
    resource = msgspec.json.decode(msgspec.json.encode(RESOURCE))
    resource["spec"]["target"] |= target
    spec = parse_resource(yaml.safe_dump(resource), "x.yaml")
    with pytest.raises(UsageError, match=said):
        with_output(here(spec, a="/a", b="/b"))
    with pytest.raises(UsageError, match=said):
        with_output(request_of_pod(spec))


def test_the_format_of_hugging_face_implies_whole_parameters() -> None:
    options = Options(format="HuggingFace", max_file_size_bytes=1 << 20)
    assert with_output(Request("a", "b", options=options)).options.output == "Unified"


def test_a_claim_without_a_folder_is_refused_with_the_missing_option() -> None:
    with pytest.raises(UsageError, match="--volume b=DIR"):
        here(parse_resource(yaml.safe_dump(RESOURCE), "x.yaml"), a="/a")


@given(st.sets(st.integers(0, 200), min_size=1).map(lambda s: tuple(sorted(s))))
def test_ranks_are_read_as_they_are_written(ranks: tuple[int, ...]) -> None:
    assert parse_ranks(format_ranks(ranks)) == ranks


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1--2", "2-1", "1,,2", "0-99999999", "1.5", "\u0661"])
def test_an_invalid_list_of_ranks_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ranks(text)


def test_a_missing_rank_is_refused() -> None:
    with pytest.raises(RequestError, match="NoSuchRank"):
        parse_ranks("0-8", 8)


VALUES = st.recursive(
    st.none() | st.text(max_size=3) | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=12), inner)
)


@given(st.text() | VALUES.map(yaml.safe_dump))
def test_every_invalid_text_is_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_resource(text, "x.yaml")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases"),
        ("a: &a {b: 1}\n<<: {c: 2}", "merge keys"),
        ("kind: Pod\nspec: {a: 1,\n a: 2}", "the key 'a' occurs twice, line 3"),
        ("[" * 20_000, "more than 64 levels deep"),
        ("- " * 20_000, "more than 64 levels deep"),
        ("a: 2024-99-99", "type"),
        ("a: !!int x", "type"),
        ("a: !!timestamp x", "type"),
        ("a: " + "9" * 5_000, "5000 characters"),
        ("a: " + "1:" * 100_000 + "1", "200001 characters"),
        ("a: !" + "x" * 5_000, "tag"),
        ("k" * 600 + ": 1", "key"),
        ("[a]: 1", "key"),
        ("a: [", "line 1"),
        ("a: \x00", "not allowed"),
    ],
)
def test_text_that_is_not_plain_yaml_is_refused_in_one_short_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="NotYaml") as caught:
        parse_resource(text, "x.yaml")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_version_of_any_length_is_quoted_in_short() -> None:
    with pytest.raises(UsageError, match="WrongApiVersion") as caught:
        parse_resource(f"kind: CheckpointTransform\napiVersion: {'x' * 5_000}", "x.yaml")
    assert len(str(caught.value)) < 300


@given(st.data(), st.sampled_from([Manifest, FileRecord, TaskRecord, LockOwner]))
def test_damaged_documents_are_only_ever_refused(data: st.DataObject, kind: type[msgspec.Struct]) -> None:
    record = FileRecord(0, "rank_0/x", 1, "xxh3-128:0", 1, 1, 0, "Full")
    content = bytearray(encode({FileRecord: record, LockOwner: LockOwner("a", "b", "c")}.get(kind, record)))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        found = decode(bytes(content), kind, "x.json")
    except DataError:
        return
    assert isinstance(found, kind)


def with_buckets() -> dict[str, Any]:
    reach = {"endpoint": "https://minio:65535", "region": "x", "addressingStyle": "Path"}
    source = {
        "bucket": "in",
        "prefix": "a/src",
        "credentialsSecretRef": {"name": "reads"},
        "caBundleRef": {"name": "authorities"},
    }
    return {
        "source": {"storage": {"s3": source | reach}, "strategy": {"path": "a/s.ckpt"}},
        "target": {
            "storage": {"s3": {"bucket": "out"}},
            "strategy": {"path": "t.ckpt", "storage": {"persistentVolumeClaim": {"claimName": "c", "path": "p"}}},
        },
    }


def test_a_pod_finds_the_credentials_of_its_buckets() -> None:
    spec = parse_spec(with_buckets(), "x")
    assert mounts(spec) == (
        ("source", Volume("Secret", "reads"), "/credentials/source", True),
        ("source", Volume("ConfigMap", "authorities", "ca.crt"), "/certificates/source", True),
        ("target-strategy", Volume("PersistentVolumeClaim", "c"), "/volumes/target-strategy", True),
    )
    request = request_of_pod(spec)
    assert (request.source, request.source_strategy) == ("s3://in/a/src", "s3://in/a/s.ckpt")
    assert (request.target, request.target_strategy) == ("s3://out", "/volumes/target-strategy/p/t.ckpt")
    storage_options = StorageOptions("https://minio:65535", "x", "Path", "/certificates/source/ca.crt", "/credentials/source")
    confined = StorageOptions(inside="/volumes/target-strategy")
    assert request.storage_options == RequestStorageOptions(source=storage_options, target_strategy=confined)
    local = request_here(spec, claims={"c": "/c"}, config_maps={}, secrets={"reads": "/keys"})
    assert local.storage_options.source == StorageOptions("https://minio:65535", "x", "Path", None, "/keys")
    assert here(spec, c="/c").storage_options.source.credentials is None


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ({}, "either"),
        ({"s3": {"bucket": "abc"}, "persistentVolumeClaim": {"claimName": "c"}}, "either"),
        ({"persistentVolumeClaim": {"claimName": "a..b"}}, "claimName"),
        ({"persistentVolumeClaim": {"claimName": "a\n"}}, "claimName"),
        ({"s3": {"bucket": "a/b"}}, "bucket"),
        ({"s3": {"bucket": "abc\n"}}, "bucket"),
        ({"s3": {"bucket": "abc", "region": "x\n"}}, "region"),
        ({"s3": {"bucket": "abc", "endpoint": "https://host\n"}}, "endpoint"),
        ({"s3": {"bucket": "abc", "endpoint": "http://host:65536"}}, "endpoint"),
        ({"s3": {"bucket": "abc", "endpoint": "http://[::1"}}, "endpoint"),
        ({"s3": {"bucket": "abc", "credentialsSecretRef": {"name": "a-.b"}}}, "name"),
        ({"s3": {"bucket": "abc", "caBundleRef": {"name": "a", "key": "k\n"}}}, "key"),
        ({"s3": {"bucket": "abc", "prefix": "../x"}}, "spec.target.storage.s3.prefix"),
        ({"s3": {"bucket": "abc", "prefix": "x/"}}, "spec.target.storage.s3.prefix"),
        ({"s3": {"bucket": "abc", "endpoint": "https://key:secret@host"}}, "endpoint"),
        ({"s3": {"bucket": "abc", "secretKey": "x"}}, "secretKey"),
    ],
)
def test_a_storage_is_one_claim_or_one_bucket(storage: dict[str, Any], says: str) -> None:
    document = with_buckets()
    document["target"]["storage"] = storage
    with pytest.raises(UsageError, match=says):
        parse_spec(document, "x")
