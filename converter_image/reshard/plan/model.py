"""A model: its parameters, their layouts on both sides, and decisions for all ranks. Frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import DTYPES

if TYPE_CHECKING:
    from reshard.checkpoint.inventory import Inventory
    from reshard.layout import Layout


class Role(Enum):
    """The reason why a parameter is in the target."""

    CUT = "cut"  # both sides define its layout (or hold it whole): resharded
    REPLICATED = "replicated"  # in no strategy: every target rank gets it
    KEPT = "kept"  # only in the source strategy, and requested whole on every rank
    OWN = "own"  # each target rank copies it from the source rank with the same number


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model.

    Attributes:
        name: what the target's files call it.
        dtype: its type in the files.
        shape: lengths of the whole tensor, in elements; of one that each rank has as its own, of that rank's.
        role: why it is where it is.
        source: the source's layout; None: each file that has it has it whole.
        source_stages: the pipeline stages whose layout `source` is, those first that hold it.
        target: the target's layout.
        target_stages: the pipeline stages that get it.
        structures: the positions in `Inventory.structures` that have it.
        source_name: what the source's files call it.
        other_cuts: further layouts in which pipeline stages of the source hold it, each with its stages. They are compared with
            `source` and never read from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role
    source: Layout | None
    source_stages: tuple[int, ...]
    target: Layout
    target_stages: tuple[int, ...]
    structures: tuple[int, ...]
    source_name: str
    other_cuts: tuple[tuple[Layout, tuple[int, ...]], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape of one target rank's slice."""
        return tuple(n // k for n, k in zip(self.shape, self.target.parts, strict=True))

    @property
    def slice_nbytes(self) -> int:
        """Bytes of one target rank's slice."""
        return prod(self.slice_shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Model:
    """Decisions for all ranks.

    Attributes:
        inventory: the source's files.
        source_devices: ranks per pipeline stage of the source.
        source_stages: pipeline stages of the source.
        first_stage: the number of the first of these: not 0 where the source is one stage of several.
        target_devices: ranks per pipeline stage of the target.
        target_stages: pipeline stages of the target.
        parameters: those that are written, in this order.
        source_only: names that only the source's strategy has, and that are therefore left out.
        target_only: names that only the target's strategy has, left out because the user allows it.
        not_in_files: names that the source's strategy has and no file holds.
        zero_size: names of tensors of shape [0], left out since MindSpore loads them from a `.ckpt` as scalars without a value.
        in_other_stages: names that only the target's strategy has, if the source is one stage of several.
        excluded: names of the source's that the patterns of `include` and `exclude` leave out.
        excluded_by_rename: names of the source's that a rename rule leaves out.
        per_rank: names of replicated parameters whose copies may differ, because the user accepts that: a target rank takes the
            copy of its own source rank.
        lowest_replica: whether each slice is read from the lowest rank that holds it.
        inconsistent_replicas: names of parameters whose copies were found to differ between source ranks, and are accepted.
        same: whether the file of each target rank holds what that of the source rank of the same number does.
        unified: whether the target's ranks are parts of one whole, see `reshard.plan.unified`.
    """

    inventory: Inventory
    source_devices: int
    source_stages: int
    target_devices: int
    target_stages: int
    parameters: tuple[Parameter, ...]
    source_only: tuple[str, ...] = ()
    target_only: tuple[str, ...] = ()
    not_in_files: tuple[str, ...] = ()
    zero_size: tuple[str, ...] = ()
    in_other_stages: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    excluded_by_rename: tuple[str, ...] = ()
    per_rank: frozenset[str] = frozenset()
    lowest_replica: bool = False
    inconsistent_replicas: frozenset[str] = frozenset()
    first_stage: int = 0
    same: bool = False
    unified: bool = False

    @property
    def source_names(self) -> frozenset[str]:
        """Names of the parameters in the source's files."""
        return frozenset(entry.name for structure in self.inventory.structures for entry in structure.tensors)

    @property
    def replicated(self) -> tuple[Parameter, ...]:
        """Parameters with dimensions that every target rank gets whole, because they are in no strategy."""
        return tuple(p for p in self.parameters if p.role is Role.REPLICATED and p.shape)

    @property
    def source_ranks(self) -> int:
        """Number of source ranks."""
        return self.source_devices * self.source_stages

    @property
    def first_rank(self) -> int:
        """Lowest number of a source rank."""
        return self.source_devices * self.first_stage

    @property
    def may_be_slices(self) -> tuple[str, ...]:
        """Names of parameters with several elements of which the source may hold rank 0's slice instead of the whole.

        A parameter with one element is nearly always a step or a rate, so only a target strategy that names it is refused.
        """
        suspect = frozenset(self.inventory.may_be_slices)
        return tuple(sorted({p.name for p in self.parameters if p.source_name in suspect and prod(p.shape) > 1}))

    @property
    def target_ranks(self) -> int:
        """Number of target ranks."""
        return self.target_devices * self.target_stages
