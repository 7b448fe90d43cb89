"""Exceptions to the checks of ruff, mypy and import-linter: each has a reason next to it, and none is where nothing checks."""

from __future__ import annotations

import io
import re
import tokenize

import pytest
from pages import ROOT

SOURCES = sorted(
    path
    for name in ("benchmarks", "converter_image", "examples", "findings", "operator", "scripts", "tests")
    for path in (ROOT / name).rglob("*.py")
)
CHECKED_BY_MYPY = tuple(ROOT / name for name in ("converter_image/reshard", "operator/reshard_operator", "tests/support/cluster"))
EXCEPTION = re.compile(r"#\s*(?:ruff:\s*)?noqa\b|#\s*type:\s*ignore\b")
WITH_REASON = re.compile(r"# (ruff: )?noqa: [A-Z]+\d+(, [A-Z]+\d+)* - \w|# type: ignore\[[a-z-]+\]  # \w")
# Tables and lists of exceptions in pyproject.toml, and switches that are exceptions by themselves.
TABLE = re.compile(r"^\[tool\.ruff\.lint\.per-file-ignores\]\n(.*?)^\[", re.MULTILINE | re.DOTALL)
LIST = re.compile(r"^(?:ignore|ignore_imports) = \[\n(.*?)^\]", re.MULTILINE | re.DOTALL)
SWITCH = re.compile(r"^(?:ignore_missing_imports|ignore_errors|allow_indirect_imports) = .*$", re.MULTILINE)


def exceptions(source: str) -> list[str]:
    """Return the comments of a source that make an exception."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT and EXCEPTION.search(token.string)]


def without_reason(source: str) -> list[str]:
    """Return the exceptions of a source that have no reason."""
    return [comment for comment in exceptions(source) if not WITH_REASON.search(comment)]


def settings_without_reason(pyproject: str) -> list[str]:
    """Return the exceptions of a pyproject.toml that have no reason."""
    lines = "".join([*TABLE.findall(pyproject), *LIST.findall(pyproject)]).splitlines()
    entries = [line for line in lines if re.search(r'"\s*[,\]]', line.partition("#")[0])]
    return [line.strip() for line in [*entries, *SWITCH.findall(pyproject)] if not re.search(r"# \w", line)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("x = 1  # noqa: S101 - a reason", 0),
        ("x = 1  # noqa: S101, B905 - a reason", 0),
        ("x = 1  # noqa: S101", 1),
        ("x = 1  # noqa - a reason", 1),
        ("# ruff: noqa: S101", 1),
        ("x = 1  # type: ignore[misc]  # a reason", 0),
        ("x = 1  # type: ignore[misc]", 1),
        ("x = 1  # type: ignore", 1),
        ("x = '# noqa: S101'", 0),
    ],
)
def test_a_comment_needs_a_reason(line: str, found: int) -> None:
    assert len(without_reason(f"{line}\n")) == found


def test_a_setting_needs_a_reason() -> None:
    settings = """
[tool.ruff.lint]
ignore = [
  "A",  # a reason
  "B",
]
[tool.ruff.lint.per-file-ignores]
"c/**" = ["C"]  # a reason
"d/**" = ["D"]
"e/**" = [
  "E",
  "F", # a reason
  "G",  # a reason
]
[tool.mypy]
ignore_missing_imports = true
"""
    assert settings_without_reason(settings) == ['"d/**" = ["D"]', '"E",', '"B",', "ignore_missing_imports = true"]


def test_each_comment_has_its_reason() -> None:
    found = {str(path.relative_to(ROOT)): without_reason(path.read_text("utf-8")) for path in SOURCES}
    assert {name: comments for name, comments in found.items() if comments} == {}


def test_each_setting_has_its_reason() -> None:
    assert settings_without_reason((ROOT / "pyproject.toml").read_text("utf-8")) == []


def test_mypy_is_given_exceptions_only_where_it_checks() -> None:
    unchecked = [path for path in SOURCES if not any(path.is_relative_to(folder) for folder in CHECKED_BY_MYPY)]
    assert [path for path in unchecked if "type: ignore" in "".join(exceptions(path.read_text("utf-8")))] == []
