"""Fuzz strategy files in JSON: the layouts are those that another reader of JSON finds, and can be written again."""

from __future__ import annotations

from inputs import json_in
from targets.strategy_protobuf import FILE

from reshard.strategy import Strategy, dump, parse

SEEDS = [dump(FILE, "json")]


def read(content: bytes) -> None:
    text = b"{" + content.lstrip(b" \t\r\n{")
    found = parse(text, "fuzz")
    document = json_in(text)
    assert {*found.parameters} == {*document["parallel_layout_item"]}
    Strategy.from_files([found])
    if all(found.stages.values()):
        for form in ("protobuf", "json"):
            assert parse(dump(found, form), "fuzz").stages == found.stages
