"""The index of a source: one document with all information that a rank requires before it reads data.

A plan writes it for the pods of its ranks (`.reshard/<transform>/inventory.json`). With `output: Index`, the commit keeps it
(`reshard-index.json`), so that every rank of a training task can load its slices without reading the source's headers again. It
lists files by paths relative to the source and by versions. The reader provides the location of the source, so that an index from
an untrusted origin cannot refer to another one.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

import msgspec

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.encryption import Known
from reshard.checkpoint.inventory import Inventory
from reshard.checkpoint.manifest import INDEX_NAME, decode
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.spec.layout import LayoutDocument
from reshard.spec.request import STRICTNESS, Replicas, SourceOnly, TargetRanks, Verification
from reshard.spec.rules import CastRule, PadRule, Patterns, RenameRule
from reshard.storage import open_store
from reshard.strategy.packed import PackedStrategy, unpack

if TYPE_CHECKING:
    from reshard.checkpoint.inventory import Structure
    from reshard.spec.storage_options import StorageOptions
    from reshard.strategy import Strategy

_LARGEST_INDEX = 1 << 30


class Selected(msgspec.Struct, frozen=True):
    """Result of the selection of a source's files.

    Attributes:
        step: epoch and step of the files, if their names contain them.
        stages: number of pipeline stages, if the source is one of them and the number is known.
        some: whether the files are known to be a part of a checkpoint.
    """

    step: tuple[int, int] | None = None
    stages: int | None = None
    some: bool = False


class CheckpointIndex(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Index of a source.

    Attributes:
        schema: schema version of this document.
        digest: digest of the task that the index was created for. With `output: Index`, it determines all fields except
            `inconsistent_replicas` and `checked`.
        inventory: files of the source.
        inconsistent_replicas: names of parameters whose copies differ between source ranks, which the request accepts.
        checked: amount of the source that was checked. "Full": its CRC32s, and all copies of its parameters.
        source_strategy: source strategy. None means one rank with whole parameters.
        target_strategy: target strategy, likewise.
        target_ranks: number of target ranks that each get a chunk of dimension 0, without a target strategy.
        layout: layout file of the target, if there is one.
        source_only: handling of parameters that only the source strategy names.
        allow_missing: whether parameters that only the target strategy names are left out.
        selected: result of the selection of the source's files.
        encrypted: blocks of the encrypted files, by path.
        include: patterns of parameters to write.
        exclude: patterns of parameters to leave out.
        rename: new names of parameters.
        cast: new types of parameters.
        pad: new lengths of dimensions of parameters.
        allow_inconsistent: patterns of parameters whose copies may differ between source ranks.
        replicas: choice among several copies of a slice.
        allow_single_rank: whether the source may be the file of one rank, although other ranks are next to it.
        allow_equal_slices: whether ranks may hold equal content where the source strategy gives them different slices.
    """

    schema: Literal["reshard.dev/index/v1"] = "reshard.dev/index/v1"
    digest: str
    inventory: Inventory
    inconsistent_replicas: tuple[str, ...]
    checked: Verification
    source_strategy: PackedStrategy | None
    target_strategy: PackedStrategy | None
    layout: LayoutDocument | None = None
    source_only: SourceOnly
    allow_missing: bool
    target_ranks: TargetRanks | None = None
    selected: Selected = Selected()
    encrypted: dict[str, Known] = {}
    include: Patterns = ()
    exclude: Patterns = ()
    rename: tuple[RenameRule, ...] = ()
    cast: tuple[CastRule, ...] = ()
    pad: tuple[PadRule, ...] = ()
    allow_inconsistent: Patterns = ()
    replicas: Replicas = "Identical"
    allow_single_rank: bool = False
    allow_equal_slices: bool = False

    def strategies(self) -> tuple[Strategy | None, Strategy | None]:
        """Source strategy and target strategy.

        Raises:
            DataError: a strategy is damaged.
        """
        return unpack(self.source_strategy, INDEX_NAME, uneven=False), unpack(self.target_strategy, INDEX_NAME, uneven=True)

    def check_level(self, wanted: Verification, where: str) -> None:
        """Check that the source was checked at least at the requested level.

        Raises:
            RequestError: it was checked at a lower level.
        """
        if STRICTNESS[self.checked] < STRICTNESS[wanted]:
            level = wanted.lower()
            raise RequestError(
                "IndexNotChecked",
                f"the index was created with --verification {self.checked.lower()}, which is a lower level than {level}",
                where=where,
                fix=f"create the index again with --verification {level} (spec.verification: {wanted}), or request a lower level",
            )


def decode_index(content: bytes, where: str) -> CheckpointIndex:
    """Decode an index.

    Raises:
        DataError: the index is damaged, or contradicts itself.
    """
    index = decode(content, CheckpointIndex, where, fix="create the index again")
    if (problem := _problem(index.inventory)) is not None:
        raise DataError("DocumentInvalid", problem, where=where, fix="create the index again")
    return index


def read_index(url: str, storage_options: StorageOptions | None = None) -> CheckpointIndex:
    """Read the index in a target of a transform with `output: Index`. In an object store, this takes one request.

    Raises:
        DataError: the index is damaged.
        MissingInputError: the target has no index.
    """
    store = open_store(url, storage_options)
    try:
        content = store.read(INDEX_NAME, _LARGEST_INDEX)
    except MissingInputError as error:
        raise MissingInputError(
            "IndexMissing", f"{INDEX_NAME} does not exist", where=url, fix="create it with `reshard transform --output index`"
        ) from error
    return decode_index(content, f"{store.url}/{INDEX_NAME}")


def _problem(inventory: Inventory) -> str | None:
    """Return what is invalid in an inventory of unknown origin, or None if it is valid. Shards are checked by `unpack`."""
    ranks = [file.rank for file in inventory.files]
    if not ranks or ranks != sorted(set(ranks)):
        return "the files are not in ascending order of rank"
    if inventory.kind == "Boxes" and ranks != list(range(len(ranks))):
        return "the files are not numbered from 0"
    if len({tensor.name for tensor in inventory.tensors}) != len(inventory.tensors):
        return "the checkpoint contains the same tensor twice"
    sizes = [0] * len(inventory.structures)
    for file in inventory.files:
        if file.structure >= len(sizes):
            return f"structure {file.structure} is missing"
        sizes[file.structure] = max(sizes[file.structure], file.size)
    problems = (_problem_in(structure, size) for structure, size in zip(inventory.structures, sizes, strict=True))
    return next((problem for problem in problems if problem is not None), None)


def _problem_in(structure: Structure, size: int) -> str | None:
    """Return what is invalid in the structure of a file of at most `size` bytes."""
    if len({entry.name for entry in structure.tensors}) != len(structure.tensors):
        return "a file contains the same parameter twice"
    for entry in structure.tensors:
        dtype = DTYPES.get(entry.dtype)
        if dtype is None or prod(entry.shape) * dtype.itemsize != entry.nbytes:
            return f"the length of the content of {entry.name} does not match its type and shape"
        if any(offset + length > size for offset, length in entry.extents):
            return f"the content of {entry.name} is beyond the end of its file"
    return None
