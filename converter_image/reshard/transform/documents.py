"""The files of a checkpoint that its manifest lists, and the index files that follow from the manifest."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.manifest import INDEX_NAME
from reshard.checkpoint.unified import HYPER_NAME, MAP_NAME, map_names, map_of
from reshard.errors import DataError
from reshard.source.described import files_there, refuse_missing
from reshard.storage.digest import ContentDigest

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import Manifest
    from reshard.storage.protocol import ReadStore, Stat

_NOT_MAPPED = (HYPER_NAME, MAP_NAME)


def check_exists(store: ReadStore, manifest: Manifest) -> dict[str, Stat]:
    """Refuse a folder that lacks a file of its manifest, or an index file.

    Returns:
        The files of the folder, see `files_there`.

    Raises:
        MissingInputError: a file does not exist.
    """
    entries = store.list("")
    there = files_there(store, manifest, entries)
    indexes = [*maps_of(manifest), *([INDEX_NAME] if manifest.index is not None else [])]
    refuse_missing(store, [*(record.path for record in manifest.files), *indexes], {*there, *(entry.name for entry in entries)})
    return there


def changed_documents(store: ReadStore, manifest: Manifest) -> list[str]:
    """Return the index files of a checkpoint that do not exist, or have another content than its manifest determines."""
    expected = {name: (len(content), str(ContentDigest(content))) for name, content in maps_of(manifest).items()}
    if manifest.index is not None:
        expected[INDEX_NAME] = (manifest.index.size, manifest.index.digest)
    there = store.stats([*expected]) if expected else {}

    def is_equal(name: str, size: int, digest: str) -> bool:
        found = there.get(name)
        return found is not None and found.size == size and str(ContentDigest(store.read(name, size))) == digest

    return [name for name, (size, digest) in expected.items() if not is_equal(name, size, digest)]


def maps_of(manifest: Manifest) -> dict[str, bytes]:
    """Return the index files of a unified checkpoint, by name.

    MindSpore reads the file of parameters that no strategy names without an index. Hugging Face libraries read only files in
    their index, and such a parameter may belong to the model.
    """
    files = {record.rank: record.path for record in manifest.files}
    maps = {}
    for name in map_names(manifest.options):
        shown = [p for p in manifest.parameters if (path := files.get(p.target.stages[0])) and (path, name) != _NOT_MAPPED]
        if unknown := next((p for p in shown if p.dtype not in DTYPES), None):
            raise DataError(
                "UnknownType",
                f"the type {unknown.dtype[:32]!r} is unknown",
                where=f"parameter {unknown.name}",
                fix="use the version of reshard that wrote it",
            )
        nbytes = sum(prod(p.shape) * DTYPES[p.dtype].itemsize for p in shown)
        maps[name] = map_of({p.name: files[p.target.stages[0]] for p in shown}, nbytes)
    return maps
