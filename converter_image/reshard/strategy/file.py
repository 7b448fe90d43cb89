"""One strategy file: a protobuf message or its JSON form, in and out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from reshard.errors import DataError
from reshard.strategy import json_form, protobuf_form
from reshard.strategy.records import LayoutItem, Node, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

from reshard.layout import Layout

# "3-layer.weight": parameter layer.weight of stage 3, as `merge_pipeline_strategys` writes it.
_PREFIXED = re.compile(r"([0-9]{1,6})-(.*)", re.DOTALL)

Form = Literal["protobuf", "json"]


@dataclass(frozen=True, slots=True)
class StrategyFile:
    """What one file says.

    Attributes:
        name: of the file, for messages.
        stages: for each pipeline stage that it describes its parameters' layouts, by name.
        nodes: operators with their stage; no transform needs them, but MindSpore reads the stage from them.
    """

    name: str
    stages: Mapping[int, Mapping[str, Layout]]
    nodes: tuple[Node, ...] = ()

    @property
    def parameters(self) -> dict[str, Layout]:
        """All layouts under the names that the file has for them: with the stage before them when it is a merged one."""
        if len(self.stages) == 1:
            ((stage, layouts),) = self.stages.items()
            if _prefixes(layouts) != {stage}:
                return dict(layouts)
        return {f"{stage}-{name}": layout for stage, layouts in self.stages.items() for name, layout in layouts.items()}


def parse(content: bytes, name: str) -> StrategyFile:
    """Read a strategy file of either form.

    Raises:
        DataError: it is none, or says what cannot be.
    """
    if not content:
        raise DataError("StrategyInvalid", "the file is empty", where=name, fix="give the strategy file that training wrote")
    form = json_form if content.lstrip()[:1] == b"{" else protobuf_form
    record = form.decode(content, name)
    layouts = _layouts(record.layouts, name)
    stages = {node.stage for node in record.nodes} or {0}
    if _prefixes(layouts) == stages:
        by_stage: dict[int, dict[str, Layout]] = {stage: {} for stage in sorted(stages)}
        for prefixed, layout in layouts.items():
            stage, _, plain = prefixed.partition("-")
            by_stage[int(stage)][plain] = layout
        return StrategyFile(name, by_stage, record.nodes)
    if len(stages) > 1:
        raise DataError(
            "StrategyInvalid",
            f"it names the pipeline stages {sorted(stages)[:8]}, but its parameters are not named <stage>-<name> for these",
            where=name,
            fix="merge the stages' files with reshard strategy merge, or give their folder",
        )
    return StrategyFile(name, {stages.pop(): layouts}, record.nodes)


def dump(file: StrategyFile, form: Form) -> bytes:
    """Write a strategy file that this program and MindSpore read."""
    nodes = file.nodes or tuple(Node(f"stage{stage}", stage) for stage in file.stages)
    items = tuple(
        LayoutItem(name, layout.device_matrix, layout.tensor_map, layout.shard_step, layout.shard_size)
        for name, layout in file.parameters.items()
    )
    record = Record(items, nodes)
    return json_form.encode(record) if form == "json" else protobuf_form.encode(record)


def _layouts(items: Iterable[LayoutItem], file: str) -> dict[str, Layout]:
    """Checked layouts by name. Equal ones are one object: a model has many parameters and few ways to cut them."""
    layouts: dict[str, Layout] = {}
    known: dict[tuple[object, ...], Layout] = {}
    for item in items:
        where = f"{file}: parameter {item.name}"
        if item.name in layouts:
            raise DataError("StrategyInvalid", "the file names it twice", where=where)
        _refuse_uneven(item, where)
        key = (item.device_matrix, item.tensor_map, item.shard_step, item.shard_size)
        layout = known.get(key)
        if layout is None:
            layout = Layout(*key)
            try:
                _ = layout.parts  # checks that it does not contradict itself
            except DataError as error:
                raise DataError(error.reason, error.what, where=where, fix=error.fix) from None
            known[key] = layout
        layouts[item.name] = layout
    return layouts


def _refuse_uneven(item: LayoutItem, where: str) -> None:
    if item.field:
        raise DataError("UnevenCut", f"it is cut by fields of {item.field}, which cannot be resharded", where=where)
    if len(set(item.split_shape)) > 1:
        shown = list(item.split_shape[:8])
        raise DataError("UnevenCut", f"it is cut unevenly, into {shown}, which cannot be resharded", where=where)
    if item.split_shape and prod(item.device_matrix) % len(item.split_shape):
        raise DataError("UnevenCut", f"it is cut into {len(item.split_shape)} parts, which its devices cannot share", where=where)


def _prefixes(names: Iterable[str]) -> set[int] | None:
    """The stages before all these names; None when one has none."""
    found = set()
    for name in names:
        match = _PREFIXED.fullmatch(name)
        if match is None:
            return None
        found.add(int(match[1]))
    return found
