"""Print docs/api.md, the reference of the resource, from its CRD (`make docs`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

CRD = Path(__file__).parents[1] / "crds" / "checkpointtransforms.yaml"
_HEAD = """# CheckpointTransform

`make docs` generates this page from `crds/checkpointtransforms.yaml`. `kubectl explain checkpointtransform.spec` shows the same
text.

{description}
"""
_TABLE = "| field | type | default | description |\n|---|---|---|---|"


def reference() -> str:
    """Return the page."""
    crd = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lines = [_HEAD.format(description=schema["description"])]
    for part in ("spec", "status"):
        lines += [f"## {part}", "", schema["properties"][part]["description"], "", _TABLE]
        lines += list(_rows(schema["properties"][part], part))
        lines.append("")
    lines += ["## Validation rules", "", "| field | rule |", "|---|---|"]
    fields: dict[str, list[str]] = {}
    for field, message in _rules(schema["properties"]["spec"], "spec"):
        fields.setdefault(message, []).append(field)
    lines += [f"| {', '.join(f'`{field}`' for field in named)} | {message} |" for message, named in fields.items()]
    lines.append("")
    return "\n".join(lines)


def _rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        where = f"{path}.{name}"
        what = kind(field) + (", required" if name in required else "")
        default = field.get("default", "")
        shown = (
            ""
            if isinstance(default, dict) or default == ""
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        yield f"| `{where}` | {what} | {shown} | {field.get('description', '')} |"
        if name in {"affinity", "valueFrom"}:  # as in the Pod API
            continue
        yield from _rows(field, where)
        yield from _rows(field.get("items", {}), f"{where}[]")


def _rules(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield each CEL rule of a field and of the fields in it, as (field, message)."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, rule["message"]
    for name, field in schema.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def kind(field: dict[str, Any]) -> str:
    """Describe the type of a JSON Schema field."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"] if value)
    limits = [f"{name} {field[key]}" for key, name in (("minimum", "at least"), ("maximum", "at most")) if key in field]
    if "x-kubernetes-int-or-string" in field:  # a number, or a word that the pattern allows
        return ", ".join(
            ["integer", *limits, "or " + ", ".join(f"`{word}`" for word in field["pattern"].strip("^$()").split("|"))]
        )
    if "type" not in field:
        return "any"
    types = [field["type"]] if isinstance(field["type"], str) else field["type"]
    named = (f"list of {field['items'].get('type', 'value')}s" if each == "array" else each for each in types)
    return ", ".join([" or ".join(named), *limits])


if __name__ == "__main__":
    print(reference(), end="")
