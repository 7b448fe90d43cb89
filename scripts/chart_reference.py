"""Generate the chart's README.md and the comments of values.yaml from values.schema.json (`make docs`).

With --check, write nothing and fail if a file is out of date.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from api_reference import kind

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART = Path(__file__).parents[1] / "helm" / "reshard"
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
_HEAD = """# Helm chart

This chart installs the operator of Reshard, which converts sharded checkpoints to other ranks, layouts and formats.

```console
helm install reshard helm/reshard --namespace reshard-system --create-namespace \\
  --set operator.image.repository=REGISTRY/reshard-operator --set converter.image.repository=REGISTRY/reshard-converter
helm test reshard --namespace reshard-system
```

The chart requires Kubernetes {kubernetes}. `helm test` runs a small transform in a pod. For day-to-day use, see
[Operations](../../docs/operations.md). For permissions, see [Security](../../docs/security.md).

`helm uninstall` removes the operator, but keeps the CRD, all resources and their pods. To remove them too, run
`kubectl delete crd checkpointtransforms.reshard.dev`.

## Values

`make docs` generates this table from `values.schema.json`. The schema rejects unknown values.

| value | type | default | description |
|---|---|---|---|
"""
_VALUES_HEAD = "# Default values. `make docs` generates the comments from values.schema.json.\n\n"
_WIDTH = 120


def sections(field: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the nested values of a field, or nothing if the field is a value itself."""
    under = {name: _resolved(each) for name, each in _resolved(field).get("properties", {}).items()}
    return under if any("description" in each for each in under.values()) else {}


def readme() -> str:
    """Return the content of the chart's README.md."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    lowest = chart["kubeVersion"].removeprefix(">=").removesuffix("-0")
    rows = "".join(f"{row}\n" for row in _rows(SCHEMA, values, ""))
    return _HEAD.format(kubernetes=f"{lowest} or newer") + rows


def commented(text: str) -> str:
    """Return values.yaml with a comment above each value."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    comments = dict(_comments(SCHEMA, yaml.compose("\n".join(lines))))
    made = []
    for number, line in enumerate(lines):
        indent = " " * (len(line) - len(line.lstrip())) + "# "
        made += textwrap.wrap(comments.get(number, ""), _WIDTH, initial_indent=indent, subsequent_indent=indent)
        made.append(line)
    return _VALUES_HEAD + "\n".join(made).strip() + "\n"


def _rows(schema: dict[str, Any], values: dict[str, Any], path: str) -> Iterator[str]:
    for name, field in sections(schema).items():
        if name == "global":  # Helm's own
            continue
        if sections(field):
            yield from _rows(field, values[name], f"{path}{name}.")
        else:
            yield f"| `{path}{name}` | {kind(field)} | `{json.dumps(values[name])}` | {field['description']} |"


def _comments(schema: dict[str, Any], node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    """Yield the line of each key and its comment."""
    fields = sections(schema)
    for key, value in node.value if fields else ():
        yield key.start_mark.line, fields[key.value].get("description", "")
        yield from _comments(fields[key.value], value)


def _resolved(field: dict[str, Any]) -> dict[str, Any]:
    """Resolve the references of a field and of its list items."""
    if "$ref" in field:
        field = SCHEMA["definitions"][field["$ref"].rsplit("/", 1)[1]] | field
    return field | {"items": _resolved(field["items"])} if "items" in field else field


def main() -> int:
    """Write the files, or check that they are up to date."""
    values = CHART / "values.yaml"
    made = {CHART / "README.md": readme(), values: commented(values.read_text(encoding="utf-8"))}
    if "--check" in sys.argv:
        stale = [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text]
        print(*(f"{name} is out of date: run make docs" for name in stale), sep="\n", end="")
        return bool(stale)
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
