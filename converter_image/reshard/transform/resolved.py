"""The layouts that a layout file gives the parameters of a checkpoint, as a transform to it would write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.engine.memory import default_workers
from reshard.mesh.evidence import Meshed
from reshard.mesh.problems import raise_all
from reshard.mesh.sharding import Whole
from reshard.source.reading import read_inventory
from reshard.source.strategies import read_strategy
from reshard.strategy import StrategyFile
from reshard.transform.inputs import Inputs, refuse_contradictions, source_layouts
from reshard.transform.layouts import is_selection, source_model, source_strategy
from reshard.transform.parameters import Parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.mesh.file import LayoutFile
    from reshard.mesh.resolve import Resolved
    from reshard.spec.layout import Mesh
    from reshard.spec.request import Request


@dataclass(frozen=True, slots=True)
class Witness:
    """A second strategy of the model of a checkpoint.

    Attributes:
        path: its file, or its folder with a file for each pipeline stage.
        mesh: axes of its ranks.
        expert_mesh: other axes of the ranks of one stage. None means that it shows nothing about experts.
    """

    path: str
    mesh: Mesh
    expert_mesh: Mesh | None = None


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


def read_parameters(request: Request) -> tuple[Parameters, tuple[str, ...]]:
    """Read the headers of a checkpoint.

    Args:
        request: source with its strategy and options. Its target is not used.

    Returns:
        The parameters, and messages about the source.

    Raises:
        DataError, MissingInputError, RequestError: the source is damaged or incomplete, or does not match its strategy or its
            manifest.
        AccessError, StorageError: a file cannot be read.
        UsageError: a field of a layout file is invalid.
    """
    inputs = Inputs(request)
    found, given = inputs.files, inputs.strategies[0]
    inventory = read_inventory(inputs.store, found, workers=default_workers())
    source, notes = source_strategy(inventory, source_layouts(request, given, found), request)
    model = source_model(inventory, source, request)
    refuse_contradictions(request, found, given, source, model)
    return Parameters(source, model, is_selection(request)), (*found.notes, *notes)


def resolve_checkpoint(request: Request, file: LayoutFile, witness: Witness | None = None) -> ResolvedCheckpoint:
    """Apply a layout file to the parameters of a checkpoint, as a transform does. Parameters without a rule are returned.

    Args:
        request: source with its strategy and options. Its target is not used.
        file: layout file of the target.
        witness: second strategy of the same model, for `derive`.

    Raises:
        DataError, MissingInputError, RequestError: as for `read_parameters`, or the layout file does not match a parameter, or
            the source does not determine its layout.
        AccessError, StorageError: a file cannot be read.
        UsageError: a field of a layout file is invalid.
    """
    parameters, notes = read_parameters(request)
    witnesses = []
    if witness is not None:
        strategy = read_strategy(witness.path, request.storage_options.source)
        witnesses.append(Meshed(strategy, witness.mesh, witness.expert_mesh, witness.path))
    tensors = parameters.tensors
    resolved = parameters.resolved(file, witnesses, incomplete=True)
    others = [Whole(p.target_dtype, p.target_shape) for p in parameters.model.parameters if p.name not in tensors]
    alone = [tensor for name, tensor in tensors.items() if tensor.size <= 1 and name not in resolved.assigned]
    return ResolvedCheckpoint(file, tensors, resolved, (*others, *alone), (*notes, *parameters.notes(file, resolved)))


def strategy_files(found: ResolvedCheckpoint) -> list[StrategyFile]:
    """Return a strategy file for each pipeline stage, with the shapes that MindSpore's compiler requires.

    Raises:
        RequestError: no rule matches a parameter.
    """
    raise_all(found.resolved.refusals)
    files = []
    for number, stage in enumerate(found.resolved.strategy.stages):
        layouts = {name: layout.evened(found.tensors[name].shape) or layout for name, layout in stage.items()}
        shapes = {name: found.tensors[name].shape for name in layouts}
        files.append(StrategyFile(f"stage_{number}", {number: layouts}, shapes={number: shapes}))
    return files
