"""Fuzz the spec of a CheckpointTransform as its pods read it, and what a pod would open."""

from __future__ import annotations

import msgspec

from reshard.spec.mounts import request_of_pod
from reshard.spec.resource import decode_spec

SPEC = {
    "source": {"storage": {"persistentVolumeClaim": {"claimName": "a", "path": "b/c"}}, "strategy": {"path": "s"}},
    "target": {
        "storage": {"s3": {"bucket": "abc", "prefix": "x/y", "endpoint": "http://h:1", "credentialsSecretRef": {"name": "k"}}},
        "layout": {"apiVersion": "reshard.dev/layout-v1", "mesh": "dp=2,tp=2", "rules": [{"match": "*", "shard": {"0": "tp"}}]},
        "encryption": {"secretKeyRef": {"name": "n", "key": "k"}},
    },
    "parameters": {"rename": [{"pattern": "a.*", "to": "b.*"}], "include": ["a*"], "cast": [{"pattern": "*", "to": "Float16"}]},
    "execution": {"ranksPerPod": 2},
}
SEEDS = [msgspec.json.encode(SPEC)]


def read(content: bytes) -> None:
    request = request_of_pod(decode_spec(content, "fuzz"))
    for place in (request.source, request.target):
        assert place.startswith(("/volumes/", "s3://")), place
        assert ".." not in place.split("/"), place
