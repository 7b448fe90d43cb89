"""scripts/dialect.py counts phrases by area, at a revision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "dialect.py"
FILES = {
    "README.md": "Of the files, one lies beside\nthe others.\nThere is no other file.\n",
    "converter_image/reshard/cli/show.py": 'def show() -> None:\n    """Say what is there."""\n',
    "converter_image/reshard/plan.py": '"""What is planned."""\nbegun = "not begun"  # told by the plan\n',
    "tests/test_plan.py": "# anew\n",
    "tests/corpus/anew.txt": "anew\n",
}
ENVIRONMENT = os.environ | {
    f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def test_phrases_are_counted_by_area(tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Test"]):
        subprocess.run(["git", *command], cwd=tmp_path, env=ENVIRONMENT, check=True)
    done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")]
    areas, counts = rows[0][1:], {name: [int(float(cell)) for cell in cells] for name, *cells in rows[1:]}
    assert areas[-1] == "all"
    found = {name: dict(zip(areas, cells, strict=True)) for name, cells in counts.items()}
    assert (
        found["beside(s)"]["documentation"]
        == found["lie, lies"]["documentation"]
        == found["Of ... (first word)"]["documentation"]
        == 1
    )
    assert found["is no, are no"]["all"] == 0
    assert found["what is/are"]["command line"] == found["what is/are"]["docstrings and comments"] == 1
    assert found["begun"]["errors and other strings"] == found["begun"]["all"] == 1
    assert found["tell, told"]["docstrings and comments"] == 1
    assert found["anew"]["tests and scripts"] == found["anew"]["all"] == 1
