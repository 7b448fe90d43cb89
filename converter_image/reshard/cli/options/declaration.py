"""How an option is declared, and the sets of commands that have the same options."""

from __future__ import annotations

from typing import Any, get_args

from reshard.cli.arguments import Word, kebab
from reshard.spec.request import Options

Declared = tuple[frozenset[str], tuple[str, ...], dict[str, Any]]  # commands, names, and settings of click
DEFAULTS = Options()

PLAN = "transform plan"
RANKS = f"{PLAN} fetch"
WRITE = f"{RANKS} convert"
LAYOUT = "layout-check layout-export layout-derive"  # they read the parameters of a checkpoint
SHARED = f"{PLAN} convert"  # targets that several processes may write
REMOTE = f"{WRITE} commit verify inspect diff layout-show layout-infer {LAYOUT}"
RESULTS = f"{REMOTE} run strategy-show version"


def option(commands: str, *names: str, **settings: Any) -> Declared:
    """Return the declaration of an option of these commands, which are separated by spaces."""
    return frozenset(commands.split()), names, settings


def words(kind: Any, default: str | None = None) -> dict[str, Any]:
    """Return the settings of an option whose value is one of an enumeration. The help shows the default."""
    shown = {} if default is None else {"default": kebab(default), "show_default": True}
    return {"type": Word(*get_args(kind)), **shown}
