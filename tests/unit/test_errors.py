"""Every error in the source code has a location and a remedy, and its reason is in the catalogue."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from catalogue import CATALOGUE, in_state
from pages import ROOT

import reshard_operator
from reshard import errors
from reshard.cli.commands import cli
from reshard.errors import DOCUMENTATION, ReshardError, documentation
from reshard.progress import CancelledError
from reshard_operator import diagnosis
from reshard_operator.status import WAITING

PACKAGE = Path(errors.__file__).parent
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, ReshardError)}
LAYOUT = {(f"layout/__init__.py:{function}", field) for function in ("_check_axes", "_check_shard") for field in ("where", "fix")}
CELL = {(f"layout/__init__.py:{function}", field) for function in ("_check_dimensions", "cell_box") for field in ("where", "fix")}
# Errors that lack a field, and why.
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


def test_every_error_names_a_place_and_a_remedy() -> None:
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
def test_errors_without_a_place_or_a_remedy_are_found(
    call: str, lacking: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text(f"def function():\n    raise {call}\n")
    assert places(tmp_path / "module.py") == {("module.py:function", field) for field in lacking}


# Options of other programs that remedies name.
OPTIONS_OF_OTHERS = {
    *("--backend", "--ckpt-convert-format", "--ckpt-convert-save", "--ckpt-format", "--dist-ckpt-optim-fully-reshardable"),
    *("--local_dir", "--safe_serialization", "--target_dir"),
}


def named_options(tree: ast.Module) -> set[str]:
    """Return the options that texts of a module name, without those of docstrings."""
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr)
    }
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
    )
    return {option for text in texts for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]*[a-z]", text)}


def options_of(command: click.Command) -> set[str]:
    """Return the options of a command and of its subcommands."""
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    own = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*map(options_of, inner))


def test_options_in_messages_exist() -> None:
    known = {"--help", *options_of(cli)}
    named = {option for path in PACKAGE.rglob("*.py") for option in named_options(ast.parse(path.read_text("utf-8")))}
    assert named - known - OPTIONS_OF_OTHERS == set()
    assert named >= OPTIONS_OF_OTHERS


def test_options_in_messages_are_found() -> None:
    tree = ast.parse('"""Docstring --a-b."""\nraise DataError("R", f"what {x} --no-such", where="w", fix="omit --other: --x")\n')
    assert named_options(tree) == {"--no-such", "--other"}


def reasons(tree: ast.Module) -> set[tuple[str, int]]:
    """Return the reasons of the errors that a module makes, each with an exit code.

    A reason is a constant, a parameter with constant arguments, or a local variable with constant values.
    """
    tables = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    found = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if not (isinstance(call.func, ast.Name) and call.func.id in KINDS and call.args):
                continue
            first = call.args[0]
            values = [first]
            if isinstance(first, ast.Attribute):  # the reason of another error
                continue
            if isinstance(first, ast.Name):
                values = [*arguments(tree, function, first.id), *assigned(function, first.id)]
                names = {node.id for value in values for node in ast.walk(value) if isinstance(node, ast.Name)} & set(tables)
                values += [node.elts[0] for name in names for node in ast.walk(tables[name]) if isinstance(node, ast.Tuple)]
            code = getattr(errors, call.func.id).exit_code
            found |= {(node.value, code) for value in values for node in ast.walk(value) if is_reason(node)}
    return found


def arguments(tree: ast.Module, function: ast.FunctionDef, parameter: str) -> list[ast.expr]:
    """Return the default of a parameter, and its arguments in all calls in the module."""
    made = function.args
    found = [value for each, value in zip(made.kwonlyargs, made.kw_defaults, strict=True) if each.arg == parameter and value]
    position = next((number for number, each in enumerate(made.args) if each.arg == parameter), None)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == function.name:
            found += [keyword.value for keyword in call.keywords if keyword.arg == parameter]
            found += call.args[position : position + 1] if position is not None else []
    return found


def assigned(function: ast.FunctionDef, name: str) -> list[ast.expr]:
    """Return the values that a function assigns to a variable, alone or together with others."""
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(isinstance(each, ast.Name) and each.id == name for target in node.targets for each in ast.walk(target))
    ]


def is_reason(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch("[A-Z][A-Za-z]+", node.value) is not None
    )


def test_the_catalogue_has_every_reason_with_its_exit_codes() -> None:
    paths = [*PACKAGE.rglob("*.py"), *Path(reshard_operator.__file__).parent.glob("*.py")]
    found: dict[str, set[int]] = {"Terminated": {130, CancelledError.exit_code}}  # the number of the signal counts
    for path in paths:
        for reason, code in reasons(ast.parse(path.read_text("utf-8"))):
            found.setdefault(reason, set()).add(code)
    assert {reason: set(entry["exitCodes"]) for reason, entry in CATALOGUE.items() if "exitCodes" in entry} == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('def f():\n raise DataError("One", "what")', {("One", 65)}),
        ('def f(reason="x", *, kind="One"):\n raise DataError(kind, "what")\nf(kind="Two")', {("One", 65), ("Two", 65)}),
        ('def f(a, reason):\n raise UsageError(reason, "what")\nf(1, "One")', {("One", 2)}),
        ('def f():\n reason, fix = "One" if x else "Two", "a fix"\n raise DataError(reason, "w")', {("One", 65), ("Two", 65)}),
        ('T = {"Code": ("One", 1)}\ndef f():\n reason = T["x"]\n raise DataError(reason, "w")', {("One", 65)}),
        ("def f():\n raise DataError(error.reason, error.what)", set()),
    ],
)
def test_reasons_are_found_in_code(code: str, found: set[tuple[str, int]]) -> None:
    assert reasons(ast.parse(code)) == found


# What the kubelet of Kubernetes 1.37 states for a container that it cannot start. Any other reason is passed on as well.
OF_CONTAINERS = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "PostStartHookError",
    "RegistryUnavailable",
    "RunContainerError",
    "SignatureValidationFailed",
}


def test_the_catalogue_has_the_operators_states() -> None:
    assert in_state("waiting") == WAITING
    assert in_state("stuck") == diagnosis._CANNOT_PREPARE | OF_CONTAINERS  # noqa: SLF001 - the table itself
    code = "".join(path.read_text("utf-8") for path in Path(reshard_operator.__file__).parent.glob("*.py"))
    others = in_state("running", "queued", "suspended", "complete", "failed")
    assert {reason for reason in others if f'"{reason}"' not in code} == set()


def test_the_catalogue_is_in_order_and_whole() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)
    for reason, entry in CATALOGUE.items():
        fields = {"exitCodes", "state", "meaning", "remedy", "command"}
        assert {"meaning"} < set(entry) <= fields, reason
        assert ("remedy" in entry) == (entry.get("state") not in {"running", "queued", "suspended", "complete"}), reason
        assert ("command" in entry) == (entry.get("state") in {"waiting", "stuck", "failed"}), reason


def test_the_page_of_errors_is_generated_from_the_catalogue() -> None:
    script = ROOT / "scripts" / "error_catalogue.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "errors.md").read_text() == done.stdout, "run make docs"
    for reason in CATALOGUE:
        assert documentation(reason) == f"{DOCUMENTATION}/errors/#{reason.lower()}"
        assert f"\n## {reason}\n" in done.stdout
