"""Small files that are copied unchanged from the source to the target, such as the configuration of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint.inventory import CarriedFile
from reshard.errors import RequestError
from reshard.formats.registry import requested_output
from reshard.spec.request import request_key
from reshard.storage.digest import ContentDigest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.spec.request import Request
    from reshard.storage.protocol import ReadStore

# The largest are tokenizers, of some 20 MB.
_LARGEST = 64 << 20


class Carried(NamedTuple):
    """The files, and the content of each by its path."""

    records: tuple[CarriedFile, ...]
    contents: Mapping[str, bytes]


def read_carried(store: ReadStore, request: Request, source: str) -> Carried:
    """Read the files that the target's format copies from the source.

    Args:
        store: store of the source.
        request: request of the transform.
        source: format of the source.

    Raises:
        DataError: a file is too large.
        RequestError: the source lacks a file that the target's format or the request requires.
    """
    if not request.options.kind.writes_files:
        return Carried((), {})
    output, settings = requested_output(request_key(request), source), request.options.copy_settings
    if not (settings or output.companions):
        return Carried((), {})
    names = [entry.name for entry in store.list("") if not entry.is_folder]
    contents = {name: store.read(name, _LARGEST) for name in output.carried(names, store.url, settings=settings)}
    if settings and not contents:
        raise RequestError(
            "SettingsMissing",
            "the source has no configuration of a model, such as config.json",
            where=store.url,
            fix="omit --copy-settings (spec.target.copySettings), and copy the configuration from where the model was trained",
        )
    records = tuple(CarriedFile(name, len(content), str(ContentDigest(content))) for name, content in contents.items())
    return Carried(records, contents)
