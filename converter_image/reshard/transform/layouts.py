"""Layouts of the parameters of a checkpoint: from strategies, or from layout files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reshard.errors import RequestError, UsageError
from reshard.formats.registry import requested_output
from reshard.layout import Layout
from reshard.mesh.file import LayoutFile
from reshard.mesh.scale import Scale, layout_of_chunks, scaled
from reshard.mesh.sharding import Whole
from reshard.plan import build_model, pack_full_tensors, passthrough_model, with_casts
from reshard.plan.parameters import refuse_strategy
from reshard.plan.rules import selection
from reshard.spec.request import request_key

if TYPE_CHECKING:
    from reshard.checkpoint.inventory import Inventory
    from reshard.plan import Model
    from reshard.source.files import Files
    from reshard.spec.layout import LayoutDocument
    from reshard.spec.request import Request
    from reshard.strategy import Strategy
    from reshard.transform.inputs import Strategies

    Layouts = Strategy | LayoutFile | None


@dataclass(frozen=True, slots=True)
class Placed:
    """The parameters of a transform, with their layouts.

    Attributes:
        model: parameters and layouts of both sides.
        source: source strategy. If the request has a layout file, the strategy follows from it.
        target: target strategy, likewise.
        layout: layout file of the target, if there is one.
        notes: messages about layout files.
    """

    model: Model
    source: Strategy | None
    target: Strategy | None
    layout: LayoutDocument | None = None
    notes: tuple[str, ...] = ()

    @property
    def strategies(self) -> tuple[Strategy | None, Strategy | None]:
        """Source strategy and target strategy."""
        return self.source, self.target


def place(inventory: Inventory, source: Layouts, target: Layouts, request: Request, *, only: int | None = None) -> Placed:
    """Match the parameters of a source with the layouts of a request.

    Args:
        inventory: files of the source.
        source: strategy or layout file of the source. None means one rank with whole parameters.
        target: strategy or layout file of the target. None means one rank with whole parameters.
        request: request of the transform.
        only: target rank to write, from files that were selected for it. None means all ranks, from all files.

    Raises:
        DataError, MissingInputError, RequestError: files and layouts contradict each other, see `build_model`, `resolve` and
            `resolve_slices`.
        UsageError: the pipeline stages of a layout file contradict each other.
    """
    options = request.options
    if options.kind.each_file:
        kept = passthrough_model(
            inventory, ranks=options.only_ranks, include=options.include, exclude=options.exclude, rename=options.rename
        )
        return Placed(with_casts(kept, options.cast), None, None)
    source, notes = source_strategy(inventory, source, request)
    layout = target.document if isinstance(target, LayoutFile) else None
    if isinstance(target, LayoutFile):
        target, more = _target_strategy(inventory, source, target, request, only)
        notes = (*notes, *more)
    model = _model(inventory, source, target, request, only)
    if options.kind.whole:
        apart = not requested_output(request_key(request), inventory.format).names_files
        model = pack_full_tensors(model, options.most_bytes, apart=apart)
    return Placed(model, source, target, layout, notes)


def scaled_target(request: Request, strategies: Strategies, found: Files) -> Layouts:
    """Return the strategy or layout file of the target. If the request scales the source's layout, a layout file follows from it.

    Raises:
        RequestError: the layout of the source is unknown, or parameters are renamed.
        UsageError: the axes of the source cannot have these sizes.
    """
    source, target = strategies
    if not isinstance(target, Scale):
        return target
    document = source.document if isinstance(source, LayoutFile) else found.layout
    if document is None and found.boxed is not None:
        document = layout_of_chunks(found.boxed.checkpoint, target, request.source)
    if document is None or request.options.rename:
        what = (
            "the mesh of the source is unknown" if document is None else "the layout of the source has the names before renaming"
        )
        fix = "use a layout file for the target (--target-strategy, spec.target.layout) instead of the scale"
        raise RequestError("MeshUnknown", what, where=request.source, fix=fix)
    return LayoutFile(scaled(document, target), f"layout of the source, scaled by {target.text}")


def known_target(target: Strategy | LayoutFile | Scale | None, stored: LayoutDocument | None) -> Layouts:
    """Return the strategy or layout file of the target, given the layout file in the plan of a task that was started."""
    if isinstance(target, Scale):
        return None if stored is None else LayoutFile(stored, f"layout of the source, scaled by {target.text}")
    return target


def source_strategy(inventory: Inventory, source: Layouts, request: Request) -> tuple[Strategy | None, tuple[str, ...]]:
    """Return the strategy of a source, and messages about its layout file.

    Raises:
        DataError, RequestError, UsageError: as for `place`.
    """
    if not isinstance(source, LayoutFile):
        return source, ()
    from reshard.mesh.slices import resolve_slices  # noqa: PLC0415 - transforms with strategies start faster without it

    if inventory.unified:
        refuse_strategy()
    if source.document.derive is not None:
        raise UsageError(
            "InvalidLayoutFile",
            "`derive` describes a target by its source, so it does not describe a source",
            where=source.name,
            fix="use a layout file with rules; `reshard layout derive [STRATEGY] --layout FILE --checkpoint CHECKPOINT -o"
            " NEW_FILE` writes them from the checkpoint that this one was derived from, and its strategy if it has one",
        )
    wanted = selection(request.options.include, request.options.exclude)
    found = resolve_slices(source.document, _slices(inventory, source), source.name, wanted)
    return found.strategy, found.notes


def _target_strategy(
    inventory: Inventory, source: Strategy | None, target: LayoutFile, request: Request, only: int | None
) -> tuple[Strategy, tuple[str, ...]]:
    """Return the strategy that a layout file gives the parameters of a source, and messages about the file."""
    from reshard.transform.parameters import Parameters  # noqa: PLC0415 - as above

    parameters = Parameters(source, _model(inventory, source, None, request, only), is_selection(request, only))
    found = parameters.resolved(target)
    devices = found.strategy.devices
    single = {
        name: Layout.whole(len(each.shape), devices) for name, each in parameters.tensors.items() if name not in found.assigned
    }
    if source is None and inventory.kind != "Unified":
        single = {}  # what neither side names is replicated
    strategy = replace(found.strategy, stages=tuple({**stage, **single} for stage in found.strategy.stages))
    return strategy, parameters.notes(target, found)


def is_selection(request: Request, only: int | None = None) -> bool:
    """Return whether a request is about some parameters of a checkpoint only."""
    return bool(only is not None or request.options.include or request.options.exclude)


def source_model(inventory: Inventory, source: Strategy | None, request: Request) -> Model:
    """Return the parameters of a source as a target of one rank would hold them.

    Raises:
        DataError, MissingInputError, RequestError: files and layouts contradict each other, see `build_model`.
    """
    return _model(inventory, source, None, request, None)


def _model(inventory: Inventory, source: Strategy | None, target: Strategy | None, request: Request, only: int | None) -> Model:
    options = request.options
    model = build_model(
        inventory,
        source,
        target,
        keep_source_only=options.source_only == "Keep",
        allow_missing=options.allow_missing,
        target_ranks=options.target_ranks,
        only=only,
        one_stage=options.kind.one_stage,
        include=options.include,
        exclude=options.exclude,
        rename=options.rename,
        pad=options.pad,
        allow_inconsistent=options.allow_inconsistent,
        lowest_replica=options.replicas == "LowestRank",
    )
    return with_casts(model, options.cast)


def _slices(inventory: Inventory, source: LayoutFile) -> list[dict[str, Whole]]:
    """Return the slices of all parameters, by pipeline stage."""
    stages: list[dict[str, Whole]] = [{} for _ in range(source.document.stages)]
    devices = source.document.devices
    seen: set[tuple[int, int]] = set()
    for file in inventory.files:
        stage = file.rank // devices
        if stage >= len(stages) or (stage, file.structure) in seen:  # `build_model` refuses ranks that do not exist
            continue
        seen.add((stage, file.structure))
        for entry in inventory.structures[file.structure].tensors:
            stages[stage].setdefault(entry.name, Whole(entry.dtype, entry.shape))
    return stages
