from __future__ import annotations

import pytest
from kubernetes import client


def test_an_object_is_created_read_patched_and_deleted(api: client.ApiClient, namespace: str) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "settings"}, "data": {"ranks": "8"}})

    assert core.read_namespaced_config_map("settings", namespace).data == {"ranks": "8"}
    core.patch_namespaced_config_map("settings", namespace, {"data": {"ranks": "4"}})
    assert [item.data for item in core.list_namespaced_config_map(namespace).items if item.metadata.name == "settings"] == [
        {"ranks": "4"}
    ]

    core.delete_namespaced_config_map("settings", namespace)
    with pytest.raises(client.ApiException) as refused:
        core.read_namespaced_config_map("settings", namespace)
    assert refused.value.status == 404


def test_a_service_account_may_do_nothing_that_it_was_not_given(api: client.ApiClient, namespace: str) -> None:
    review = client.AuthorizationV1Api(api).create_subject_access_review(
        {
            "spec": {
                "user": f"system:serviceaccount:{namespace}:default",
                "resourceAttributes": {"namespace": namespace, "verb": "list", "group": "batch", "resource": "jobs"},
            }
        }
    )

    assert review.status.allowed is False


def test_a_namespace_refuses_pods_that_are_not_restricted(api: client.ApiClient, namespace: str) -> None:
    pod = {"metadata": {"name": "loose"}, "spec": {"containers": [{"name": "main", "image": "localhost/none"}]}}

    with pytest.raises(client.ApiException, match="PodSecurity"):
        client.CoreV1Api(api).create_namespaced_pod(namespace, pod)
