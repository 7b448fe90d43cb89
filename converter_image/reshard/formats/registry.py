"""The formats that can be read. Another package adds one by an entry point of the group `reshard.formats`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from reshard.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reshard.formats.protocol import SourceFormat

GROUP = "reshard.formats"
# Imported only when they are needed: a transform of another format loads no reader.
_OWN = {"torch-dcp": "reshard.formats.torch.reader:DCP"}


def source_format(name: str) -> SourceFormat:
    """Return a format by its name.

    Raises:
        RequestError: no format has this name.
    """
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        found: SourceFormat = getattr(import_module(module), attribute)
        return found
    for entry in entry_points(group=GROUP, name=name):
        other: SourceFormat = entry.load()
        return other
    known = ", ".join(sorted({*_OWN, *(entry.name for entry in entry_points(group=GROUP))}))
    raise RequestError(
        "UnknownFormat", f"no source format is called {name}", where="source format", fix=f"use one of these: {known}"
    )


def detect(names: Sequence[str]) -> SourceFormat | None:
    """Return the format of a folder with these files. None: no format recognizes them."""
    return next((found for found in _all() if found.detect(names)), None)


def _all() -> Iterator[SourceFormat]:
    for name in _OWN:
        yield source_format(name)
    for entry in entry_points(group=GROUP):
        yield source_format(entry.name)
