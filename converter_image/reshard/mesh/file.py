"""A layout file in the place of a strategy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.errors import UsageError
from reshard.spec.layout import API_VERSION, parse_layout

if TYPE_CHECKING:
    from reshard.spec.layout import LayoutDocument

# In a protobuf message, a line break is followed by a length. In JSON, names are in quotes.
_FIELD = re.compile(rb"^(apiVersion|mesh|rules): ?", re.MULTILINE)
_BEGINNING = 1 << 16


@dataclass(frozen=True, slots=True)
class LayoutFile:
    """A layout file. Like a strategy, it states the ranks, but the layouts follow only from the parameters of a checkpoint.

    Attributes:
        document: content of the file.
        name: name of the file, for messages.
    """

    document: LayoutDocument
    name: str

    @property
    def numbers(self) -> range:
        """Ranks of all stages."""
        return self.document.numbers

    @property
    def digest(self) -> str:
        """Digest that is equal for equal documents."""
        return self.document.digest


def is_layout(content: bytes) -> bool:
    """Return whether the content of a file is a layout file rather than a strategy file, even if its version is missing."""
    return API_VERSION.encode() in content or _FIELD.search(content[:_BEGINNING]) is not None


def parse(content: bytes, name: str) -> LayoutFile:
    """Return a layout file, from YAML or JSON.

    Raises:
        UsageError: the file contains no layout, or a field is invalid. The message names it.
    """
    from reshard.strictyaml import documents  # noqa: PLC0415 - most transforms read no YAML, and start faster without it

    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UsageError("InvalidLayoutFile", "the file is not UTF-8 text", where=name, fix="save it as UTF-8") from error
    found = documents(text, name)
    if len(found) != 1:
        what = f"a layout file has one YAML document, but this file has {len(found)}"
        raise UsageError("InvalidLayoutFile", what, where=name, fix="use a file for each layout")
    return LayoutFile(parse_layout(found[0], name), name)
