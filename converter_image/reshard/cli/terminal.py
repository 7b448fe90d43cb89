"""The picture of a plan in characters. Loaded only where one is drawn."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from rich.box import SQUARE
from rich.table import Table
from rich.text import Text

from reshard.cli import words
from reshard.cli.drawn import rendered, width
from reshard.cli.show import size
from reshard.errors import printable
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from reshard.plan import Cuts, Traffic
    from reshard.plan.cuts import Grid

MOST_GROUPS, MOST_CELLS = 32, 8
_SHADES = " ░▒▓█"
_BAR = 24


def picture(flow: Traffic, drawn: Sequence[Cuts], notes: Sequence[str] = ()) -> str:
    """The picture as text.

    Args:
        flow: bytes between ranks, of at most `MOST_GROUPS` groups on a side.
        drawn: parameters, of at most `MOST_CELLS` cells along a dimension.
        notes: a line each, at the end.
    """
    told = [Text(line) for line in (words.ranks_to_ranks(flow), *words.told(flow))]
    parameters = [each for found in drawn for each in _parameter(found)]
    return rendered(Text(), *told, Text(), _matrix(flow), *parameters, *(Text(f"\n{note}") for note in notes))


def _matrix(flow: Traffic) -> Table:
    columns = len(flow.target.groups)
    said = columns * 10 + _BAR + 20 <= width()  # the numbers fit
    labels = [str(group[0]) for group in flow.target.groups]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1) if said else 0)
    table.add_column("source \\ target", justify="right")
    for label in labels if said else ["  " + "".join(_ruler(labels))]:
        table.add_column(label, justify="right" if said else "left", no_wrap=True)
    table.add_column("read from it", no_wrap=True)
    most = max(flow.nbytes.values(), default=1)
    sent = flow.by_source
    for i, group in enumerate(flow.source.groups):
        row = [flow.nbytes.get((i, j), 0) for j in range(columns)]
        cells = [Text(size(n), style=_style(n / most)) if n else Text("·", style="dim") for n in row]
        if not said:
            cells = [Text("  " + "".join(_shade(n / most) for n in row) + "  ", style="blue")]
        bar = "█" * round(_BAR * sent[i] / max(*sent, 1))
        table.add_row(str(group[0]), *cells, Text.assemble((bar, "blue"), f" {size(sent[i])}" if sent[i] else "not read"))
    return table


def _ruler(labels: Sequence[str]) -> list[str]:
    """Labels of columns that are two wide, as many as fit."""
    every = max(map(len, labels), default=0) // 2 + 1
    return [label.ljust(2 * every) for label in labels[::every]]


def _shade(share: float) -> str:
    return 2 * _SHADES[max(1, round(sqrt(share) * (len(_SHADES) - 1))) if share else 0]


def _style(share: float) -> str:
    """Blue on which the number is legible, on any terminal."""
    weak = sqrt(share) < 0.6
    return "black on #b9d0fb" if weak else "white on #2563eb"


def _parameter(found: Cuts) -> list[RenderableType]:
    parameter = found.parameter
    about = "; ".join((f"{parameter.dtype} {words.shape(parameter.shape)}, {size(parameter.nbytes)}", *words.drawn_as(found)))
    sides = Table.grid(padding=(0, 4))
    sides.add_row(f"source: {words.source_layout(parameter)}", "→", f"target: {words.layout(parameter.target)}")
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
