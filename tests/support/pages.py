"""The pages of the documentation, and the code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "docs" / "workflows").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "layouts" / "README.md",
    ROOT / "examples" / "renames" / "README.md",
    ROOT / "helm" / "reshard" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *WORKFLOWS,
]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """Return kind and text of each code block of a page."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def blocks(page: Path, kind: str) -> list[str]:
    """Return the code blocks of a kind."""
    return [text for found, text in all_blocks(page) if found == kind]
