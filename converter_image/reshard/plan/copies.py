"""Find the copies of a parameter on several source ranks that must be equal, and select the blocks of them to compare.

There are two kinds of copies. A parameter that no strategy names is whole in every file that contains it. A slice that the source
strategy assigns to several ranks (a replica) is the same in the files of all these ranks. Pipeline stages that share a parameter
may shard it in different ways. Copies are therefore compared region by region. A region is a cell of the coarsest grid that
refines the layouts of all stages, so each rank holds either all of a region or nothing of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from functools import cached_property
from itertools import product, repeat, takewhile
from math import lcm, prod
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from reshard.checkpoint.dtypes import DTYPES
from reshard.layout import cell_box
from reshard.layout.box import Box, shifted, strides
from reshard.layout.tiles import next_tile
from reshard.plan.model import Role
from reshard.plan.replicas import Holders

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.layout import Layout
    from reshard.plan.geometry import Cell
    from reshard.plan.model import Kind, Model, Parameter
    from reshard.plan.stages import SourceCuts

# Parameters in no strategy up to this size, such as steps and learning rates, are compared on every rank; only the smallest.
SMALL_BYTES = 4 << 10
_SMALL_NAMES = 64
# Last components of the names under which MindSpore and its toolkits save the progress of training: compared first.
_PROGRESS_NAMES = frozenset(
    ("global_step", "step_num", "epoch_num", "current_iterator_step", "last_overflow_iterator_step", "beta1_power", "beta2_power")
)
# The size of a sampled block, and how many bytes a transform writes for each block that may be read. A request to an object store
# takes as long as the transfer of several MiB.
_BLOCK_BYTES = 16 << 10
_BYTES_PER_BLOCK = 8 << 20
_BYTES_PER_REMOTE_BLOCK = 512 << 20
_FEWEST_BLOCKS = 256
_FEWEST_REMOTE_BLOCKS = 128
_MOST_BLOCKS = 1 << 16


class Block(NamedTuple):
    """A box of a parameter that several ranks hold."""

    parameter: Parameter
    box: Box


Blocks = dict[int, list[Block]]  # by the source rank that they are to be read at
_Pair = tuple[Block, int, int]  # a block, and two ranks that are compared by it


def most_blocks(nbytes: int, *, remote: bool) -> int:
    """Return the maximum number of sampled blocks for a transform that writes `nbytes` bytes.

    One block of 16 KiB is read for each 8 MiB, which is 0.2 % of the bytes. Over a network, one block is read for each 512 MiB,
    for which a transform makes about a hundred requests. Small checkpoints get a constant number of blocks, which are read in
    less time than a transform takes to start.
    """
    if remote:
        return min(max(nbytes // _BYTES_PER_REMOTE_BLOCK, _FEWEST_REMOTE_BLOCKS), _MOST_BLOCKS)
    return min(max(nbytes // _BYTES_PER_BLOCK, _FEWEST_BLOCKS), _MOST_BLOCKS)


class Copies:
    """The copies of a model's parameters in the source's files.

    Attributes:
        unnamed: parameters that no strategy names and that several files hold.
        replicas: parameters that the source strategy names and that have elements in the files of several ranks.
    """

    def __init__(self, model: Model) -> None:
        self._model, self._holders = model, Holders(model)
        self._found: dict[object, tuple[int, ...]] = {}
        own = (kind for kind in model.kinds if kind.role is Role.OWN)
        kinds = {kind for kind in model.kinds if 0 not in kind.shape and self._has_copies(kind)}.difference(own)
        several = {p.source_name: p for p in model.parameters if p.kind in kinds}.values() if kinds else ()
        self.unnamed = tuple(p for p in several if p.source is None)
        self.replicas = tuple(p for p in several if p.source is not None)

    def regions(self, parameter: Parameter, rank: int) -> Iterator[Block]:
        """Yield the regions of a parameter that a rank and at least one other rank hold."""
        cells = [range(1)] * len(parameter.shape)
        if parameter.source is not None:
            if (layout := self._layout(parameter, rank)) is None:
                return
            cells = _cells(parameter, layout, rank % self._model.source_devices)
        for cell in product(*cells):
            if len(self.holders(parameter, cell)) > 1:
                yield Block(parameter, cell_box(parameter.shape, _grid(parameter), cell))

    def holders(self, parameter: Parameter, cell: Cell) -> tuple[int, ...]:
        """Return the ranks whose files hold a region, in ascending order."""
        if parameter.source is None:
            return self._holders.of_structures(parameter.structures)[0]
        key = (parameter.source, parameter.source_stages, parameter.other_cuts, parameter.structures, cell)
        found = self._found.get(key)
        if found is None:
            _, holding = self._holders.of_structures(parameter.structures)
            grid, devices, ranks = _grid(parameter), self._model.source_devices, []
            for layout, stages in _layouts(parameter):
                inside = tuple(i * k // n for i, k, n in zip(cell, layout.parts, grid, strict=True))
                ranks += [stage * devices + local for stage in stages for local in layout.holders[inside]]
            found = self._found[key] = tuple(sorted(holding.intersection(ranks)))
        return found

    def holders_of(self, block: Block) -> tuple[int, ...]:
        """Return the ranks whose files hold the elements of a block within one region, in ascending order."""
        lengths = [n // k for n, k in zip(block.parameter.shape, _grid(block.parameter), strict=True)]
        return self.holders(block.parameter, tuple(a // n for a, n in zip(block.box.start, lengths, strict=True)))

    def at(self, rank: int, block: Block) -> tuple[TensorEntry, Box]:
        """Return the location of a block in a rank's file: the entry of the parameter, and the box within its slice."""
        parameter, origin = block.parameter, (0,) * len(block.parameter.shape)
        if (layout := self._layout(parameter, rank)) is not None:
            origin = cell_box(parameter.shape, layout.parts, layout.cells[rank % self._model.source_devices]).start
        return self._holders.entry(rank, parameter.source_name), block.box.relative_to(origin)

    @cached_property
    def nbytes(self) -> int:
        """Size of all copies in bytes."""
        total = 0
        for parameter in (*self.unnamed, *self.replicas):
            parts = prod(parameter.source.parts) if parameter.source is not None else 1
            total += len(self._holders.of_structures(parameter.structures)[0]) * parameter.nbytes // parts
        return total

    def of_rank(self, rank: int) -> Iterator[Block]:
        """Yield the regions of all parameters that a rank and at least one other rank hold."""
        structure = self._holders.structure_of[rank]
        for parameter in (*self._unnamed_in.get(structure, ()), *self._replicas_in.get(structure, ())):
            yield from self.regions(parameter, rank)

    @cached_property
    def small(self) -> tuple[Parameter, ...]:
        """Small parameters that no strategy names. They are compared on every rank."""
        found = sorted(
            (p for p in self.unnamed if p.nbytes <= SMALL_BYTES),
            key=lambda p: (not is_progress(p.source_name), p.nbytes),
        )
        return tuple(found[:_SMALL_NAMES])

    @cached_property
    def progress(self) -> tuple[Parameter, ...]:
        """Replicas that contain the progress of training. They are compared on every rank."""
        return tuple(p for p in self.replicas if is_progress(p.source_name) and p.nbytes <= SMALL_BYTES)[:_SMALL_NAMES]

    def sample(self, most: int, *, replicas: bool) -> Blocks:
        """Return the blocks to compare, by rank. The selection is deterministic.

        Small parameters that no strategy names, and replicas that contain the progress of training, are compared on every rank.
        The other blocks are used to compare pairs of ranks. At most half of them are blocks of larger parameters that no strategy
        names. The others are blocks of replicas: each turn compares each rank by another parameter, until all parameters of all
        ranks are compared or `most` blocks are selected.

        Args:
            most: maximum number of blocks, not counting those of small parameters.
            replicas: whether to also compare replicas that do not contain the progress of training.
        """
        chosen, unnamed = _Chosen(), self._pairs_of_unnamed()
        if replicas and self.replicas:
            chosen.take(unnamed, most // 2)
            chosen.take(self._pairs_of_replicas(), most)
        chosen.take(unnamed, most)
        for parameter in self.small:
            for rank in self._holders.of_structures(parameter.structures)[0]:
                chosen.add(rank, Block(parameter, Box.whole(parameter.shape)))
        for parameter in self.progress:
            for rank in self._holders.of_structures(parameter.structures)[0]:
                for block in self.regions(parameter, rank):
                    chosen.add(rank, block)
        return dict(chosen.blocks)

    def _pairs_of_unnamed(self) -> Iterator[_Pair | None]:
        large = sorted(set(self.unnamed) - set(self.small), key=lambda p: (_seed(p.source_name), p.source_name))
        most = max((len(self.holders(p, ())) for p in large), default=0)
        for turn in range(most - 1):
            for parameter in large:
                first, *others = self.holders(parameter, ())
                if turn < len(others):
                    seed = _seed(parameter.source_name, turn)
                    other = others[(_seed(parameter.source_name) + turn) % len(others)]
                    yield _tile(Block(parameter, Box.whole(parameter.shape)), seed), first, other

    def _pairs_of_replicas(self) -> Iterator[_Pair | None]:
        ranks = sorted(self._holders.structure_of, key=lambda rank: (_seed(str(rank)), rank))
        turns = max((len(found) for found in self._replicas_in.values()), default=0)
        for turn in range(turns):
            for number, rank in enumerate(ranks):
                found = self._replicas_in.get(self._holders.structure_of[rank], ())
                if turn < len(found):
                    yield self._pair(found[(number + turn) % len(found)], rank, turn)

    def _pair(self, parameter: Parameter, rank: int, turn: int) -> _Pair | None:
        """Return a block of a parameter, the given rank and another rank that holds the block, or None if there is none."""
        if (layout := self._layout(parameter, rank)) is None:
            return None
        seed = _seed(parameter.source_name, turn)
        cells = _cells(parameter, layout, rank % self._model.source_devices)
        cell = tuple(found[(seed >> 8 * axis) % len(found)] for axis, found in enumerate(cells))
        holders = self.holders(parameter, cell)
        if len(holders) < 2:
            return None
        other = holders[0] if rank != holders[0] else holders[1]
        region = Block(parameter, cell_box(parameter.shape, _grid(parameter), cell))
        return _tile(region, seed), min(rank, other), max(rank, other)

    @cached_property
    def _unnamed_in(self) -> Mapping[int, list[Parameter]]:
        return _by_structure(self.unnamed)

    @cached_property
    def _replicas_in(self) -> Mapping[int, list[Parameter]]:
        return _by_structure(self.replicas)

    def _has_copies(self, kind: Kind) -> bool:
        ranks, _ = self._holders.of_structures(kind.structures)
        if kind.source is None:
            return len(ranks) > 1
        devices = self._model.source_devices
        stages = (stage for _, several in _layouts(kind) for stage in several)
        files = sum(bisect_left(ranks, (s + 1) * devices) - bisect_left(ranks, s * devices) for s in stages)
        return files > prod(kind.source.parts)

    def _layout(self, parameter: Parameter, rank: int) -> Layout | None:
        """Return the layout by which a rank holds a parameter, or None if it holds the parameter whole or not at all."""
        stage = rank // self._model.source_devices
        return next((layout for layout, stages in _layouts(parameter) if stage in stages), None)


class _Chosen:
    """The blocks that are selected so far."""

    def __init__(self) -> None:
        self.blocks: Blocks = defaultdict(list)
        self._seen: set[tuple[int, str, Box]] = set()

    def take(self, pairs: Iterator[_Pair | None], most: int) -> None:
        """Select blocks from pairs until `most` blocks are selected. The number of examined pairs is limited too."""
        room = takewhile(lambda _: len(self._seen) + 2 <= most, repeat(None, 4 * most))
        for _, pair in zip(room, pairs, strict=False):
            if pair is not None:
                block, *ranks = pair
                for rank in ranks:
                    self.add(rank, block)

    def add(self, rank: int, block: Block) -> None:
        """Select a block of a rank, unless it is already selected."""
        key = (rank, block.parameter.source_name, block.box)
        if key not in self._seen:
            self._seen.add(key)
            self.blocks[rank].append(block)


def is_progress(name: str) -> bool:
    """Return whether a parameter with this name contains the progress of training."""
    return name.rpartition(".")[2] in _PROGRESS_NAMES


def equal_files(model: Model) -> tuple[int, ...]:
    """Return the ranks whose files look like the file of a lower rank, although the strategy assigns them different slices.

    Files are compared by length and sampled content. Different files that contain few distinct values may therefore look alike.
    """
    cuts: dict[int, set[tuple[Layout, tuple[int, ...]]]] = defaultdict(set)
    for kind in model.kinds:
        for structure in kind.structures:
            cuts[structure].update(_layouts(kind))
    alike: dict[tuple[int, int, str], list[int]] = defaultdict(list)
    for file in model.inventory.files:
        alike[file.structure, file.size, file.sample or file.version].append(file.rank)

    def slices(rank: int, structure: int) -> list[Cell]:
        stage, local = divmod(rank, model.source_devices)
        return [layout.cells[local] for layout, stages in cuts[structure] if stage in stages]

    return tuple(
        rank
        for (structure, *_), (first, *others) in alike.items()
        for rank in others
        if slices(rank, structure) != slices(first, structure)
    )


def _layouts(parameter: Parameter | Kind) -> SourceCuts:
    return () if parameter.source is None else ((parameter.source, parameter.source_stages), *parameter.other_cuts)


def _grid(parameter: Parameter) -> tuple[int, ...]:
    """Return the number of regions along each dimension."""
    if parameter.source is None:
        return (1,) * len(parameter.shape)
    if not parameter.other_cuts:
        return parameter.source.parts
    return tuple(lcm(*counts) for counts in zip(*(layout.parts for layout, _ in _layouts(parameter)), strict=True))


def _cells(parameter: Parameter, layout: Layout, local: int) -> list[range]:
    """Return the regions that a rank of a stage holds, as positions along each dimension of the grid."""
    each = (n // k for n, k in zip(_grid(parameter), layout.parts, strict=True))
    return [range(i * n, (i + 1) * n) for i, n in zip(layout.cells[local], each, strict=True)]


def _by_structure(parameters: tuple[Parameter, ...]) -> Mapping[int, list[Parameter]]:
    found: dict[int, list[Parameter]] = defaultdict(list)
    for parameter in parameters:
        for structure in parameter.structures:
            found[structure].append(parameter)
    return found


def _tile(region: Block, seed: int) -> Block:
    """Return one contiguous block of a region."""
    shape, most = region.box.shape, _BLOCK_BYTES // DTYPES[region.parameter.dtype].itemsize
    if region.box.size <= most:
        return region
    steps = strides(shape)
    axis = next(axis for axis, step in enumerate(steps) if step <= most)
    count = most // steps[axis]
    outer, inner = divmod(seed % (prod(shape[:axis]) * -(-shape[axis] // count)), -(-shape[axis] // count))
    found = next_tile(shape, (outer * shape[axis] + inner * count) * steps[axis], most)
    return Block(region.parameter, shifted(found, region.box.start))


def spread(shape: tuple[int, ...], dtype: str) -> tuple[Box, ...]:
    """Return blocks at the start, in the middle and at the end of a tensor, or one block with all of a small tensor."""
    most = _BLOCK_BYTES // DTYPES[dtype].itemsize
    size = prod(shape)
    if size <= 4 * most:
        return (Box.whole(shape),)
    return tuple(dict.fromkeys(next_tile(shape, position, most) for position in (0, size // 2, size - most)))


def _seed(name: str, turn: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"), turn)
