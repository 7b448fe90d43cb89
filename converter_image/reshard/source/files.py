"""The files of a checkpoint: how they were found, and which ranks they belong to."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from reshard.checkpoint.manifest import ParameterTable
from reshard.errors import DataError, RequestError
from reshard.spec.ranks import format_ranks
from reshard.storage import open_store, parent_and_name
from reshard.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.inventory import Kind
    from reshard.checkpoint.manifest import Manifest
    from reshard.source.boxed import Boxed
    from reshard.source.selection import Selection
    from reshard.spec.layout import LayoutDocument
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import Store

_ALL_RANKS = (
    "use a checkpoint with all ranks, with their strategy (--source-strategy, spec.source.strategy); if one rank has whole"
    " parameters, use it with --allow-single-rank (spec.source.allowSingleRank) and without a source strategy"
)


class Files(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        by_rank: file of each rank, as a path in the store. For a unified checkpoint: the files, by number.
        notes: messages for the user about the selection.
        kind: kind of the files.
        mapped: file of each parameter of a unified checkpoint, as far as its index lists it.
        ranks: number of ranks, including those that were not requested. None means that some are missing.
        step: epoch and step of the files, if their names contain them.
        older: selection for older steps, newest first.
        described: whether a manifest or an index lists the files.
        parameters: records of the parameters in the manifest, if the files belong to ranks.
        total: number of ranks in the manifest, including those whose files do not exist. 0 means that it is unknown.
        written_as: rank in the manifest of a file that is read as another rank.
        some: whether the files are known to be a part of a checkpoint, so that they may contain slices.
        own: paths of files that a manifest lists, because reshard wrote them.
        may_be_slices: names of parameters that the manifest of such a file lists as possible slices.
        layout: layout file that the manifest of these files contains.
        manifest: manifest that lists exactly these files, if they contain the slices of several ranks.
        boxed: the checkpoint, if its own metadata locates the shards of its tensors. Its files are numbered.
    """

    by_rank: dict[int, str]
    notes: tuple[str, ...] = ()
    kind: Kind = "Ranks"
    mapped: Mapping[str, str] = {}
    ranks: int | None = None
    step: tuple[int, int] | None = None
    older: tuple[Selection, ...] = ()
    described: bool = False
    parameters: ParameterTable = ParameterTable()
    total: int = 0
    written_as: Mapping[int, int] = {}
    some: bool = False
    own: frozenset[str] = frozenset()
    may_be_slices: tuple[str, ...] = ()
    layout: LayoutDocument | None = None
    manifest: Manifest | None = None
    boxed: Boxed | None = None


def listing_digest(key: Mapping[str, Any], found: Files, versions: Mapping[str, tuple[int, str]]) -> str:
    """Return a digest of a request and of the listing of its source.

    Args:
        key: fields of the request that determine the result.
        found: files of the source.
        versions: size and version of each file, by path.
    """
    files = [(rank, path, *versions[path]) for rank, path in sorted(found.by_rank.items())]
    content = [__version__, key, found.kind, found.described, sorted(found.mapped.items()), found.may_be_slices, files]
    content += [found.parameters] if found.manifest is not None else []
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


class OpenSource(NamedTuple):
    """The store of a source.

    Attributes:
        store: folder of the source.
        chosen: name of the file if the source is a single file in that folder.
        place: what the address of the source names: the folder, or the file as a store.
    """

    store: Store
    chosen: str | None
    place: Store


def open_source(url: str, storage_options: StorageOptions | None = None) -> OpenSource:
    """Open the store of a source."""
    place = open_store(url, storage_options)
    found = place.stat("")
    if found is not None and not found.is_folder:
        folder, name = parent_and_name(place.url)
        return OpenSource(open_store(folder, storage_options), name, place)
    return OpenSource(place, None, place)


def refuse_part(found: Files, devices: int, where: str, *, fix: str = _ALL_RANKS) -> None:
    """Refuse files as a complete checkpoint if their manifest says that they are only some of its ranks.

    Args:
        found: files of the source.
        devices: number of ranks that the source strategy describes. 1 without a strategy.
        where: source, for messages.
        fix: remedy, for the message.

    Raises:
        RequestError: the file of one rank would be read as a complete checkpoint.
        DataError: the strategy describes another number of ranks.
    """
    listed, total = len(found.by_rank), found.total
    if not found.some and (listed >= total or devices == total):
        return
    ranks = format_ranks(tuple(sorted(found.written_as.get(rank, rank) for rank in found.by_rank)))
    if listed == 1 and (devices == 1 or found.some):
        what = f"rank {ranks} of {total}" if total > 1 else "one of several ranks"
        raise RequestError(
            "OneRankOfSeveral",
            f"the manifest says that the file belongs to {what}",
            where=where,
            fix=fix,
        )
    if devices == 1 and not found.some:
        return  # several files without a strategy are refused in any case
    raise DataError(
        "SourceRanksMismatch",
        f"the manifest lists ranks {ranks} of "
        + (f"{total}, but the source strategy describes {devices}" if not found.some else "a checkpoint with more ranks"),
        where=where,
        fix=fix,
    )
