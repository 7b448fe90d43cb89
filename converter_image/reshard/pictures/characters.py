"""A picture made of characters, for a terminal. This module is imported only when such a picture is drawn."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from rich.box import SQUARE
from rich.table import Table
from rich.text import Text

from reshard.errors import printable
from reshard.pictures.captions import describe, layout, ranks_to_ranks, shape, simplifications, size, source_layout
from reshard.pictures.picture import Limits
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from reshard.pictures.picture import Picture
    from reshard.pictures.sharding import CellGrid, Sharding
    from reshard.pictures.traffic import Traffic

LIMITS = Limits(groups=32, cells=8)
_SHADES = " ░▒▓█"
_BAR = 24


def draw(picture: Picture, width: int) -> list[RenderableType]:
    """Return a picture as renderables of rich, one below the other.

    Args:
        picture: data of the picture, within `LIMITS`.
        width: width of the terminal in characters.
    """
    traffic = picture.traffic
    head = [Text(line) for line in (ranks_to_ranks(traffic), *describe(traffic))]
    parameters = [each for sharding in picture.shardings for each in _parameter(sharding)]
    return [Text(), *head, Text(), _matrix(traffic, width), *parameters, *(Text(f"\n{note}") for note in picture.notes)]


def _matrix(traffic: Traffic, width: int) -> Table:
    columns = len(traffic.target.groups)
    numeric = columns * 10 + _BAR + 20 <= width  # the numbers fit into the cells
    labels = [str(group[0]) for group in traffic.target.groups]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1) if numeric else 0)
    table.add_column("source \\ target", justify="right")
    for label in labels if numeric else ["  " + "".join(_ruler(labels))]:
        table.add_column(label, justify="right" if numeric else "left", no_wrap=True)
    table.add_column("read", no_wrap=True)
    most = max(traffic.nbytes.values(), default=1)
    sent = traffic.by_source
    for i, group in enumerate(traffic.source.groups):
        row = [traffic.nbytes.get((i, j), 0) for j in range(columns)]
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


def _parameter(sharding: Sharding) -> list[RenderableType]:
    parameter = sharding.parameter
    about = "; ".join((f"{parameter.dtype} {shape(parameter.shape)}, {size(parameter.nbytes)}", *simplifications(sharding)))
    sides = Table.grid(padding=(0, 4))
    sides.add_row(f"source: {source_layout(parameter)}", "→", f"target: {layout(parameter.target)}")
    sides.add_row(_grid(sharding.source), "", _grid(sharding.target))
    return [Text(), Text.assemble((printable(parameter.name), "bold"), f"  {about}"), sides]


def _grid(grid: CellGrid) -> Table:
    table = Table(box=SQUARE, show_header=False, show_lines=True)
    columns = len(grid.edges[-1]) - 1 if grid.edges else 1
    for at in range(0, len(grid.ranks), columns):
        table.add_row(*map(_ranks, grid.ranks[at : at + columns]))
    return table


def _ranks(ranks: tuple[int, ...]) -> str:
    text = format_ranks(ranks)
    return text if len(text) <= 11 else f"{ranks[0]} +{len(ranks) - 1}"
