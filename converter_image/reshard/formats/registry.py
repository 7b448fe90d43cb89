"""The formats that can be read and written.

Another package adds a `SourceFormat` by an entry point of the group `reshard.formats`, and an `OutputFormat` by one of the group
`reshard.output_formats`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from reshard.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reshard.formats.protocol import OutputFormat, SourceFormat

GROUP = "reshard.formats"
OUTPUT_GROUP = "reshard.output_formats"
# In the order of detection. Imported only when they are needed.
_OWN = {
    "torch-safetensors": "reshard.formats.torch.sharded:SHARDED",
    "torch-dcp": "reshard.formats.torch.reader:DCP",
}
_OWN_OUTPUT = {
    "ckpt": "reshard.checkpoint.ckpt:CKPT",
    "safetensors": "reshard.checkpoint.safetensors:SAFETENSORS",
}


def source_format(name: str) -> SourceFormat:
    """Return a format that can be read by its name.

    Raises:
        RequestError: no format has this name.
    """
    found: SourceFormat = _load(name, _OWN, GROUP, "source format")
    return found


def output_format(name: str) -> OutputFormat:
    """Return a format that can be written by its name.

    Raises:
        RequestError: no format has this name.
    """
    found: OutputFormat = _load(name, _OWN_OUTPUT, OUTPUT_GROUP, "output format")
    return found


def _load(name: str, own: Mapping[str, str], group: str, what: str) -> Any:  # noqa: ANN401 - of either protocol
    if name in own:
        module, _, attribute = own[name].partition(":")
        return getattr(import_module(module), attribute)
    for entry in entry_points(group=group, name=name):
        return entry.load()
    known = ", ".join(sorted({*own, *(entry.name for entry in entry_points(group=group))}))
    raise RequestError("UnknownFormat", f"no {what} is called {name}", where=what, fix=f"use one of these: {known}")


def detect(names: Sequence[str]) -> SourceFormat | None:
    """Return the format of a folder with these files. None: no format recognizes them."""
    return next((found for found in _all() if found.detect(names)), None)


def _all() -> Iterator[SourceFormat]:
    for name in _OWN:
        yield source_format(name)
    for entry in entry_points(group=GROUP):
        yield source_format(entry.name)
