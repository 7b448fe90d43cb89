"""Fuzz the reader of JSON that finds duplicate keys: it finds the pairs that Python's reader finds."""

from __future__ import annotations

import msgspec
from inputs import json_in

from reshard.strictjson import pairs

SEEDS = [b'{"a": 1, "b": [true, null, "x\\u00e9"], "a": {"c": 1.5e3}}', b'{"\\ud83d\\ude00": -0}']


def read(content: bytes) -> None:
    try:
        found = pairs(content, 1000, msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    try:
        expected = json_in(content, object_pairs_hook=list, parse_int=str)  # it refuses integers of thousands of digits
    except RecursionError:
        return
    assert [name for name, _ in found] == [name for name, _ in expected]
