"""Read and write strategy files, as protobuf messages or JSON."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal

from reshard.errors import DataError, RequestError
from reshard.gitlfs import LONGEST_POINTER, refuse_pointer
from reshard.layout import MAX_DEVICES_PER_STAGE, Layout
from reshard.strategy import json_form, protobuf_form
from reshard.strategy.records import MalformedError, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reshard.strategy.records import LayoutRecord, Record

# "3-layer.weight" is the parameter layer.weight of stage 3, as `merge_pipeline_strategys` writes it. "03-" is not such a prefix.
_PREFIXED = re.compile(r"(0|[1-9][0-9]{0,9})-")
# The limit of numpy. MindSpore's limit is 8.
_MAX_DIMENSIONS = 32
_MAX_AXES = 64
# A layout is checked with a table of ranks x dimensions, which takes about 0.1 us and 100 bytes per entry. The limit allows 85
# different layouts of matrices over 16,384 ranks per stage. Models have about ten. Small tables cost at least as much as
# _SMALLEST_TABLE.
_MAX_TABLES = 1 << 22
_SMALLEST_TABLE = 1 << 8

_FIX = "use the strategy file that training wrote"

Form = Literal["protobuf", "json"]


@dataclass(frozen=True, slots=True)
class StrategyFile:
    """The content of one strategy file.

    Attributes:
        name: name of the file, for messages.
        stages: layouts of the parameters of each pipeline stage in the file, by name. Equal layouts are one object.
        nodes: operators with their stage. Transforms do not require them, but MindSpore reads the stage from them. Empty means
            that the file does not state its stage.
        shapes: whole shapes that a JSON file states for each stage, by name, with a length for each entry of the tensor map.
    """

    name: str
    stages: Mapping[int, Mapping[str, Layout]]
    nodes: tuple[Node, ...] = ()
    shapes: Mapping[int, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Layout]:
        """Layouts by their names in the file, which start with the stage in a merged file."""
        return {self._named(stage, name): layout for stage, layouts in self.stages.items() for name, layout in layouts.items()}

    @property
    def stated_shapes(self) -> dict[str, tuple[int, ...]]:
        """Stated shapes by the same names as `parameters`."""
        return {self._named(stage, name): shape for stage, shapes in self.shapes.items() for name, shape in shapes.items()}

    def _named(self, stage: int, name: str) -> str:
        return f"{stage}-{name}" if self._merged else name

    @property
    def _merged(self) -> bool:
        """True if names start with their stage: there are several, or a name would be read as if it did."""
        return len(self.stages) != 1 or any(_prefixes(layouts) == {stage} for stage, layouts in self.stages.items())


def parse(content: bytes, name: str) -> StrategyFile:
    """Read a strategy file of either form.

    The operators in the file determine the stage. `current_stage` is ignored: MindSpore counts in it how often it has saved
    (parallel_strategy_checkpoint.cc), and always writes 1 into a merged file (_parallel_serialization.py).

    Args:
        content: content of the file, whose length the caller limits. The size of the result is limited here.
        name: name of the file, for messages.

    Raises:
        DataError: the content is not a valid strategy file.
    """
    if not content:
        raise DataError("StrategyInvalid", "the file is empty", where=name, fix=_FIX)
    refuse_pointer(content[:LONGEST_POINTER], name)
    form = json_form if re.match(rb"[ \t\r\n]*[{\[]", content) else protobuf_form
    try:
        record = form.decode(content)
    except MalformedError as error:
        hint = "the file may be a checkpoint: " if content.startswith(b"\x0a") else ""
        raise DataError("StrategyInvalid", error.what, where=_where(name, error.where), fix=hint + _FIX) from None
    layouts, shapes = _layouts(record, form.decode_layout, name)
    stages = {node.stage for node in record.nodes} or {0}
    if _prefixes(layouts) == stages:
        by_stage: dict[int, dict[str, Layout]] = {stage: {} for stage in sorted(stages)}
        for prefixed, layout in layouts.items():
            stage, _, plain = prefixed.partition("-")
            by_stage[int(stage)][plain] = layout
        stated: dict[int, dict[str, tuple[int, ...]]] = {}
        for prefixed, shape in shapes.items():
            stage, _, plain = prefixed.partition("-")
            stated.setdefault(int(stage), {})[plain] = shape
        return StrategyFile(name, by_stage, record.nodes, stated)
    if len(stages) > 1:
        raise DataError(
            "StrategyInvalid",
            f"the file describes pipeline stages {sorted(stages)[:8]}, but its parameters are not named <stage>-<name>",
            where=name,
            fix="merge the files of the stages with `reshard strategy merge`, or specify their folder",
        )
    stage_number = stages.pop()
    return StrategyFile(name, {stage_number: layouts}, record.nodes, {stage_number: shapes} if shapes else {})


def dump(file: StrategyFile, form: Form) -> bytes:
    """Write a strategy file that reshard and MindSpore can read.

    MindSpore cannot read the JSON form if several axes split a dimension, or if a parameter has a `-` in its name. Its compiler
    loads a JSON file only with shapes.

    Raises:
        RequestError: a layout is uneven, or a pipeline stage has no parameters. Strategy files have no form for it.
    """
    if uneven := next((name for name, layout in file.parameters.items() if layout.uneven), None):
        raise RequestError(
            "LayoutUneven",
            "strategy files cannot describe a layout that divides a dimension unevenly",
            where=f"parameter {uneven}",
            fix="use a layout file instead of a strategy file, or a layout that divides the dimension evenly",
        )
    if empty := [stage for stage, layouts in file.stages.items() if not layouts]:
        raise RequestError(
            "StageWithoutParameters",
            f"pipeline stage {empty[0]} has no parameters, so no strategy file can describe it",
            where=file.name,
            fix="correct the pipeline stages of the layout, or use a layout file instead of a strategy file",
        )
    nodes = file.nodes or tuple(Node(f"stage{stage}", stage) for stage in file.stages)
    if form == "json":
        return json_form.encode(file.parameters.items(), nodes, nodes[0].stage, file.stated_shapes)
    return protobuf_form.encode(file.parameters.items(), nodes, nodes[0].stage)


def layout_of(message: bytes, name: str) -> Layout:
    """Read one parameter's layout from a serialized `ParallelLayouts` message.

    Args:
        message: serialized message.
        name: name of the parameter, for messages.

    Raises:
        DataError: the message is damaged, contradicts itself, or splits the parameter unevenly.
    """
    try:
        layout = _checked(protobuf_form.decode_layout(message), f"parameter {name}")
    except MalformedError as error:
        raise DataError("StrategyInvalid", error.what, where=f"parameter {name}", fix=_FIX) from None
    _check_parts(layout, _MAX_TABLES, f"parameter {name}")
    return layout


def _layouts(
    record: Record, decode_layout: Callable[[bytes], LayoutRecord], file: str
) -> tuple[dict[str, Layout], dict[str, tuple[int, ...]]]:
    """Return checked layouts by name, and the stated shapes. Equal layouts are one object, because few are distinct."""
    if not record.names:
        raise DataError("StrategyInvalid", "the file contains no parameters", where=file, fix=_FIX)
    known: dict[bytes, Layout] = {}
    shapes: dict[bytes, tuple[int, ...]] = {}
    distinct: dict[Layout, Layout] = {}
    tables = 0
    first_of = dict(zip(reversed(record.layouts), reversed(record.names), strict=True))
    for raw in dict.fromkeys(record.layouts):
        where = _where(file, f"parameter {first_of[raw]}")
        try:
            read = decode_layout(raw)
            layout = _checked(read, where)
        except MalformedError as error:
            raise DataError("StrategyInvalid", error.what, where=where, fix=_FIX) from None
        if layout not in distinct:
            tables += _check_parts(layout, _MAX_TABLES - tables, where)
        known[raw] = distinct.setdefault(layout, layout)
        if read.tensor_shape:
            shapes[raw] = read.tensor_shape
    layouts = dict(zip(record.names, map(known.__getitem__, record.layouts), strict=True))
    if len(layouts) < len(record.names):
        twice = next(name for name, count in Counter(record.names).items() if count > 1)
        raise DataError(
            "StrategyInvalid", "the parameter occurs twice in the file", where=_where(file, f"parameter {twice}"), fix=_FIX
        )
    parameters = zip(record.names, record.layouts, strict=True) if shapes else ()
    return layouts, {name: shapes[raw] for name, raw in parameters if raw in shapes}


def _checked(record: LayoutRecord, where: str) -> Layout:
    """Return the layout of a record, which must have few axes and dimensions, and divide evenly."""
    if len(record.device_matrix) > _MAX_AXES or len(record.tensor_map) > _MAX_DIMENSIONS:
        raise DataError(
            "StrategyInvalid",
            f"the layout has {len(record.device_matrix)} device axes and {len(record.tensor_map)} dimensions",
            where=where,
            fix=_FIX,
        )
    if record.tensor_shape and len(record.tensor_shape) != len(record.tensor_map):
        raise DataError(
            "StrategyInvalid",
            f"the shape has {len(record.tensor_shape)} dimensions, but the tensor map has {len(record.tensor_map)}",
            where=where,
            fix=_FIX,
        )
    if record.field:
        raise DataError(
            "UnevenCut",
            f"the parameter is split into field slices of length {record.field}, which cannot be resharded",
            where=where,
            fix="use a strategy that divides the parameter evenly",
        )
    layout = Layout(record.device_matrix, record.tensor_map, record.shard_step, record.shard_size)
    split = record.split_shape
    if split and (len(set(split)) > 1 or split[0] < 1 or len(split) != _cuts(layout)):
        raise DataError(
            "UnevenCut",
            f"the parameter is split into slices of lengths {list(split[:8])} instead of evenly by its tensor map,"
            " which cannot be resharded",
            where=where,
            fix="use a strategy that divides the parameter evenly",
        )
    return layout


def _cuts(layout: Layout) -> int:
    """Return the number of slices along dimension 0. 0 means that there is no dimension 0, or its axis does not exist."""
    axes = layout.device_matrix[::-1]
    if not layout.tensor_map or any(not 0 <= axis < len(axes) for axis in layout.tensor_map[0]):
        return 0
    return prod(axes[axis] for axis in layout.tensor_map[0])


def check_tables(layouts: Iterable[Layout], where: str) -> None:
    """Check distinct layouts of a damaged or malicious document: that they are consistent, and that their tables are small.

    Raises:
        DataError: they are not.
    """
    room = _MAX_TABLES
    for layout in layouts:
        if len(layout.device_matrix) > _MAX_AXES or layout.ndim > _MAX_DIMENSIONS:
            raise DataError("StrategyInvalid", "a layout has too many axes or dimensions", where=where, fix=_FIX)
        room -= _check_parts(layout, room, where)


def _check_parts(layout: Layout, room: int, where: str) -> int:
    """Check that the layout is consistent. Return the number of entries of its table, which is limited."""
    entries = max(layout.devices * (layout.ndim + 1), _SMALLEST_TABLE)
    if layout.devices <= MAX_DEVICES_PER_STAGE and entries > room:
        raise DataError(
            "StrategyTooLarge",
            f"the file has too many distinct layouts; the limit was reached at a layout of {layout.devices} ranks",
            where=where,
            fix=_FIX,
        )
    try:
        _ = layout.parts
    except DataError as error:
        raise DataError(error.reason, error.what, where=where, fix=error.fix or _FIX) from None
    return entries


def _prefixes(names: Iterable[str]) -> set[int] | None:
    """Return the stages that all names start with, or None if a name has no such prefix."""
    found = set()
    for name in names:
        match = _PREFIXED.match(name)
        if match is None:
            return None
        found.add(int(match[1]))
    return found


def _where(file: str, place: str | None) -> str:
    return f"{file}: {place}" if place else file
