"""Every error says where, and what to do: by reading the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from reshard import errors
from reshard.errors import ReshardError

PACKAGE = Path(errors.__file__).parent
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ReshardError)}
LAYOUT = {(f"layout/__init__.py:{function}", field) for function in ("_check_axes", "_check_shard") for field in ("where", "fix")}
CELL = {("layout/__init__.py:cell_box", field) for field in ("where", "fix")}
# What is lacking where, and why.
LACKING = {
    **dict.fromkeys(LAYOUT, "strategy/file.py adds file, parameter and fix"),
    **dict.fromkeys(CELL, "plan/parameters.py adds parameter and fix"),
    ("cli/__init__.py:_run", "where"): "memory that runs out, and a bug, are in no file or option",
}


def places(path: Path) -> set[tuple[str, str]]:
    """The functions that make an error without a field, with that field."""
    return {
        (f"{path.relative_to(PACKAGE).as_posix()}:{function.name}", field)
        for function in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in KINDS
        for field in ("where", "fix")
        if field not in {keyword.arg for keyword in call.keywords}
    }


def test_every_error_says_where_and_what_to_do() -> None:
    found = {place for path in PACKAGE.rglob("*.py") for place in places(path)}
    assert found == set(LACKING)


@pytest.mark.parametrize(
    ("call", "lacking"),
    [
        ('DataError("R", "what", where="w", fix="f")', set()),
        ('DataError("R", "what", where="w")', {"fix"}),
        ('BugError("R", "what")', {"where", "fix"}),
        ('ValueError("what")', set()),
    ],
)
def test_what_is_lacking_is_found(call: str, lacking: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text(f"def function():\n    raise {call}\n")
    assert places(tmp_path / "module.py") == {("module.py:function", field) for field in lacking}
