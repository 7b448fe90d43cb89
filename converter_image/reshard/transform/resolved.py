"""The layouts that a layout file gives the parameters of a checkpoint, as a transform to it would write them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reshard.engine.memory import default_workers
from reshard.errors import DataError, RequestError
from reshard.mesh.resolve import refuse_unmatched, resolve
from reshard.mesh.sharding import Whole
from reshard.source.reading import read_inventory
from reshard.source.strategies import read_layout_file
from reshard.strategy import StrategyFile
from reshard.transform.inputs import Inputs
from reshard.transform.layouts import source_model, source_strategy, whole_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.layout import Layout
    from reshard.mesh.file import LayoutFile
    from reshard.mesh.resolve import Resolved
    from reshard.spec.request import Request


@dataclass(frozen=True, slots=True)
class ResolvedCheckpoint:
    """The parameters of a checkpoint, with the layouts of a layout file.

    Attributes:
        file: layout file.
        tensors: whole parameters that the layout file must describe, by name.
        resolved: their layouts. Parameters that no rule matches have none.
        others: tensors that every rank holds whole, such as those that the source strategy does not name.
        notes: messages about the source and the layout file.
    """

    file: LayoutFile
    tensors: Mapping[str, Whole]
    resolved: Resolved
    others: tuple[Whole, ...]
    notes: tuple[str, ...]


def resolve_checkpoint(request: Request, layout: str) -> ResolvedCheckpoint:
    """Read the headers of a checkpoint, and apply a layout file to its parameters. Parameters without a rule are returned.

    Args:
        request: source with its strategy and options, without a target strategy. Its target is not used.
        layout: path of the layout file.

    Raises:
        DataError, MissingInputError, RequestError: the source is damaged or incomplete, or does not match its strategy or the
            layout file.
        AccessError, StorageError: a file cannot be read.
        UsageError: a field of a layout file is invalid.
    """
    file, inputs = read_layout_file(layout, request.storage_options.target), Inputs(request)
    (before, _), found = inputs.strategies, inputs.files
    inventory = read_inventory(inputs.store, found, workers=default_workers())
    source, notes = source_strategy(inventory, before, request)
    model = source_model(inventory, source, request)
    tensors = whole_tensors(model, has_strategy=source is not None)
    resolved = resolve(file.document, tensors, file.name, incomplete=True)
    unlisted = [p for p in model.parameters if p.name not in tensors]
    alone = [tensor for name, tensor in tensors.items() if tensor.size <= 1 and name not in resolved.assigned]
    others = (*(Whole(p.target_dtype, p.target_shape) for p in unlisted), *alone)
    return ResolvedCheckpoint(file, tensors, resolved, others, (*found.notes, *notes, *resolved.notes))


def strategy_files(found: ResolvedCheckpoint) -> list[StrategyFile]:
    """Return a strategy file for each pipeline stage, with the shapes that MindSpore's compiler requires.

    Raises:
        RequestError: no rule matches a parameter, or a pipeline stage has no parameters.
    """
    refuse_unmatched(found.resolved.unmatched, found.file.name)
    files = []
    for number, stage in enumerate(found.resolved.strategy.stages):
        if not stage:
            raise RequestError(
                "StageWithoutParameters",
                f"pipeline stage {number} has no parameters, so no strategy file can describe it",
                where=found.file.name,
                fix="correct `pipeline` or the number of stages (`pp`) in the layout file; or use the layout file itself",
            )
        layouts = {name: _even(layout, found.tensors[name].shape) for name, layout in stage.items()}
        shapes = {name: found.tensors[name].shape for name in stage}
        files.append(StrategyFile(f"stage_{number}", {number: layouts}, shapes={number: shapes}))
    return files


def _even(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """Return a layout that strategy files can describe, if the axes divide a shape evenly although they need not."""
    even = replace(layout, uneven=False)
    try:
        even.box(shape, 0)
    except DataError:
        return layout
    return even
