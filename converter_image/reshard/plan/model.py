"""The model of a transform: parameters, their source and target layouts, and decisions for all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import pairwise, starmap
from math import prod
from operator import attrgetter, eq
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.dtypes import DTYPES
from reshard.plan.pad import within

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.checkpoint.inventory import Inventory
    from reshard.layout import Layout
    from reshard.layout.box import Box
    from reshard.model import Placement, Shards  # noqa: TC004 - msgspec needs the types of fields only to decode
    from reshard.spec.rules import FloatType


class Role(Enum):
    """The reason why a parameter is in the target."""

    CUT = "cut"  # both sides define its layout (or hold it whole): resharded
    REPLICATED = "replicated"  # in no strategy: every target rank gets it
    KEPT = "kept"  # only in the source strategy, and requested whole on every rank
    OWN = "own"  # each target rank copies it from the source rank with the same number


@dataclass(frozen=True, eq=False)
class Kind:
    """The properties that parameters of the same type, shape and layouts share. Large models have few kinds.

    Parameters of one kind share the object, so that what is calculated for the kind can be cached by identity.

    Attributes:
        dtype: type in the files, see `reshard.checkpoint.dtypes`.
        shape: shape of the whole tensor, in elements. For the role OWN: shape of the rank's tensor.
        role: reason why the parameter is in the target.
        source: layout in the source. None means that metadata locates its shards, see `placement`, or that each file that
            contains it contains it whole.
        source_stages: pipeline stages of the source with the layout `source`. Stages that hold the parameter come first.
        target: layout in the target.
        target_stages: pipeline stages of the target that hold the parameter.
        structures: positions in `Inventory.structures` of the structures that contain the parameter.
        other_cuts: other layouts of the parameter in the source, each with its pipeline stages. Slices in these layouts are
            compared with those in the layout `source`, but never copied.
        placement: tiles of the parameter and their files, if the metadata of the source locates its shards.
        cast: type to which it is cast. None: it keeps its type.
        new_shape: shape of the whole tensor in the target, if it is padded or trimmed.
        per_rank: whether it is replicated, and its copies may differ. A target rank gets the copy of the source rank that
            corresponds to it.
    """

    dtype: str
    shape: tuple[int, ...]
    role: Role
    source: Layout | None
    source_stages: tuple[int, ...]
    target: Layout
    target_stages: tuple[int, ...]
    structures: tuple[int, ...]
    other_cuts: tuple[tuple[Layout, tuple[int, ...]], ...] = ()
    placement: Placement | None = None
    cast: FloatType | None = None
    new_shape: tuple[int, ...] | None = None
    per_rank: bool = False

    @property
    def target_dtype(self) -> str:
        """Type in the target's files."""
        return self.cast or self.dtype

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor in the target."""
        return self.new_shape or self.shape

    def box(self, rank: int) -> Box:
        """Return the elements that a target rank (within its stage) holds."""
        return self.target.box(self.target_shape, rank)

    def nbytes_at(self, rank: int) -> int:
        """Bytes of the source that a target rank (within its stage) needs. Padding is not a part of the source."""
        if self.target.uneven or self.new_shape is not None:
            return within(self.box(rank), self.shape).size * DTYPES[self.dtype].itemsize
        return self.slice_nbytes

    @cached_property
    def nbytes(self) -> int:
        """Size of the whole tensor in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @cached_property
    def slice_shape(self) -> tuple[int, ...]:
        """Shape of the largest slice, in elements. All slices have this shape, unless the target's layout is `uneven`."""
        return tuple(-(-n // k) for n, k in zip(self.target_shape, self.target.parts, strict=True))

    @cached_property
    def slice_nbytes(self) -> int:
        """Size of the largest slice in the source's type, in bytes."""
        return prod(self.slice_shape) * DTYPES[self.dtype].itemsize

    @cached_property
    def written_nbytes(self) -> int:
        """Size of the largest slice in the target's type, in bytes."""
        return prod(self.slice_shape) * DTYPES[self.target_dtype].itemsize


class Parameter(msgspec.Struct, frozen=True, gc=False):
    """One parameter of the model. There may be millions, so most consist of their names and a reference to their kind.

    Attributes:
        name: name in the target's files.
        source_name: name in the source's files.
        kind: everything else that parameters may have in common.
        shards: location of each shard, if the metadata of the source lists them.
    """

    name: str
    source_name: str
    kind: Kind
    shards: Shards | None = None

    @property
    def dtype(self) -> str:
        """See `Kind.dtype`."""
        return self.kind.dtype

    @property
    def target_dtype(self) -> str:
        """See `Kind.target_dtype`."""
        return self.kind.target_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Kind.shape`."""
        return self.kind.shape

    @property
    def target_shape(self) -> tuple[int, ...]:
        """See `Kind.target_shape`."""
        return self.kind.target_shape

    @property
    def new_shape(self) -> tuple[int, ...] | None:
        """See `Kind.new_shape`."""
        return self.kind.new_shape

    @property
    def cast(self) -> FloatType | None:
        """See `Kind.cast`."""
        return self.kind.cast

    @property
    def role(self) -> Role:
        """See `Kind.role`."""
        return self.kind.role

    @property
    def source(self) -> Layout | None:
        """See `Kind.source`."""
        return self.kind.source

    @property
    def source_stages(self) -> tuple[int, ...]:
        """See `Kind.source_stages`."""
        return self.kind.source_stages

    @property
    def other_cuts(self) -> tuple[tuple[Layout, tuple[int, ...]], ...]:
        """See `Kind.other_cuts`."""
        return self.kind.other_cuts

    @property
    def target(self) -> Layout:
        """See `Kind.target`."""
        return self.kind.target

    @property
    def target_stages(self) -> tuple[int, ...]:
        """See `Kind.target_stages`."""
        return self.kind.target_stages

    @property
    def structures(self) -> tuple[int, ...]:
        """See `Kind.structures`."""
        return self.kind.structures

    @property
    def nbytes(self) -> int:
        """See `Kind.nbytes`."""
        return self.kind.nbytes

    @property
    def slice_shape(self) -> tuple[int, ...]:
        """See `Kind.slice_shape`."""
        return self.kind.slice_shape

    @property
    def slice_nbytes(self) -> int:
        """See `Kind.slice_nbytes`."""
        return self.kind.slice_nbytes

    @property
    def written_nbytes(self) -> int:
        """See `Kind.written_nbytes`."""
        return self.kind.written_nbytes

    def of_kind(self, kind: Kind) -> Parameter:
        """Return the parameter with another kind."""
        return Parameter(self.name, self.source_name, kind, self.shards)

    def box(self, rank: int) -> Box:
        """See `Kind.box`."""
        return self.kind.box(rank)

    def nbytes_at(self, rank: int) -> int:
        """See `Kind.nbytes_at`."""
        return self.kind.nbytes_at(rank)


@dataclass(frozen=True)
class Model:
    """The parameters of a transform, and decisions for all ranks.

    Attributes:
        inventory: files of the source.
        source_devices: number of ranks per pipeline stage of the source.
        source_stages: number of pipeline stages of the source.
        first_stage: number of the first pipeline stage of the source. It is not 0 if the source is one of several stages.
        target_devices: number of ranks per pipeline stage of the target.
        target_stages: number of pipeline stages of the target.
        parameters: parameters to write, in this order.
        source_only: names that only the source strategy contains. These parameters are omitted.
        target_only: names that only the target strategy contains. The request allows them to be omitted.
        not_in_files: names that the source strategy contains, but no file.
        zero_size: names of tensors of shape [0]. They are omitted, because MindSpore loads them from a `.ckpt` file as scalars
            without a value.
        in_other_stages: names that only the target strategy contains, if the source is one of several pipeline stages.
        objects: names of values that are not tensors, omitted because the format of the target cannot hold them.
        excluded: names of source parameters that the patterns of `include` and `exclude` omit.
        excluded_by_rename: names of source parameters that a rename rule omits.
        lowest_replica: whether each slice is read from the lowest rank that holds it.
        inconsistent_replicas: names of parameters whose copies differ between source ranks, which the request accepts.
        same: whether each target rank's file contains the tensors of the source rank with the same number.
        unified: whether the target's ranks are the files of a unified checkpoint, see `reshard.plan.balance`.
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
    objects: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    excluded_by_rename: tuple[str, ...] = ()
    lowest_replica: bool = False
    inconsistent_replicas: frozenset[str] = frozenset()
    first_stage: int = 0
    same: bool = False
    unified: bool = False

    @property
    def distinct_names(self) -> int:
        """Number of different names of parameters."""
        ordered = sorted(map(attrgetter("name"), self.parameters))  # a set would take more memory
        return len(ordered) - [*starmap(eq, pairwise(ordered))].count(True)

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """Kinds of the parameters, each once, in the order of the first parameter of each."""
        return tuple(dict.fromkeys(map(attrgetter("kind"), self.parameters)))

    def of_kinds(self, wanted: Callable[[Kind], bool]) -> tuple[Parameter, ...]:
        """Return the parameters of the kinds for which a function returns true. Most functions do so for few kinds or none."""
        kinds = set(filter(wanted, self.kinds))
        return tuple([p for p in self.parameters if p.kind in kinds]) if kinds else ()

    @property
    def per_rank(self) -> frozenset[str]:
        """Names of the parameters whose copies may differ."""
        return frozenset(p.name for p in self.of_kinds(lambda kind: kind.per_rank))

    @property
    def source_names(self) -> frozenset[str]:
        """Names of the parameters in the source's files."""
        return frozenset((*self.inventory.names, *self.inventory.unread))

    @property
    def replicated(self) -> tuple[Parameter, ...]:
        """Parameters with dimensions that every target rank gets whole, because no strategy names them."""
        return self.of_kinds(lambda kind: kind.role is Role.REPLICATED and bool(kind.shape))

    @property
    def source_unit(self) -> str:
        """Unit of `source_ranks`: "files" if the files of the source do not belong to ranks, otherwise "ranks"."""
        return "files" if self.inventory.unified else "ranks"

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
        """Names of parameters with several elements for which the source may hold only rank 0's slice.

        A parameter with one element is usually a step or a rate, so it is refused only if the target strategy names it.
        """
        if not self.inventory.may_be_slices:
            return ()
        suspect = frozenset(self.inventory.may_be_slices)
        return tuple(sorted({p.name for p in self.parameters if p.source_name in suspect and prod(p.shape) > 1}))

    @property
    def target_ranks(self) -> int:
        """Number of target ranks."""
        return self.target_devices * self.target_stages
