"""The catalogue of reasons, docs/errors.yaml."""

from __future__ import annotations

from typing import Any

import yaml
from pages import ROOT

CATALOGUE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docs" / "errors.yaml").read_text(encoding="utf-8"))


def in_state(*states: str) -> set[str]:
    """Return the reasons of transforms in one of these states."""
    return {reason for reason, entry in CATALOGUE.items() if entry.get("state") in states}
