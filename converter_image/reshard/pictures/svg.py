"""A picture as an SVG: the traffic between source and target ranks, and the sharding of parameters.

The file contains no scripts and no references, and is legible on light and dark backgrounds. Names from checkpoint files are
escaped by `_short` and the XML writer. The size of the file is limited, whatever the size of the model.
"""

from __future__ import annotations

from colorsys import hls_to_rgb
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, sqrt
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from reshard.errors import printable
from reshard.pictures.captions import describe, layout, ranks_to_ranks, shape, simplifications, size, source_layout
from reshard.pictures.picture import Limits
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reshard.pictures.picture import Picture
    from reshard.pictures.sharding import CellGrid, Sharding
    from reshard.pictures.traffic import Axis, Traffic

LIMITS = Limits(groups=64, cells=16)
_WIDTH, _MARGIN = 860, 32
_LINE = 20
_GUTTER, _BARS = 84, 132  # left of the matrix for labels, right of it for bars
_PLOT = _WIDTH - 2 * _MARGIN - _GUTTER - _BARS
_GRID = 372  # width of a parameter
_Box = tuple[float, float, float, float]  # left, top, width, height
_STYLE = """
text{font:13px Inter,system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif;fill:#1f2328}
.title{font-size:22px;font-weight:650}.name{font-size:15px;font-weight:600}.small{font-size:11px}
.soft{fill:#59636e}.card{fill:#fff;stroke:#d1d9e0}.plot{fill:#f3f5f8}.flow{fill:#2563eb}.bar{fill:#2563eb;fill-opacity:.55}
.over{fill:#fff}.rule{stroke:#d1d9e0}.stage{stroke:#59636e;stroke-dasharray:4 3}.cell{fill:none;stroke:#1f2328;stroke-width:1.5}
.cut{fill:none;stroke:#59636e;stroke-width:.75;stroke-dasharray:3 3}
.over-cut{paint-order:stroke;stroke:#fff;stroke-opacity:.6;stroke-width:4px;stroke-linejoin:round}
.m{text-anchor:middle}.e{text-anchor:end}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9198a1}.card{fill:#0d1117;stroke:#3d444d}.plot{fill:#161b22}
.flow{fill:#60a5fa}.bar{fill:#60a5fa}.over{fill:#0d1117}.rule{stroke:#3d444d}.stage{stroke:#9198a1}.cell{stroke:#e6edf3}
.cut{stroke:#9198a1}.over-cut{stroke:#0d1117}}
"""


def draw(picture: Picture) -> str:
    """Return a picture as the text of an SVG file, 860 pixels wide.

    Args:
        picture: data of the picture, within `LIMITS`.
    """
    traffic = picture.traffic
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-labelledby": "title desc"})
    title = ranks_to_ranks(traffic)
    _add(root, "title", title, id="title")
    _add(root, "desc", " ".join(describe(traffic)), id="desc")
    ET.SubElement(root, "style").text = _STYLE
    card = _rect(root, (0.5, 0.5, _WIDTH - 1, 0), "card", rx=12)
    pen = _Pen(root, _MARGIN)
    pen.line(title, "title", 28)
    for sentence in describe(traffic):
        pen.line(sentence, "soft")
    pen.down += 12
    _matrix(pen, traffic)
    for sharding in picture.shardings:
        pen.rule()
        _parameter(pen, sharding)
    if picture.notes:
        pen.rule()
    for note in picture.notes:
        pen.line(_short(note, 110), "soft")
    height = round(pen.down + _MARGIN - 12)
    card.set("height", str(height - 1))
    root.attrib |= {"viewBox": f"0 0 {_WIDTH} {height}", "width": str(_WIDTH), "height": str(height)}
    ET.indent(root, "")
    return ET.tostring(root, encoding="unicode") + "\n"


@dataclass(slots=True)
class _Pen:
    """The position of the next line."""

    root: ET.Element
    down: float

    def line(self, text: str, cls: str = "", height: float = _LINE, tip: str | None = None) -> None:
        """Write a line of text from the left margin."""
        _text(self.root, text, _MARGIN, self.down + height - 6, cls, tip)
        self.down += height

    def rule(self) -> None:
        """Draw a horizontal line."""
        self.down += 16
        _add(self.root, "line", cls="rule", x1=_MARGIN, x2=_WIDTH - _MARGIN, y1=self.down, y2=self.down)
        self.down += 14


@dataclass(frozen=True, slots=True)
class _Plot:
    """The geometry of the matrix: its corner, the size of a cell, the gap between cells, and whether numbers fit into cells."""

    left: float
    top: float
    wide: float
    high: float
    gap: float
    labelled: bool

    @property
    def rounded(self) -> float:
        """The radius of rounded corners."""
        return 3.0 if self.labelled else min(self.wide, self.high) / 6


