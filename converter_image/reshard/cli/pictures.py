"""The pictures of a plan: what is drawn of it, and where it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.cli.arguments import matching
from reshard.errors import UsageError
from reshard.plan import cuts, traffic
from reshard.storage import open_store, parent_and_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.plan import Cuts
    from reshard.storage.protocol import Store
    from reshard.transform.plan import PlanResult

_MOST_PARAMETERS = 16
_BEGINNING = b"<svg "  # of a picture


def write_svg(planned: PlanResult, patterns: Iterable[str], path: str) -> None:
    """Write the picture to a file.

    Args:
        planned: the plan that is drawn.
        patterns: names of parameters whose cuts are drawn, or patterns.
        path: the path of the SVG file.

    Raises:
        MissingInputError: there is no such parameter.
        UsageError: something else than a picture is there already.
    """
    from reshard.cli import svg  # noqa: PLC0415 - as in `show`: only what draws loads it

    drawn, notes = _parameters(planned, patterns, svg.MOST_CELLS)
    flow = traffic(planned.planner, tuple(planned.summary.sources), svg.MOST_GROUPS)
    folder, name = parent_and_name(path)
    _refuse_other_files(open_store(folder), name, path)
    open_store(folder).write(name, svg.svg(flow, drawn, notes).encode(), mode=None)


def _refuse_other_files(store: Store, name: str, path: str) -> None:
    """What is no picture may be the only copy of something.

    Raises:
        UsageError: there is such a file.
    """
    found = store.stat(name)
    if found is None:
        return
    if not found.is_folder and found.size:
        reader = store.open(name)
        try:
            if reader.read(0, min(len(_BEGINNING), reader.size)) == _BEGINNING:
                return
        finally:
            reader.close()
    raise UsageError("FileExists", "it is there, and no picture", where=path, fix="choose another name, or take it away")


def in_characters(planned: PlanResult, patterns: Iterable[str]) -> str:
    """The same for a terminal.

    Raises:
        MissingInputError: there is no such parameter.
    """
    from reshard.cli import terminal  # noqa: PLC0415 - as above

    drawn, notes = _parameters(planned, patterns, terminal.MOST_CELLS)
    flow = traffic(planned.planner, tuple(planned.summary.sources), terminal.MOST_GROUPS)
    return terminal.picture(flow, drawn, notes)


def _parameters(planned: PlanResult, patterns: Iterable[str], most: int) -> tuple[list[Cuts], list[str]]:
    """What is drawn of parameters, and what is said of those that are not. One that stages cut differently is drawn for each."""
    model = planned.planner.model
    names = set(wanted := matching((p.name for p in model.parameters), patterns))
    found = sorted((p for p in model.parameters if p.name in names), key=lambda p: wanted.index(p.name))
    left = len(found) - _MOST_PARAMETERS
    notes = [f"{left} more parameters match and are not drawn"] if left > 0 else []
    return [cuts(model, parameter, most) for parameter in found[:_MOST_PARAMETERS]], notes
