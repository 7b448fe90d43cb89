"""Find the pipeline stages of the source that hold a parameter, and its layout in each stage."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from reshard.errors import DataError
from reshard.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from reshard.checkpoint.inventory import Inventory, TensorEntry
    from reshard.strategy import Strategy

# Layouts of one parameter, each with the pipeline stages that cut it so; the layout of the first stage comes first, and those of
# stages whose strategy does not name it come last.
SourceCuts = tuple[tuple[Layout, tuple[int, ...]], ...]


class SourceStages:
    """The pipeline stages of a source, as its files and its strategy describe them.

    Args:
        inventory: files of the source.
        source: source strategy. None means one rank with whole parameters.
    """

    def __init__(self, inventory: Inventory, source: Strategy | None) -> None:
        self._inventory, self._source = inventory, source
        self._of_structure: dict[int, set[int]] = defaultdict(set)
        for file in inventory.files:
            self._of_structure[file.structure].add(file.rank // (source.devices if source else 1))

    def are_alike(self, structures: tuple[int, ...], named: int) -> bool:
        """Return whether `cuts` returns equal layouts for all parameters with equal arguments except the name.

        Files of several stages may contain slices of different shapes.

        Args:
            structures: positions in `Inventory.structures` of the structures that contain the parameters.
            named: number of stages in which the strategy names them.
        """
        return self._source is None or (named == 1 and len(set().union(*(self._of_structure[n] for n in structures))) == 1)

    def cuts(
        self, name: str, entry: TensorEntry, structures: tuple[int, ...], named: tuple[int, ...]
    ) -> tuple[TensorEntry, SourceCuts]:
        """Return the entry of a parameter in the first stage that holds it, and its layouts in all stages that hold it.

        Args:
            name: name of the parameter in the source.
            entry: entry in the first structure that contains the parameter.
            structures: positions in `Inventory.structures` of the structures that contain the parameter.
            named: stages in which the strategy names the parameter. It may be saved on only one of them.

        Raises:
            DataError: the strategy and the files, or the files of two stages, contradict each other.
        """
        if self._source is None:
            return entry, ((Layout.whole(len(entry.shape)), (0,)),)
        held = set().union(*(self._of_structure[structure] for structure in structures))
        stages = [stage for stage in named if stage in held]
        if not stages:
            raise DataError(
                "StageMismatch",
                f"the source strategy assigns the parameter to stage {', '.join(map(str, named))},"
                f" but files of stage {', '.join(map(str, sorted(held)))} contain it",
                where=f"parameter {name}",
                fix="use the strategy that the source was trained with",
            )
        if len(named) > 1:
            _, entry = next(self._entries(name, structures, stages[0]))
        layouts = {stage: self._source.layout(stage, name, entry.shape, sliced=True) for stage in stages}
        others = self._unnamed(name, structures, held.difference(named), entry, layouts[stages[0]])
        if len(named) > 1:
            self._check_shapes(name, structures, layouts | others)
        return entry, (*_by_layout(layouts), *_by_layout(others))

    def _unnamed(
        self, name: str, structures: tuple[int, ...], stages: AbstractSet[int], entry: TensorEntry, layout: Layout
    ) -> dict[int, Layout]:
        """Return the layouts of stages whose files contain a parameter that their strategy does not name.

        Such a copy is whole, unless it has the shape of another stage's slices, because strategies may omit frozen parameters.

        Args:
            name: name of the parameter in the source.
            structures: positions in `Inventory.structures` of the structures that contain the parameter.
            stages: stages to examine.
            entry: entry in the first stage whose strategy names the parameter.
            layout: layout in that stage.
        """
        whole = whole_shape(name, entry, layout)
        shapes = {stage: next(self._entries(name, structures, stage))[1].shape for stage in sorted(stages)}
        return {stage: Layout.whole(layout.ndim, layout.devices) if shape == whole else layout for stage, shape in shapes.items()}

    def _check_shapes(self, name: str, structures: tuple[int, ...], layouts: dict[int, Layout]) -> None:
        """Refuse files of several stages that imply different shapes of the whole tensor."""
        found = [
            (whole_shape(name, entry, layout), entry, structure)
            for stage, layout in layouts.items()
            for structure, entry in self._entries(name, structures, stage)
        ]
        whole, first, number = found[0]
        for other, _, structure in found:
            if other != whole:
                raise DataError(
                    "RanksDisagree",
                    f"the slices in {self._file_of(number)} add up to a tensor {first.dtype}{list(whole)},"
                    f" but those in {self._file_of(structure)} to {first.dtype}{list(other)}",
                    where=f"parameter {name}",
                    fix="restore files of one training step, and use the strategy that the source was trained with",
                )

    def _entries(self, name: str, structures: tuple[int, ...], stage: int) -> Iterator[tuple[int, TensorEntry]]:
        for number in structures:
            if stage in self._of_structure[number]:
                yield number, next(entry for entry in self._inventory.structures[number].tensors if entry.name == name)

    def _file_of(self, structure: int) -> str:
        return next(file.path for file in self._inventory.files if file.structure == structure)


def _by_layout(layouts: Mapping[int, Layout]) -> SourceCuts:
    found: dict[Layout, list[int]] = defaultdict(list)
    for stage, layout in layouts.items():
        found[layout].append(stage)
    return tuple((layout, tuple(stages)) for layout, stages in found.items())


def whole_shape(name: str, entry: TensorEntry, layout: Layout) -> tuple[int, ...]:
    """Return the shape of the whole tensor, given the slice in a file.

    Raises:
        DataError: the layout has another number of dimensions.
    """
    if layout.ndim != len(entry.shape):
        raise DataError(
            "StrategyShapeMismatch",
            f"the source strategy shards {layout.ndim} dimensions, but the files contain {entry.dtype}{list(entry.shape)}",
            where=f"parameter {name}",
            fix="use the strategy that the source was trained with, in the protobuf form (.ckpt) if this one is JSON",
        )
    return tuple(n * k for n, k in zip(entry.shape, layout.parts, strict=True))
