"""Fuzz files with a CheckpointTransform, and rename rules in YAML."""

from __future__ import annotations

from pathlib import Path

from reshard.errors import ReshardError
from reshard.spec.mounts import request_of_pod
from reshard.spec.resource import parse_rename_rules, parse_resource

EXAMPLES = Path(__file__).parents[3] / "examples"
SEEDS = [*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("renames/*.yaml")]


def read(content: bytes) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    try:
        parse_rename_rules(text, "fuzz")
    except ReshardError:
        request_of_pod(parse_resource(text, "fuzz"))
