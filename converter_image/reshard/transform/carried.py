"""Small files that are copied unchanged from the source to the target, such as the configuration of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint.inventory import CarriedFile
from reshard.errors import RequestError
from reshard.formats.registry import requested_output
from reshard.source.changed import source_changed
from reshard.spec.request import request_key
from reshard.storage.digest import ContentDigest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.inventory import Inventory
    from reshard.spec.request import Request
    from reshard.storage.protocol import ReadStore

# The largest are tokenizers, of some 20 MB.
_LARGEST = 64 << 20


class Carried(NamedTuple):
    """The files, and the content of each by its path."""

    records: tuple[CarriedFile, ...]
    contents: Mapping[str, bytes]


def read_carried(store: ReadStore, request: Request, inventory: Inventory, *, indexed: bool = False) -> Carried:
    """Read the files that the target's format copies from the source.

    Args:
        store: store of the source.
        request: request of the transform.
        inventory: files of the source, and their versions.
        indexed: whether the inventory is that of an index.

    Raises:
        DataError: a file is too large, or has changed since its version was recorded.
        RequestError: the source lacks a file that the target's format or the request requires.
    """
    if not request.options.kind.writes_files:
        return Carried((), {})
    output, settings = requested_output(request_key(request), inventory.format), request.options.copy_settings
    if not (settings or output.companions):
        return Carried((), {})
    versions = {entry.name: entry.version for entry in store.list("") if not entry.is_folder}
    contents = {name: store.read(name, _LARGEST) for name in output.carried([*versions], store.url, settings=settings)}
    versions |= {file.path: file.version for file in inventory.files}
    there = store.stats([*contents]) if contents else {}
    for name in contents:  # after they were read, so that a change in the meantime is found too
        if name not in there or there[name].version != versions[name]:
            raise source_changed(name, "changed" if name in there else "was deleted", indexed=indexed)
    if settings and not contents:
        raise RequestError(
            "SettingsMissing",
            "the source has no configuration of a model, such as config.json",
            where=store.url,
            fix="omit --copy-settings (spec.target.copySettings), and copy the configuration from where the model was trained",
        )
    records = tuple(CarriedFile(name, len(content), str(ContentDigest(content))) for name, content in contents.items())
    return Carried(records, contents)