def _matrix(pen: _Pen, traffic: Traffic) -> None:
    rows, columns = len(traffic.source.groups), len(traffic.target.groups)
    labelled = columns <= 8 and rows <= 16
    wide = min(128.0 if labelled else 24.0, _PLOT / columns)
    high = 34.0 if labelled else min(wide, _PLOT / rows)
    left, top = _MARGIN + _GUTTER, pen.down + 34
    plot, root = _Plot(left, top, wide, high, 2.0 if labelled else 0.75, labelled), pen.root
    right, bottom = left + wide * columns, top + high * rows
    _text(root, "target rank", left, top - 26, "soft small")
    _text(root, "source rank", left - 12, top - 8, "soft small e")
    for j, label in _labels(traffic.target, wide, lambda text: 7 * len(text) + 10):
        _text(root, label, left + wide * (j + 0.5), top - 8, "m")
    for i, label in _labels(traffic.source, high, lambda _: 15):
        _text(root, label, left - 12, top + high * (i + 0.5) + 4.5, "e" if traffic.by_source[i] else "e soft")
    _rect(root, (left, top, right - left, bottom - top), "plot", rx=3)
    _cells_of_matrix(root, plot, traffic)
    for i in traffic.source.stages:
        _add(root, "line", cls="stage", x1=left - 8, x2=right + 8, y1=top + high * i, y2=top + high * i)
    for j in traffic.target.stages:
        _add(root, "line", cls="stage", x1=left + wide * j, x2=left + wide * j, y1=top - 4, y2=bottom + 4)
    _read(root, plot, traffic, right + 14)
    _received(root, plot, traffic, bottom + 10)
    pen.down = bottom + (68 if labelled else 54)


def _cells_of_matrix(root: ET.Element, plot: _Plot, traffic: Traffic) -> None:
    """Draw the cells of the matrix. The opacity grows with the square root of the bytes, so that small values are visible."""
    cells, most = _add(root, "g", cls="flow"), max(traffic.nbytes.values(), default=1)
    for (i, j), nbytes in sorted(traffic.nbytes.items()):
        share = 0.12 + 0.88 * sqrt(nbytes / most)
        x, y = plot.left + plot.wide * j, plot.top + plot.high * i
        tip = f"{_group(traffic.source, i)} → {_group(traffic.target, j)}: {size(nbytes)}"
        box = (x + plot.gap / 2, y + plot.gap / 2, plot.wide - plot.gap, plot.high - plot.gap)
        _rect(cells, box, "", tip, rx=plot.rounded, fill_opacity=share)
        if plot.labelled:
            _text(root, size(nbytes), x + plot.wide / 2, y + plot.high / 2 + 4.5, "m over" if share > 0.72 else "m")


def _read(root: ET.Element, plot: _Plot, traffic: Traffic, left: float) -> None:
    """Draw the bytes read from each source group, to the right of the matrix."""
    _text(root, "read", left, plot.top - 8, "soft small")
    for i, nbytes in enumerate(traffic.by_source):
        y, length = plot.top + plot.high * i, 56 * nbytes / max(*traffic.by_source, 1)
        if nbytes:
            tip = f"source rank {_group(traffic.source, i)}: {size(nbytes)}"
            _rect(root, (left, y + plot.gap / 2, length, plot.high - plot.gap), "bar", tip, rx=plot.rounded)
        if plot.high >= 15:
            _text(root, size(nbytes) if nbytes else "unused", left + 6 + length, y + plot.high / 2 + 4, "soft small")


def _received(root: ET.Element, plot: _Plot, traffic: Traffic, top: float) -> None:
    """Draw the bytes that each target group receives, below the matrix."""
    _text(root, "received", plot.left - 12, top + 16, "soft small e")
    for j, nbytes in enumerate(traffic.by_target):
        x, length = plot.left + plot.wide * j, 36 * nbytes / max(*traffic.by_target, 1)
        tip = f"target rank {_group(traffic.target, j)}: {size(nbytes)}"
        _rect(root, (x + plot.gap / 2, top, plot.wide - plot.gap, length), "bar", tip, rx=plot.rounded)
        if plot.labelled:
            _text(root, size(nbytes), x + plot.wide / 2, top + length + 15, "m soft small")


