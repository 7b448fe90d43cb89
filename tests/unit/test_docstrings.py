"""Examples in docstrings are right, and descriptions of names begin with a noun phrase."""

from __future__ import annotations

import ast
import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest

import reshard

ROOM = Path(reshard.__file__).parent
MODULES = sorted(ROOM.rglob("*.py"))
WITH_EXAMPLES = [path for path in MODULES if ">>> " in path.read_text(encoding="utf-8")]

# Beginnings of descriptions of arguments or attributes that are not noun phrases.
_FRAGMENT = re.compile(
    r"(of|them|which|whom|where|how(?! (many|much|long|often|far))|the same|so|only|relative"
    r"|as (in|it|of)|in|by|with|without|at|after|from|to|into|instead)\b"
)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOM)))
def test_examples_are_right(path: Path) -> None:
    name = ".".join(path.relative_to(ROOM.parent).with_suffix("").parts).removesuffix(".__init__")
    outcome = doctest.testmod(import_module(name))
    assert (outcome.failed, outcome.attempted > 0) == (0, True)


def _descriptions(path: Path) -> list[str]:
    """Return a module's descriptions of arguments and attributes, each as the beginning of its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            for section in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n?)+)", text, re.MULTILINE):
                found += re.findall(r"^    (\w+: .*)", section, re.MULTILINE)
    return found


def test_descriptions_of_names_begin_with_a_noun_phrase() -> None:
    found = [entry for path in MODULES for entry in _descriptions(path)]
    assert len(found) > 500
    assert [entry for entry in found if _FRAGMENT.match(entry.partition(": ")[2])] == []
