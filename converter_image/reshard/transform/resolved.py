"""The layouts that a layout file gives the parameters of a checkpoint, as a transform to it would write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.engine.memory import default_workers
from reshard.mesh.resolve import refuse_unmatched, resolve
from reshard.mesh.sharding import Whole
from reshard.source.reading import read_inventory
from reshard.source.strategies import read_layout_file, read_strategy
from reshard.strategy import StrategyFile
from reshard.transform.inputs import Inputs
from reshard.transform.layouts import derive_shardings, source_model, source_strategy, whole_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.mesh.file import LayoutFile
    from reshard.mesh.resolve import Resolved
    from reshard.mesh.sharding import Derived
    from reshard.plan import Model
    from reshard.spec.layout import Mesh
    from reshard.spec.request import Request
    from reshard.strategy import Strategy


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


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a checkpoint, as a transform reads them.

    Attributes:
        strategy: strategy of the source. None: its files locate the slices, or contain whole parameters.
        model: parameters of the source, as a target of one rank would hold them.
        tensors: whole parameters that a layout file must describe, by their names in the target.
        notes: messages about the source.
    """

    strategy: Strategy | None
    model: Model
    tensors: Mapping[str, Whole]
    notes: tuple[str, ...]

    def resolved(self, file: LayoutFile, derived: Mapping[str, Derived] | None = None) -> ResolvedCheckpoint:
        """Return the layouts of a layout file for these parameters. Parameters without a rule are returned."""
        resolved = resolve(file.document, self.tensors, file.name, derived, incomplete=True)
        others = [Whole(p.target_dtype, p.target_shape) for p in self.model.parameters if p.name not in self.tensors]
        alone = [tensor for name, tensor in self.tensors.items() if tensor.size <= 1 and name not in resolved.assigned]
        return ResolvedCheckpoint(file, self.tensors, resolved, (*others, *alone), (*self.notes, *resolved.notes))


def read_parameters(request: Request) -> Parameters:
    """Read the headers of a checkpoint.

    Args:
        request: source with its strategy and options. Its target is not used.

    Raises:
        DataError, MissingInputError, RequestError: the source is damaged or incomplete, or does not match its strategy.
        AccessError, StorageError: a file cannot be read.
        UsageError: a field of a layout file is invalid.
    """
    inputs = Inputs(request)
    found = inputs.files
    inventory = read_inventory(inputs.store, found, workers=default_workers())
    source, notes = source_strategy(inventory, inputs.strategies[0], request)
    model = source_model(inventory, source, request)
    tensors = whole_tensors(model, has_strategy=source is not None)
    return Parameters(source, model, tensors, (*found.notes, *notes))


def resolve_checkpoint(request: Request, layout: str) -> ResolvedCheckpoint:
    """Apply a layout file to the parameters of a checkpoint. Parameters without a rule are returned.

    Args:
        request: source with its strategy and options. Its target is not used.
        layout: path of the layout file.

    Raises:
        DataError, MissingInputError, RequestError: as for `read_parameters`, or the layout file does not match a parameter.
        AccessError, StorageError: a file cannot be read.
        UsageError: a field of a layout file is invalid.
    """
    file = read_layout_file(layout, request.storage_options.target)
    return read_parameters(request).resolved(file)


def derive_checkpoint(request: Request, file: LayoutFile, witness: tuple[str, Mesh] | None = None) -> ResolvedCheckpoint:
    """Derive the layouts of the parameters of a checkpoint from those of its source.

    Args:
        request: source with its strategy and options. Its target is not used.
        file: layout file of the target, with `derive`. Its rules take precedence.
        witness: path and mesh of a second strategy of the same model.

    Raises:
        DataError, MissingInputError, RequestError: as for `read_parameters`, or the source does not determine a layout.
        AccessError, StorageError: a file cannot be read.
        UsageError: the pipeline stages of the layout file contradict each other.
    """
    found, how = read_parameters(request), file.document.derive
    if found.strategy is None or how is None:
        raise ValueError("a source strategy and its mesh are required")
    strategies = [(found.strategy, how.source_mesh, str(request.source_strategy))]
    if witness is not None:
        strategies.append((read_strategy(witness[0], request.storage_options.source), witness[1], witness[0]))
    derived = derive_shardings(file, found.model, found.tensors, strategies)
    return found.resolved(file, derived)


def strategy_files(found: ResolvedCheckpoint) -> list[StrategyFile]:
    """Return a strategy file for each pipeline stage, with the shapes that MindSpore's compiler requires.

    Raises:
        RequestError: no rule matches a parameter.
    """
    refuse_unmatched(found.resolved.unmatched, found.file.name)
    files = []
    for number, stage in enumerate(found.resolved.strategy.stages):
        layouts = {name: layout.evened(found.tensors[name].shape) or layout for name, layout in stage.items()}
        shapes = {name: found.tensors[name].shape for name in layouts}
        files.append(StrategyFile(f"stage_{number}", {number: layouts}, shapes={number: shapes}))
    return files
