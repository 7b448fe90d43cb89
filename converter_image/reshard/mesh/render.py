"""Layout files as YAML for readers: the mesh first, one rule a line, short lists and maps on one line."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.spec.layout import LayoutDocument, LayoutRule

_WIDTH = 120
# Text that YAML 1.1 reads as the same text, in flow style too. Words such as `on` and numbers are not.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./=*-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
_FIELDS = ("apiVersion", "mesh", "expertMesh", "aliases", "derive", "state", "pipeline", "zero", "uneven", "rules")


def rendered(document: LayoutDocument, comments: Mapping[int, str] | None = None) -> str:
    """Return the YAML of a document. `reshard.spec.layout.parse_layout` returns an equal document from it.

    Args:
        document: layout file.
        comments: comments on rules, by the position of the rule.
    """
    fields = _built(document)
    if document.zero and not document.zero.axes:
        fields["zero"] = {"threshold": document.zero.threshold} | fields["zero"]
    lines = []
    for field in _FIELDS:
        if field not in fields:
            continue
        if field == "rules":
            lines += ["rules:", *_rules(document, comments or {})]
        else:
            value = fields[field]
            lines.append(f"{field}: {value if field.lower().endswith('mesh') else _flow(value)}")
    return "\n".join(lines) + "\n"


def rule_line(rule: LayoutRule) -> str:
    """Return a rule as a list entry of YAML, on one line."""
    return f"- {_flow(_built(rule))}"


def _rules(document: LayoutDocument, comments: Mapping[int, str]) -> list[str]:
    lines = []
    for number, rule in enumerate(document.rules):
        if comment := comments.get(number):
            lines.append(f"  # {comment}")
        line = f"  {rule_line(rule)}"
        if len(line) <= _WIDTH or isinstance(rule.match, str):
            lines.append(line)
            continue
        fields = _built(rule)
        lines += ["  - match:", *(f"      - {_flow(pattern)}" for pattern in fields.pop("match"))]
        lines += [f"    {field}: {_flow(value)}" for field, value in fields.items()]
    return lines


def _built(value: object) -> dict[str, Any]:
    """Return the fields of a struct that differ from their defaults, and those without a default."""
    built: dict[str, Any] = msgspec.to_builtins(value)
    return {field: inner for field, inner in built.items() if inner is not None}


def _flow(value: Any) -> str:  # noqa: ANN401 - a value of JSON
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {_flow(inner)}" for key, inner in value.items() if inner is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _key(key: str) -> str:
    return key if key.isdigit() else _text(key)


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    if text.isprintable():
        return f"'{text.replace(chr(39), chr(39) * 2)}'"
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text) + '"'
