"""The charts of a plan: their data, and charts made of characters. This module is imported only when a chart is drawn."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from rich.box import SQUARE
from rich.table import Table
from rich.text import Text

from reshard.cli import format as fmt
from reshard.cli import svg
from reshard.cli.format import size
from reshard.cli.request import matching
from reshard.cli.terminal import rendered, width
from reshard.errors import UsageError, printable
from reshard.plan import cuts, traffic
from reshard.spec.ranks import format_ranks
from reshard.storage import open_store, parent_and_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from reshard.plan import Cuts, Traffic
    from reshard.plan.cuts import Grid
    from reshard.storage.protocol import Store
    from reshard.transform.plan import PlanResult

MOST_GROUPS, MOST_CELLS = 32, 8
_MOST_PARAMETERS = 16
_SVG_START = b"<svg "
_SHADES = " ░▒▓█"
_BAR = 24


def write_svg(planned: PlanResult, patterns: Iterable[str], path: str) -> None:
    """Write the chart of a plan to an SVG file.

    Args:
        planned: plan to draw.
        patterns: names or glob patterns of the parameters whose sharding is drawn.
        path: path of the SVG file.

    Raises:
        MissingInputError: a pattern matches no parameter.
        UsageError: the file exists and is not an SVG written by reshard.
    """
    drawn, notes = _parameters(planned, patterns, svg.MOST_CELLS)
    flow = traffic(planned.planner, tuple(planned.summary.sources), svg.MOST_GROUPS)
    folder, name = parent_and_name(path)
    _refuse_other_files(open_store(folder), name, path)
    open_store(folder).write(name, svg.svg(flow, drawn, notes).encode(), mode=None)


def _refuse_other_files(store: Store, name: str, path: str) -> None:
    """Refuse to replace a file of another kind, because it may be the only copy.

    Raises:
        UsageError: the file exists and is not an SVG written by reshard.
    """
    found = store.stat(name)
    if found is None:
        return
    if not found.is_folder and found.size:
        reader = store.open(name)
        try:
            if reader.read(0, min(len(_SVG_START), reader.size)) == _SVG_START:
                return
        finally:
            reader.close()
    raise UsageError(
        "FileExists",
        "output file exists and is not an SVG written by reshard",
        where=path,
        fix="choose another name, or delete the file",
    )


def chart(planned: PlanResult, patterns: Iterable[str]) -> str:
    """Return the chart of a plan for a terminal.

    Raises:
        MissingInputError: a pattern matches no parameter.
    """
    drawn, notes = _parameters(planned, patterns, MOST_CELLS)
    flow = traffic(planned.planner, tuple(planned.summary.sources), MOST_GROUPS)
    return text(flow, drawn, notes)


def _parameters(planned: PlanResult, patterns: Iterable[str], most: int) -> tuple[list[Cuts], list[str]]:
    """Return the parameters to draw, and notes about those that are not drawn.

    A parameter that pipeline stages shard differently is drawn once for each layout.
    """
    model = planned.planner.model
    names = set(wanted := matching((p.name for p in model.parameters), patterns))
    found = sorted((p for p in model.parameters if p.name in names), key=lambda p: wanted.index(p.name))
    left = len(found) - _MOST_PARAMETERS
    notes = [f"{left} more matching parameters are not drawn"] if left > 0 else []
    return [cuts(model, parameter, most) for parameter in found[:_MOST_PARAMETERS]], notes


def text(flow: Traffic, drawn: Sequence[Cuts], notes: Sequence[str] = ()) -> str:
    """Return a chart as text.

    Args:
        flow: number of bytes between ranks, with at most `MOST_GROUPS` groups on each side.
        drawn: sharding of parameters, with at most `MOST_CELLS` cells along each dimension.
        notes: lines to print at the end.
    """
    head = [Text(line) for line in (fmt.ranks_to_ranks(flow), *fmt.describe(flow))]
    parameters = [each for found in drawn for each in _parameter(found)]
    return rendered(Text(), *head, Text(), _matrix(flow), *parameters, *(Text(f"\n{note}") for note in notes))


def _matrix(flow: Traffic) -> Table:
    columns = len(flow.target.groups)
    numeric = columns * 10 + _BAR + 20 <= width()  # the numbers fit into the cells
    labels = [str(group[0]) for group in flow.target.groups]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1) if numeric else 0)
    table.add_column("source \\ target", justify="right")
    for label in labels if numeric else ["  " + "".join(_ruler(labels))]:
        table.add_column(label, justify="right" if numeric else "left", no_wrap=True)
    table.add_column("read", no_wrap=True)
    most = max(flow.nbytes.values(), default=1)
    sent = flow.by_source
    for i, group in enumerate(flow.source.groups):
        row = [flow.nbytes.get((i, j), 0) for j in range(columns)]
        cells = [Text(size(n), style=_style(n / most)) if n else Text("·", style="dim") for n in row]
        if not numeric:
            cells = [Text("  " + "".join(_shade(n / most) for n in row) + "  ", style="blue")]
        bar = "█" * round(_BAR * sent[i] / max(*sent, 1))
        table.add_row(str(group[0]), *cells, Text.assemble((bar, "blue"), f" {size(sent[i])}" if sent[i] else "unused"))
    return table


def _ruler(labels: Sequence[str]) -> list[str]:
    """Return as many column labels as fit. Each column is two characters wide."""
    every = max(map(len, labels), default=0) // 2 + 1
    return [label.ljust(2 * every) for label in labels[::every]]


def _shade(share: float) -> str:
    return 2 * _SHADES[max(1, round(sqrt(share) * (len(_SHADES) - 1))) if share else 0]


def _style(share: float) -> str:
    """Return a style with a shade of blue on which numbers are legible on any terminal."""
    weak = sqrt(share) < 0.6
    return "black on #b9d0fb" if weak else "white on #2563eb"


def _parameter(found: Cuts) -> list[RenderableType]:
    parameter = found.parameter
    about = "; ".join((f"{parameter.dtype} {fmt.shape(parameter.shape)}, {size(parameter.nbytes)}", *fmt.simplifications(found)))
    sides = Table.grid(padding=(0, 4))
    sides.add_row(f"source: {fmt.source_layout(parameter)}", "→", f"target: {fmt.layout(parameter.target)}")
    sides.add_row(_grid(found.source), "", _grid(found.target))
    return [Text(), Text.assemble((printable(parameter.name), "bold"), f"  {about}"), sides]


def _grid(grid: Grid) -> Table:
    table = Table(box=SQUARE, show_header=False, show_lines=True)
    columns = len(grid.edges[-1]) - 1 if grid.edges else 1
    for at in range(0, len(grid.ranks), columns):
        table.add_row(*map(_ranks, grid.ranks[at : at + columns]))
    return table


def _ranks(ranks: tuple[int, ...]) -> str:
    text = format_ranks(ranks)
    return text if len(text) <= 11 else f"{ranks[0]} +{len(ranks) - 1}"
