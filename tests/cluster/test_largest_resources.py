"""A resource as large as the API server stores starts, and its pods execute it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import largest

if TYPE_CHECKING:
    from transforms_on_cluster import Stage


def test_as_much_as_the_api_server_stores(stage: Stage) -> None:
    stage.create("largest", stage.spec(**largest.everything_at_once()))
    stage.ended("largest")
    assert stage.differences() == []
    uid = stage.custom.get_namespaced_custom_object(*stage.where, "largest")["metadata"]["uid"]
    found = stage.core.list_namespaced_config_map(stage.namespace, label_selector=f"reshard.dev/transform-uid={uid}").items
    assert len(found) > 1
    assert all(config_map.immutable and config_map.metadata.owner_references[0].uid == uid for config_map in found)
    stage.delete("largest", "Foreground")
