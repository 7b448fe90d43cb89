"""The index of a source: everything that a rank requires before it reads its first byte, in one document.

A plan leaves it for the pods of its ranks (`.reshard/<job>/inventory.json`); with `output: Index` the commit keeps it
(`reshard-index.json`), so that every rank of a training can load its part without anybody reading the source's headers again. It
names files by their paths within the source and by their versions; where the source is, whoever reads it says: an index from
elsewhere can lead nobody to another place.
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
from reshard.spec.request import STRICTNESS, AllowInconsistent, RenameRule, Replicas, SourceOnly, Verification
from reshard.storage import open_store
from reshard.strategy import Strategy, StrategyFile, dump, parse

if TYPE_CHECKING:
    from reshard.spec.access import Access

_LARGEST_INDEX = 1 << 30


class Selected(msgspec.Struct, frozen=True):
    """The result of selecting the files of a source.

    Attributes:
        step: the epoch and step that they are of, where their names say so.
        stages: how many pipeline stages there are, where the source is one of them and that is known.
    """

    step: tuple[int, int] | None = None
    stages: int | None = None


class CheckpointIndex(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An index.

    Attributes:
        schema: the form of this document.
        digest: the digest of the job that it was made for; of one with `output: Index` everything here but
            `inconsistent_replicas` and `checked` follows from it.
        inventory: what the source holds.
        inconsistent_replicas: names of parameters whose copies differ between source ranks, which the user accepts.
        checked: how much of the source was checked: with "Full" its CRC32s, and all copies of its parameters.
        source_strategy: the source's strategy, as the content of a strategy file; None: one whole rank.
        target_strategy: the target's strategy, likewise.
        source_only: what happens to parameters that only the source's strategy names.
        allow_missing: whether what only the target's strategy names is left out.
        selected: what the choice of the source's files has told.
        encrypted: blocks of those of its files that are, by path.
        rename: what parameters are called at the target.
        allow_inconsistent: patterns of parameters whose copies may differ between source ranks.
        replicas: the choice among several copies of a slice.
        allow_single_rank: whether the source may be the file of one rank although other ranks are next to it.
        allow_equal_slices: whether ranks may hold equal content where the source's strategy gives them different slices.
    """

    schema: Literal["reshard.dev/index/v1"] = "reshard.dev/index/v1"
    digest: str
    inventory: Inventory
    inconsistent_replicas: tuple[str, ...]
    checked: Verification
    source_strategy: bytes | None
    target_strategy: bytes | None
    source_only: SourceOnly
    allow_missing: bool
    selected: Selected = Selected()
    encrypted: dict[str, Known] = {}
    rename: tuple[RenameRule, ...] = ()
    allow_inconsistent: AllowInconsistent = ()
    replicas: Replicas = "Identical"
    allow_single_rank: bool = False
    allow_equal_slices: bool = False

    def strategies(self) -> tuple[Strategy | None, Strategy | None]:
        """Return the strategies of source and target.

        Raises:
            DataError: one is damaged.
        """
        return _unpacked(self.source_strategy), _unpacked(self.target_strategy)

    def check_level(self, wanted: Verification, where: str) -> None:
        """Check that the source was verified at least at the requested level.

        Raises:
            RequestError: it was not.
        """
        if STRICTNESS[self.checked] < STRICTNESS[wanted]:
            level = wanted.lower()
            raise RequestError(
                "IndexNotChecked",
                f"the index was created with --verification {self.checked.lower()}, which checks less than {level}",
                where=where,
                fix=f"create the index again with --verification {level} (spec.verification: {wanted}), or lower the level here",
            )


def packed(strategy: Strategy | None) -> bytes | None:
    """A strategy in an index."""
    if strategy is None:
        return None
    shapes = dict(enumerate(strategy.shapes, strategy.first))
    file = StrategyFile(INDEX_NAME, dict(enumerate(strategy.stages, strategy.first)), shapes=shapes)
    return dump(file, "json" if shapes else "protobuf")


def _unpacked(content: bytes | None) -> Strategy | None:
    return None if content is None else Strategy.from_files([parse(content, INDEX_NAME)])


def decode_index(content: bytes, where: str) -> CheckpointIndex:
    """Read an index from its document.

    Raises:
        DataError: it is damaged, or contradicts itself.
    """
    index = decode(content, CheckpointIndex, where)
    if (problem := _problem(index.inventory)) is not None:
        raise DataError("DocumentInvalid", problem, where=where, fix="create the index again")
    return index


def read_index(url: str, access: Access | None = None) -> CheckpointIndex:
    """Read the index that `output: Index` wrote to a target. An object store receives one request.

    Raises:
        DataError: it is damaged.
        MissingInputError: there is none.
    """
    store = open_store(url, access)
    try:
        content = store.read(INDEX_NAME, _LARGEST_INDEX)
    except MissingInputError as error:
        raise MissingInputError(
            "IndexMissing", f"{INDEX_NAME} does not exist", where=url, fix="create it with `reshard transform --output index`"
        ) from error
    return decode_index(content, f"{store.url}/{INDEX_NAME}")


def _problem(inventory: Inventory) -> str | None:
    """Return what is invalid in an inventory from a document, if anything."""
    ranks = [file.rank for file in inventory.files]
    if not ranks or ranks != sorted(set(ranks)):
        return "the files are not in ascending order of rank"
    sizes = [0] * len(inventory.structures)
    for file in inventory.files:
        if file.structure >= len(sizes):
            return f"structure {file.structure} is missing"
        sizes[file.structure] = max(sizes[file.structure], file.size)
    for structure, size in zip(inventory.structures, sizes, strict=True):
        if len({entry.name for entry in structure.tensors}) != len(structure.tensors):
            return "a file contains the same parameter twice"
        for entry in structure.tensors:
            dtype = DTYPES.get(entry.dtype)
            if dtype is None or prod(entry.shape) * dtype.itemsize != entry.nbytes:
                return f"the length of the content of {entry.name} does not match its type and shape"
            if any(offset + length > size for offset, length in entry.extents):
                return f"the content of {entry.name} is beyond the end of its file"
    return None