def _parameter(pen: _Pen, sharding: Sharding) -> None:
    parameter = sharding.parameter
    whole = f"{parameter.dtype} {shape(parameter.shape)}, {size(parameter.nbytes)}"
    pen.line(_short(parameter.name, 90), "name", 22, _short(parameter.name, 1000))
    pen.line(whole + "".join(f"; {each}" for each in simplifications(sharding)), "soft")
    pen.down += 8
    lengths = [parameter.shape[i] for i in sharding.dimensions]
    wide, high = float(_GRID), 44.0
    if len(lengths) == 2:
        high = min(max(wide * lengths[0] / max(lengths[1], 1), 112.0), 224.0)
    sides = (("source", sharding.source, source_layout(parameter)), ("target", sharding.target, layout(parameter.target)))
    top = pen.down + 24
    hues = list(_cells(sharding.source, 0, 0, wide, high))
    for side, (name, grid, caption) in enumerate(sides):
        left = _MARGIN + side * (_WIDTH - 2 * _MARGIN - _GRID)
        _text(pen.root, f"{name}: {caption}", left, pen.down + 12, "")
        for number, (x, y, w, h) in enumerate(hues):
            _rect(pen.root, (left + x, top + y, w, h), fill=_hue(number, len(hues)), fill_opacity=0.45)
        if side:
            for x, y, w, h in _boundaries(sharding.source, sharding.target, wide, high):
                _add(pen.root, "line", cls="cut", x1=left + x, y1=top + y, x2=left + x + w, y2=top + y + h)
        cells = list(_cells(grid, left, top, wide, high))
        labels = _fitting(grid.ranks, min(w for _, _, w, _ in cells), min(h for _, _, _, h in cells))
        for ranks, label, (x, y, w, h) in zip(grid.ranks, labels, cells, strict=True):
            _rect(pen.root, (x, y, w, h), "cell", _short(f"{name} rank {format_ranks(ranks)}", 200), rx=2)
            _text(pen.root, label, x + w / 2, y + h / 2 + 4.5, "m over-cut")
    pen.down = top + high


def _cells(grid: CellGrid, left: float, top: float, wide: float, high: float) -> Iterator[_Box]:
    """Yield the box of each cell, row-major. A single dimension runs from left to right."""
    rows, columns = _edges(grid)
    for a, b in pairwise(rows):
        for c, d in pairwise(columns):
            yield left + wide * c, top + high * a, wide * (d - c), high * (b - a)


def _boundaries(source: CellGrid, target: CellGrid, wide: float, high: float) -> Iterator[_Box]:
    """Yield the boundaries of source cells that are not boundaries of target cells."""
    (rows, columns), (others, more) = _edges(source), _edges(target)
    yield from ((0.0, high * at, wide, 0.0) for at in rows if at not in others)
    yield from ((wide * at, 0.0, 0.0, high) for at in columns if at not in more)


def _edges(grid: CellGrid) -> tuple[list[Fraction], list[Fraction]]:
    """Return the boundaries of cells from top to bottom and from left to right, as fractions of the whole."""
    found = [[Fraction(at, k) for at in edges] for edges, k in zip(grid.edges, grid.parts, strict=True)]
    *rows, columns = found or [[Fraction(0), Fraction(1)]]
    return (rows[0] if rows else [Fraction(0), Fraction(1)]), columns


def _labels(axis: Axis, step: float, room: Callable[[str], float]) -> Iterator[tuple[int, str]]:
    """Yield labels at equal distances, as many as fit."""
    texts = [format_ranks(group[:1]) if axis.size > 1 else str(group[0]) for group in axis.groups]
    every = ceil(max(map(room, texts), default=1.0) / step)
    for i in range(0, len(texts), every):
        yield i, texts[i]


def _group(axis: Axis, number: int) -> str:
    return _short(format_ranks(axis.groups[number]), 40)


def _fitting(cells: Sequence[tuple[int, ...]], wide: float, high: float) -> list[str]:
    """Return labels that fit into the smallest cell: all ranks, the first rank and the number of others, or empty labels."""
    for texts in ([format_ranks(ranks) for ranks in cells], [_first(ranks) for ranks in cells]):
        if high >= 13 and max(map(len, texts)) * 7 + 6 <= wide:
            return texts
    return [""] * len(cells)


def _first(ranks: tuple[int, ...]) -> str:
    return f"{ranks[0]} +{len(ranks) - 1}" if len(ranks) > 1 else format_ranks(ranks)


def _short(text: str, most: int) -> str:
    """Return a text, shortened in the middle to at most `most` characters."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def _hue(number: int, total: int) -> str:
    """Return the color of a cell. A small number of cells have distinct hues, and a large number form a continuous scale."""
    red, green, blue = hls_to_rgb((0.6 + 0.82 * number / max(total, 4)) % 1, 0.58, 0.62)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _add(parent: ET.Element, tag: str, text: str | None = None, /, *, cls: str = "", **attributes: str | float) -> ET.Element:
    """Add an element. Underscores in attribute names become hyphens."""
    values = {"class": cls} if cls else {}
    values |= {k.replace("_", "-"): v if isinstance(v, str) else f"{round(v, 2):g}" for k, v in attributes.items()}
    made = ET.SubElement(parent, tag, values)
    made.text = text
    return made


def _rect(parent: ET.Element, box: _Box, cls: str = "", tip: str | None = None, **attributes: str | float) -> ET.Element:
    x, y, width, height = box
    made = _add(parent, "rect", cls=cls, x=x, y=y, width=width, height=height, **attributes)
    if tip is not None:
        _add(made, "title", tip)
    return made


def _text(parent: ET.Element, text: str, x: float, y: float, cls: str, tip: str | None = None) -> None:
    made = _add(parent, "text", text, cls=cls, x=x, y=y)
    if tip is not None and tip != text:
        _add(made, "title", tip)
