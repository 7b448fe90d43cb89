"""Each alert of the chart fires for the metrics that it watches, and not before."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from operator_process import rendered
from transforms_on_cluster import ROOT

if TYPE_CHECKING:
    from pathlib import Path

OURS, OTHERS = {"namespace": "default"}, {"namespace": "other"}
# Another release, which has the same metrics: active, failing, slow and large from the beginning.
OTHER_RELEASE = {
    "reshard_leading": "1x90",
    'reshard_transitions_total{phase="Failed"}': "0+1x90",
    "reshard_reconcile_errors_total": "0+100x90",
    'reshard_reconcile_duration_seconds_bucket{le="10.0"}': "0+1000x90",
    'reshard_reconcile_duration_seconds_bucket{le="+Inf"}': "0+1000x90",
    'reshard_transforms_waiting{reason="TargetBusy"}': "1x90",
    'process_resident_memory_bytes{instance="other"}': "900000000x90",
    'reshard_leading{instance="other"}': "1x90",
}
# Per alert: series with one value per minute, the last minute without the alert, the first minute with it, and its labels.
# `0+5x30` stands for 30 values that grow by 5.
BUCKETS = "reshard_reconcile_duration_seconds_bucket"
FIRES: dict[str, tuple[dict[str, str], int, int, dict[str, str]]] = {
    "ReshardNoActiveReplica": ({'reshard_leading{pod="a"}': "1x9 0x20", 'reshard_leading{pod="b"}': "0x30"}, 14, 16, OURS),
    "ReshardTransformFailed": ({'reshard_transitions_total{phase="Failed"}': "0x9 1x30"}, 9, 11, OURS | {"phase": "Failed"}),
    "ReshardReconcileErrors": ({'reshard_reconcile_errors_total{pod="a"}': "0x9 10+10x40"}, 20, 35, OURS | {"pod": "a"}),
    "ReshardReconcileSlow": (
        {f'{BUCKETS}{{le="5.0"}}': "0+97x40", f'{BUCKETS}{{le="10.0"}}': "0+100x40", f'{BUCKETS}{{le="+Inf"}}': "0+100x40"},
        14,
        17,
        {},
    ),
    "ReshardTransformBlocked": (
        {
            'reshard_transforms_waiting{reason="Unschedulable"}': "0x9 2x80",
            'reshard_transforms_waiting{reason="NodeLost"}': "0x90",
        },
        68,
        71,
        {"reason": "Unschedulable"},
    ),
    "ReshardOperatorMemoryHigh": (
        {
            'process_resident_memory_bytes{instance="a"}': "150000000x9 210000000x30",
            'process_resident_memory_bytes{instance="another program"}': "900000000x40",
            'process_resident_memory_bytes{instance="standby"}': "900000000x40",
            'reshard_leading{instance="a"}': "1x40",
            'reshard_leading{instance="standby"}': "0x40",
        },
        23,
        26,
        OURS | {"instance": "a"},
    ),
}


def _labelled(series: str, labels: dict[str, str]) -> str:
    name, _, more = series.partition("{")
    return name + "{" + "".join(f'{key}="{value}",' for key, value in labels.items()) + (more or "}")


def rules() -> list[dict[str, Any]]:
    """The alerts as the chart renders them."""
    found = next(d for d in rendered("metrics.prometheusRule.enabled=true") if d["kind"] == "PrometheusRule")
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def test_every_alert_is_here() -> None:
    assert [rule["alert"] for rule in rules()] == [*FIRES]


def test_the_runbook_has_a_section_for_every_alert() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sections == [*FIRES]
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"https://reshard.dev/docs/runbook/#{rule['alert'].lower()}"


@pytest.fixture(scope="module")
def promtool() -> str:
    """The program that fires alerts."""
    if "RESHARD_PROMTOOL" not in os.environ:
        pytest.skip("promtool is not here (Debian: prometheus)")
    return os.environ["RESHARD_PROMTOOL"]


@pytest.mark.parametrize("alert", FIRES)
def test_an_alert_fires(alert: str, promtool: str, tmp_path: Path) -> None:
    series, quiet, fires, labels = FIRES[alert]
    (rule,) = (rule for rule in rules() if rule["alert"] == alert)
    summary = re.sub(r"{{ \$labels.(\w+) }}", lambda found: labels[found[1]], rule["annotations"]["summary"])
    expected = {"exp_labels": rule["labels"] | labels, "exp_annotations": rule["annotations"] | {"summary": summary}}
    case = {
        "interval": "1m",
        "input_series": [
            {"series": _labelled(name, release), "values": values}
            for some, release in ((series, OURS), (OTHER_RELEASE, OTHERS))
            for name, values in some.items()
        ],
        "alert_rule_test": [
            {"eval_time": f"{quiet}m", "alertname": alert, "exp_alerts": []},
            {"eval_time": f"{fires}m", "alertname": alert, "exp_alerts": [expected]},
        ],
    }
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "reshard", "rules": [rule]}]}))
    (tmp_path / "test.json").write_text(json.dumps({"rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": [case]}))
    command = [promtool, "test", "rules", str(tmp_path / "test.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
