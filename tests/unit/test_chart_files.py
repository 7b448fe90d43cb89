"""The chart's files, as far as they can be checked without Helm: they agree with each other, and with the operator."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pretend_cluster import PretendCluster
from prometheus_client import REGISTRY

from reshard.spec.resource import parse_resource
from reshard_operator import metrics
from reshard_operator.decision import Create

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "reshard"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DASHBOARD = json.loads((CHART / "dashboards" / "reshard.json").read_text())
MONITORING = (CHART / "templates" / "monitoring.yaml").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
_METRIC = re.compile(r"\b(?:reshard|process)_[a-z_]+")


def described(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the schema's leaf values: those with a description and no described values below."""
    for name, field in schema.get("properties", {}).items():
        whole = SCHEMA["definitions"][field["$ref"].rsplit("/", 1)[1]] | field if "$ref" in field else field
        under = list(described(whole, f"{path}.{name}".strip(".")))
        if under:
            assert whole["additionalProperties"] is False, name
            yield from under
        elif "description" in whole:
            yield f"{path}.{name}".strip("."), whole


def names() -> set[str]:
    """Every name of a series that the operator serves."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
    return {family.name + suffix for family in REGISTRY.collect() for suffix in suffixes.get(family.type, [""])}


def expressions(found: Any) -> Iterator[str]:
    """Every query of a dashboard."""
    for key, value in found.items() if isinstance(found, dict) else enumerate(found):
        if key in {"expr", "query"} and isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            yield from expressions(value)


def test_the_charts_values_documentation_is_generated_from_the_schema() -> None:
    command = [sys.executable, ROOT / "scripts" / "chart_reference.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_value_is_in_the_schema_and_described_and_has_a_default() -> None:
    fields = dict(described(SCHEMA))

    def leaves(values: dict[str, Any], above: str = "") -> Iterator[str]:
        for name, value in values.items():
            if above + name not in fields and isinstance(value, dict) and value:
                yield from leaves(value, f"{above}{name}.")
            else:
                yield above + name

    assert set(leaves(yaml.safe_load((CHART / "values.yaml").read_text()))) == set(fields)
    assert all("type" in field or "enum" in field for field in fields.values())


def test_dashboard_and_alerts_query_existing_metrics() -> None:
    assert metrics.LEADING is not None  # it fills the registry
    alerts = re.findall(r"expr: (.*)", MONITORING)
    for asked in (list(expressions(DASHBOARD)), alerts):
        found = {name for text in asked for name in _METRIC.findall(text)}
        assert found
        assert found <= names()
    assert {name for name in names() if name.startswith("reshard_")} <= {
        name + suffix
        for text in expressions(DASHBOARD)
        for name in [found.removesuffix("_bucket") for found in _METRIC.findall(text)]
        for suffix in ("", "_bucket", "_sum", "_count")
    }, "nobody looks at it"


def test_panels_are_next_to_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_every_metric_and_alert_is_documented() -> None:
    for family in REGISTRY.collect():
        if family.name.startswith("reshard_"):
            name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
            assert re.search(rf"^\| `{name}(\{{[a-z,]+\}})?` \| \S", OPERATIONS, re.MULTILINE), name
    for alert in re.findall(r"alert: (\w+)", MONITORING):
        assert f"| `{alert}` |" in OPERATIONS


def test_the_notes_have_a_resource_that_can_be_applied() -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    (resource,) = re.findall(r"^kubectl.*<<'END'\n(.*?)^END$", notes, re.MULTILINE | re.DOTALL)
    assert parse_resource(resource, "NOTES.txt")


def test_the_rights_in_the_documentation_are_the_charts() -> None:
    helper = re.search(r'define "reshard.rules" -}}\n(.*?){{', (CHART / "templates" / "_helpers.tpl").read_text(), re.DOTALL)
    lease = re.search(r"-lease\n.*?^rules:\n(.*?)^---", (CHART / "templates" / "rbac.yaml").read_text(), re.DOTALL | re.MULTILINE)
    assert helper is not None
    assert lease is not None
    granted = [
        (rule["apiGroups"][0] or "core", resource, ", ".join(rule["verbs"]))
        for rules in (helper[1], lease[1].replace("{{ $name }}", "name"))
        for rule in yaml.safe_load(rules)
        for resource in rule["resources"]
    ]
    row = re.compile(r"^\| `?([\w.]+)`? \| `([\w/]+)`(?: \(only this Lease\))? \| ([a-z, ]+) \| [^|]+ \|$", re.MULTILINE)
    rows = row.findall(SECURITY)
    assert rows == granted


def test_pods_are_restricted_as_documented() -> None:
    *_, create = PretendCluster().decide().actions
    assert isinstance(create, Create)
    template = create.manifest["spec"]["template"]
    blocks = re.findall(r"^```yaml\n(.*?)^```", SECURITY, re.MULTILINE | re.DOTALL)
    role, documented, policy = (yaml.safe_load(block) for block in blocks)
    pod = template["spec"] | {"containers": [{"securityContext": c["securityContext"]} for c in template["spec"]["containers"]]}
    assert {key: pod[key] for key in documented} == documented
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert role["rules"][0]["resources"] == ["checkpointtransforms"]
