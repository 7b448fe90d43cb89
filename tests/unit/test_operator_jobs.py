"""The manifests of a transform's Jobs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pretend_cluster import CONFIG, PLAN, resource

from reshard.errors import UsageError
from reshard.spec.messages import PlanMessage
from reshard.spec.ranks import Grouping
from reshard.spec.resource import parse_spec
from reshard_operator import jobs
from reshard_operator.config import load
from reshard_operator.labels import LABEL_STEP, LABEL_TARGET
from reshard_operator.objects import CONTAINER, Pod
from reshard_operator.observation import MOST_RUNS, Transform, job_name
from reshard_operator.rivals import selector, target_label

PLANNED = msgspec.convert(PLAN, PlanMessage)


def ranks_job(**spec: Any) -> dict[str, Any]:
    return jobs.ranks_job(Transform.parse(resource(**spec)), CONFIG, PLANNED)


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


def variables(job: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in pod_of(job)["containers"][0]["env"]}


def test_pods_log_as_the_operator_does() -> None:
    config = dataclasses.replace(CONFIG, log_format="text", log_level="debug")
    for job in (jobs.plan_job(Transform.parse(resource()), config), jobs.ranks_job(Transform.parse(resource()), config, PLANNED)):
        assert {"RESHARD_LOG_FORMAT": "text", "RESHARD_LOG_LEVEL": "debug"}.items() <= variables(job).items()
    assert variables(ranks_job())["RESHARD_LOG_FORMAT"] == "json"


def test_the_pods_of_an_attempt_share_a_trace() -> None:
    def traces(uid: str = "uid", **spec: Any) -> set[str]:
        transform = Transform.parse(resource(uid, **spec))
        made = (
            jobs.plan_job(transform, CONFIG),
            jobs.ranks_job(transform, CONFIG, PLANNED),
            jobs.commit_job(transform, CONFIG, PLANNED),
        )
        return {variables(job)["TRACEPARENT"] for job in made}

    different = [traces(), traces("other"), traces(execution={"attempt": 2})]
    assert [len(found) for found in different] == [1, 1, 1]
    assert len(set.union(*different)) == 3
    assert all(re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", found) for found in set.union(*different))
    own = f"00-{'a' * 32}-{'b' * 16}-01"
    template = {"env": [{"name": "TRACEPARENT", "value": own}, {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://c:4318"}]}
    assert traces(execution={"podTemplate": template}) == {own}
    job = jobs.plan_job(Transform.parse(resource(execution={"podTemplate": template})), CONFIG)
    names = [each["name"] for each in pod_of(job)["containers"][0]["env"]]
    assert names.count("TRACEPARENT") == names.count("OTEL_EXPORTER_OTLP_ENDPOINT") == 1


def test_kubernetes_expands_no_text_of_a_spec() -> None:
    """Kubernetes replaces $(NAME) in the arguments and variables of a container."""
    text = "$(RESHARD_OWNER)"
    claim = {"persistentVolumeClaim": {"claimName": "c", "path": text}}
    spec = {
        "source": {"storage": claim, "files": {"pattern": text}},
        "target": {"storage": claim, "filePrefix": text, "onlyRanks": "0"},
        "parameters": {"include": [text], "rename": [{"from": text, "to": "--help"}]},
    }
    for job in (jobs.plan_job(Transform.parse(resource(**spec)), CONFIG), ranks_job(**spec)):
        assert pod_of(job)["containers"][0]["args"] in (["step", "plan"], ["step", "ranks"])
        assert "$(" not in json.dumps(pod_of(job))


def test_the_last_line_of_a_log_gives_the_reason_of_a_failed_pod() -> None:
    for line in ("no space", '{"level": "ERROR", "message": "no space"}'):
        ended = {"exitCode": 1, "message": f"Traceback\n{line}\n"}
        status = {"containerStatuses": [{"name": CONTAINER, "state": {"terminated": ended}}]}
        assert Pod({"metadata": {}, "status": status}).failure().message == "no space"


def test_probes_are_served_in_the_family_of_the_pods_address() -> None:
    image = {"RESHARD_CONVERTER_IMAGE": "c"}
    found = [load(image | variables).address for variables in ({}, {"POD_IP": "10.0.0.1"}, {"POD_IP": "fd00::1"})]
    assert found == ["0.0.0.0", "0.0.0.0", "::"]  # noqa: S104 - nothing is served


def test_an_unknown_log_level_is_refused() -> None:
    environment = {"RESHARD_CONVERTER_IMAGE": "c"}
    assert load(environment | {"RESHARD_LOG_LEVEL": "debug"}).log_level == "debug"
    for name in ("RESHARD_LOG_LEVEL", "RESHARD_LOG_FORMAT"):
        with pytest.raises(UsageError, match=name):
            load(environment | {name: "loud"})


@given(st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", fullmatch=True), st.integers(1, 1000))
def test_names_leave_room_for_the_names_of_pods(name: str, attempt: int) -> None:
    for step in ("plan", "ranks", "commit"):
        made = job_name(name, "0123456789", step, attempt, MOST_RUNS if step != "ranks" else 1)
        assert "." not in made
        assert len(f"{made}-16383") <= 63


def test_one_claim_is_one_volume_with_two_mounts() -> None:
    pod = pod_of(ranks_job())
    assert pod["volumes"][:-1] == [{"name": "volume-0", "persistentVolumeClaim": {"claimName": "claim"}}]
    assert pod["containers"][0]["volumeMounts"][:-1] == [
        {"name": "volume-0", "mountPath": "/volumes/source", "readOnly": True},
        {"name": "volume-0", "mountPath": "/volumes/target"},
    ]


def test_a_claim_that_is_only_read_is_mounted_read_only() -> None:
    source = {"storage": {"persistentVolumeClaim": {"claimName": "other"}}}
    pod = pod_of(ranks_job(source=source))
    assert pod["volumes"][0] == {"name": "volume-0", "persistentVolumeClaim": {"claimName": "other", "readOnly": True}}


def test_a_strategy_in_a_config_map_is_mounted() -> None:
    target = resource()["spec"]["target"] | {"strategy": {"configMapKeyRef": {"name": "strategies", "key": "dst.json"}}}
    pod = pod_of(ranks_job(target=target))
    items = [{"key": "dst.json", "path": "dst.json"}]
    assert pod["volumes"][1] == {"name": "volume-1", "configMap": {"name": "strategies", "items": items}}
    mounted = {"name": "volume-1", "mountPath": "/volumes/target-strategy", "readOnly": True}
    assert pod["containers"][0]["volumeMounts"][2] == mounted


def test_keys_of_files_reach_the_pods_that_read_and_write_them() -> None:
    changes = {
        "source": {"decryption": {"secretKeyRef": {"name": "keys", "key": "old"}}},
        "target": {"encryption": {"secretKeyRef": {"name": "keys", "key": "new"}}},
    }
    plain = resource()["spec"]
    sides = {side: plain[side] | changes[side] for side in changes}
    transform = Transform.parse(resource(**sides))
    for job in (jobs.plan_job(transform, CONFIG), ranks_job(**sides)):
        secrets = [volume["secret"] for volume in pod_of(job)["volumes"] if "secret" in volume]
        assert secrets == [{"secretName": "keys", "items": [{"key": key, "path": key}]} for key in ("old", "new")]
        mounted = [m["mountPath"] for m in pod_of(job)["containers"][0]["volumeMounts"] if m["mountPath"].startswith("/keys")]
        assert mounted == ["/keys/decryption", "/keys/encryption"]
    assert not any("secret" in volume for volume in pod_of(jobs.commit_job(transform, CONFIG, PLANNED))["volumes"])


def with_buckets() -> dict[str, Any]:
    """Both sides in buckets, with keys of their own."""
    sides = {}
    for side in ("source", "target"):
        bucket = {
            "bucket": f"{side}-bucket",
            "credentialsSecretRef": {"name": f"{side}-keys"},
            "caBundleRef": {"name": "authorities"},
        }
        sides[side] = {"storage": {"s3": bucket}}
    return sides


def test_keys_of_buckets_reach_the_pods_that_need_them_and_no_text() -> None:
    transform = Transform.parse(resource(**with_buckets()))
    commit = jobs.commit_job(transform, CONFIG, PLANNED)
    secrets = {
        step: [v["secret"]["secretName"] for v in pod_of(job)["volumes"] if "secret" in v]
        for step, job in (("plan", jobs.plan_job(transform, CONFIG)), ("ranks", ranks_job(**with_buckets())), ("commit", commit))
    }
    both = ["source-keys", "target-keys"]
    assert secrets == {"plan": both, "ranks": both, "commit": ["target-keys"]}
    mounted = {mount["mountPath"]: mount["readOnly"] for mount in pod_of(commit)["containers"][0]["volumeMounts"]}
    assert mounted == {"/credentials/target": True, "/certificates/target": True, "/spec": True}
    assert target_label(parse_spec(resource(**with_buckets())["spec"], "x")) != target_label(parse_spec(resource()["spec"], "x"))


def test_pods_are_restricted_and_have_no_token() -> None:
    pod = pod_of(ranks_job())
    assert (pod["automountServiceAccountToken"], pod["restartPolicy"]) == (False, "Never")
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize(
    ("ranks", "grouping", "completions"),
    [
        (None, Grouping(), 6),
        (None, Grouping.consecutive(4), 2),
        (None, Grouping(1, 2, 3), 3),
        ("1-3", Grouping(), 3),
        ("0,5", Grouping.consecutive(2), 1),
    ],
)
def test_completion_indexes_map_to_groups(ranks: str | None, grouping: Grouping, completions: int) -> None:
    target = resource()["spec"]["target"] | ({"onlyRanks": ranks} if ranks else {})
    planned = msgspec.structs.replace(PLANNED, grouping=grouping)
    job = jobs.ranks_job(Transform.parse(resource(target=target)), CONFIG, planned)
    assert job["spec"]["completions"] == completions
    assert variables(job)["RESHARD_TARGET_RANKS"] == "6"
    assert msgspec.json.decode(variables(job)["RESHARD_GROUPING"], type=Grouping) == grouping


def test_pods_read_only_some_fields_of_the_execution() -> None:
    spec = {"execution": {"ranksPerPod": 3, "parallelism": 5}}
    assert json.loads(text_for_pods(**spec))["execution"] == {"ranksPerPod": 3, "io": "Auto"}


def text_for_pods(**spec: Any) -> str:
    """Return the joined contents of the ConfigMaps."""
    found = jobs.spec_config_maps(Transform.parse(resource(**spec)))
    return "".join(part["data"]["spec.json"] for part in found)


def test_pods_read_the_spec_that_the_user_wrote() -> None:
    given_spec = {"verification": "Full", "parameters": {"sourceOnly": "Keep"}, "suspend": True}
    read = parse_spec(json.loads(text_for_pods(**given_spec)), "pod")
    assert (read.verification, read.parameters.source_only, read.suspend) == ("Full", "Keep", False)


def test_pods_mount_the_spec_and_know_its_digest() -> None:
    transform = Transform.parse(resource(parameters={"rename": [{"from": "$(HOME) $$", "to": "größe"}]}))
    (config_map,) = jobs.spec_config_maps(transform)
    text = config_map["data"]["spec.json"]
    assert "$(HOME) $$" in text
    assert config_map["immutable"] is True
    for job in (jobs.plan_job(transform, CONFIG), jobs.commit_job(transform, CONFIG, PLANNED)):
        items = [{"key": "spec.json", "path": "000"}]
        source = {"configMap": {"name": config_map["metadata"]["name"], "items": items}}
        assert pod_of(job)["volumes"][-1] == {"name": "spec", "projected": {"sources": [source]}}
        mounted = pod_of(job)["containers"][0]["volumeMounts"][-1]
        assert mounted == {"name": "spec", "mountPath": variables(job)["RESHARD_SPEC"], "readOnly": True}
        assert variables(job)["RESHARD_SPEC_SHA256"] == hashlib.sha256(text.encode()).hexdigest()
        assert job["metadata"]["ownerReferences"] == config_map["metadata"]["ownerReferences"]


def test_a_config_map_has_another_name_for_other_content() -> None:
    def name(**spec: Any) -> str:
        return str(jobs.spec_config_maps(Transform.parse(resource(**spec)))[0]["metadata"]["name"])

    assert name() == name(suspend=True) == name(execution={"parallelism": 3, "attempt": 2})
    assert name() != name(verification="Full")


def test_mutable_fields_do_not_change_the_digest() -> None:
    def digest(**spec: Any) -> str:
        return jobs.spec_digest(parse_spec(resource(**spec)["spec"], "x"))

    assert digest() == digest(suspend=True) == digest(execution={"parallelism": 3, "attempt": 2})
    assert digest() != digest(verification="Full")


def test_defaults_that_are_written_out_do_not_change_the_digest() -> None:
    spec = resource()["spec"]
    written = json.loads(json.dumps(spec))
    written["target"] |= {"filePrefix": "checkpoint_", "crc": False, "copyMode": "Client", "format": "Source"}
    written["target"]["removeRedundancy"] = False
    written["source"] |= {"files": {}}
    written |= {"parameters": {"sourceOnly": "Drop", "allowMissing": False}, "execution": {"podTemplate": {"labels": {}}}}
    assert jobs.spec_digest(parse_spec(spec, "x")) == jobs.spec_digest(parse_spec(written, "x"))


@pytest.mark.parametrize("endpoint", ["https://s3.x", "https://s3.x/", "https://S3.x", "https://s3.x:443"])
def test_a_bucket_is_one_place_however_its_server_is_written(endpoint: str) -> None:
    def label(written: str) -> str:
        target = {"storage": {"s3": {"bucket": "abc", "endpoint": written}}}
        return target_label(parse_spec(resource(target=target)["spec"], "x"))

    assert label(endpoint) == label("https://s3.x")
    assert label(endpoint) != label("http://s3.x")


def test_parts_of_one_checkpoint_do_not_conflict() -> None:
    """Two transforms of one part conflict, and so does one of the whole."""

    def labels(strategy: str, output: str = "Stage") -> tuple[dict[str, str], str]:
        source = {"storage": {"persistentVolumeClaim": {"claimName": "claim"}}, "strategy": {"path": strategy}}
        changed = resource(source=source, target=resource()["spec"]["target"] | {"output": output})
        made = jobs.plan_job(Transform.parse(changed), CONFIG)
        return made["metadata"]["labels"], selector(parse_spec(changed["spec"], "x"))

    (one, by_one), (other, by_other), (whole, by_whole) = labels("stage_0"), labels("stage_1"), labels("x", "PerRank")
    assert one[LABEL_TARGET] == other[LABEL_TARGET] == whole[LABEL_TARGET]
    assert selected(by_one, one, other, whole) == [True, False, True]
    assert selected(by_other, one, other, whole) == [False, True, True]
    assert selected(by_whole, one, other, whole) == [True, True, True]


def selected(selector: str, *several: dict[str, str]) -> list[bool]:
    """Return which labels a selector matches, for the two kinds of terms in it."""
    terms = [re.fullmatch(r"([^ =]+)(?:=| in )\(?([^()]*)\)?", term) for term in re.split(r",(?![^(]*\))", selector)]
    return [all(t is not None and labels.get(t[1]) in t[2].split(",") for t in terms) for labels in several]


def test_exit_codes_decide_about_retries() -> None:
    rules = ranks_job()["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert [(r["action"], r["onExitCodes"]["values"]) for r in rules[1:]] == [
        ("FailJob", [2, 77, 78]),
        ("FailIndex", [65, 66, 70]),
    ]


def test_overrides_add_and_do_not_replace() -> None:
    template = {
        "labels": {"team": "x", LABEL_STEP: "forged"},
        "env": [
            {"name": "RESHARD_OWNER", "value": "forged"},
            {"name": "JOB_COMPLETION_INDEX", "value": "0"},
            {"name": "MINE", "value": "1"},
        ],
        "resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": "1"}},
        "securityContext": {"runAsUser": 0, "runAsNonRoot": False, "supplementalGroups": [7]},
        "tolerations": [{"operator": "Exists"}],
    }
    job = ranks_job(execution={"podTemplate": template})
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert (labels["team"], labels[LABEL_STEP]) == ("x", "ranks")
    assert "JOB_COMPLETION_INDEX" not in variables(job)
    assert (variables(job)["RESHARD_OWNER"], variables(job)["MINE"]) == ("11112222-aaaa", "1")
    pod = pod_of(job)
    assert pod["containers"][0]["resources"] == {"limits": {"memory": "1Gi", "nvidia.com/gpu": "1"}}
    assert pod["securityContext"]["runAsNonRoot"] is False
    assert list(pod["securityContext"]["supplementalGroups"]) == [7]
    assert pod["tolerations"] == [{"operator": "Exists"}]


BOUND = {"requests": {"memory": "80000000"}, "limits": {"memory": "80000000"}}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, BOUND),
        ({"requests": {"cpu": "1"}, "claims": []}, BOUND | {"requests": {"cpu": "1", "memory": "80000000"}, "claims": []}),
        ({"limits": {"cpu": "1"}}, BOUND | {"limits": {"cpu": "1", "memory": "80000000"}}),
        ({"requests": {"memory": "1Gi"}}, {"requests": {"memory": "1Gi"}}),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1Gi"}}),
        ({"requests": {"memory": "1"}, "limits": {"memory": "2"}}, {"requests": {"memory": "1"}, "limits": {"memory": "2"}}),
    ],
)
def test_the_bound_of_the_plan_is_the_request_and_the_limit(resources: dict[str, Any], expected: dict[str, Any]) -> None:
    of_chart = dataclasses.replace(CONFIG, converter_resources=resources)
    transform = Transform.parse(resource())
    found = ranks_job(execution={"podTemplate": {"resources": resources}})
    for job in (found, jobs.ranks_job(transform, of_chart, PLANNED), jobs.commit_job(transform, of_chart, PLANNED)):
        assert pod_of(job)["containers"][0]["resources"] == expected
    unknown = pod_of(jobs.plan_job(transform, CONFIG))["containers"][0]["resources"]
    assert unknown == {"requests": {"memory": str(256 << 20)}}  # no limit, as the plan does not exist yet


@pytest.mark.parametrize(
    ("of_chart", "of_transform", "expected"),
    [
        (
            {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi"}},
            {"limits": {"nvidia.com/gpu": "1"}},
            {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"}},
        ),
        (
            {"requests": {"memory": "8Gi", "cpu": "4"}},
            {"limits": {"memory": "1Gi"}},
            {"requests": {"cpu": "4"}, "limits": {"memory": "1Gi"}},
        ),
    ],
)
def test_a_resource_that_the_transform_does_not_set_is_that_of_the_chart(
    of_chart: dict[str, Any], of_transform: dict[str, Any], expected: dict[str, Any]
) -> None:
    transform = Transform.parse(resource(execution={"podTemplate": {"resources": of_transform}}))
    job = jobs.ranks_job(transform, dataclasses.replace(CONFIG, converter_resources=of_chart), PLANNED)
    assert pod_of(job)["containers"][0]["resources"] == expected


@pytest.mark.parametrize(
    ("resources", "said"),
    [(BOUND, "its limit of 80000000; create a transform with a higher"), ({}, "the node ran out of memory")],
)
def test_the_message_of_a_pod_that_was_killed_because_of_memory(resources: dict[str, Any], said: str) -> None:
    ended = {"exitCode": 137, "reason": "OOMKilled", "message": '{"level": "INFO", "message": "Resharding: 7 %"}'}
    status = {"containerStatuses": [{"name": CONTAINER, "state": {"terminated": ended}}]}
    containers = [{"name": "sidecar", "resources": {"limits": {"memory": "1"}}}, {"name": CONTAINER, "resources": resources}]
    failure = Pod({"metadata": {}, "spec": {"containers": containers}, "status": status}).failure()
    assert (failure.reason, failure.exit_code) == ("OOMKilled", 137)
    assert said in failure.message
    assert f"podTemplate.resources.{'limits' if resources else 'requests'}.memory" in failure.message


def test_only_kueue_starts_a_queued_job() -> None:
    made = resource()
    made["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    transform = Transform.parse(made)
    job = jobs.ranks_job(transform, CONFIG, PLANNED)
    assert (job["spec"]["suspend"], job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]) == (True, "gpus")
    assert not jobs.plan_job(transform, CONFIG)["spec"]["suspend"]
