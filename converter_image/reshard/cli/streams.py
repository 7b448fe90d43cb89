"""Standard output and error, whatever they can encode and whether or not anyone reads them."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    Name = Literal["stdout", "stderr"]

_NAMES: tuple[Name, ...] = ("stdout", "stderr")
_LOOK_ALIKES = {"█": "#", "▓": "*", "▒": ":", "░": ".", "·": ".", "→": "->", "…": "..."}
_REPLACE = "reshard.replace"


def encodable(text: str, stream: TextIO) -> str:
    """Return `text` with every character that `stream` cannot encode replaced by ASCII.

    Drawing characters become similar ones, all others their Python escapes.
    """
    encoding = stream.encoding or "utf-8"  # a StringIO has none
    return text.encode(encoding, _REPLACE).decode(encoding)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    ascii_text = (_LOOK_ALIKES.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in unknown)
    return "".join(ascii_text), error.end


codecs.register_error(_REPLACE, _replace)


class TolerantStream(io.TextIOBase):
    """A text stream that replaces what it cannot encode, and whose write errors stop nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute there
        """The encoding of the stream."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's file descriptor."""
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write `text`."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(encodable(text, self._stream))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _Discarding(io.TextIOWrapper):
    """Takes the place of a stream that cannot be written to."""


def discard(name: Name) -> None:
    """Discard what is printed to a standard stream from now on."""
    # A real file: a descriptor that is free would be given to the next file that is opened.
    nowhere = Path(os.devnull).open("wb")  # noqa: SIM115 - closed by `usable`, or at exit
    setattr(sys, name, _Discarding(nowhere, encoding="utf-8"))


@contextmanager
def usable() -> Iterator[None]:
    """Make both standard streams fit to print to, and restore them at the end."""
    before = {name: getattr(sys, name) for name in _NAMES}
    try:
        for name, stream in before.items():
            if stream is None or stream.closed:
                discard(name)
        yield
    finally:
        for name, stream in before.items():
            if isinstance(found := getattr(sys, name), _Discarding):
                found.close()
                setattr(sys, name, stream)


def flush_at_exit() -> None:
    """Flush both streams; those that fail are discarded, or the interpreter would report it at exit."""
    for name in _NAMES:
        if (stream := getattr(sys, name)) is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                discard(name)
