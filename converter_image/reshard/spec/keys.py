"""Keys of encrypted files, or where they are. Nothing here shows, encodes or pickles their bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from reshard.errors import AccessError, MissingInputError, UsageError

Mode = Literal["AES-GCM", "AES-CBC", "SM4-CBC"]

KEY_BYTES: dict[Mode, tuple[int, ...]] = {"AES-GCM": (16, 24, 32), "AES-CBC": (16, 24, 32), "SM4-CBC": (16,)}
# A file is read no further: nothing longer is a key.
_MOST_BYTES = max(max(lengths) for lengths in KEY_BYTES.values()) + 2


class Key:
    """A key: its bytes, or the file or environment variable that has them. Exactly one is given.

    Attributes:
        file: its path.
        variable: its name.
    """

    __slots__ = ("_content", "file", "variable")

    def __init__(self, content: bytes | None = None, *, file: str | None = None, variable: str | None = None) -> None:
        if sum(given is not None for given in (content, file, variable)) != 1:
            raise UsageError("InvalidKey", "a key is given as bytes, as a file or as an environment variable", where="key")
        if content is not None and not isinstance(content, bytes):
            raise UsageError("InvalidKey", "a key is bytes", where="key")
        self._content, self.file, self.variable = content, file, variable

    def read(self, mode: Mode) -> bytes:
        """The bytes. One line end behind them is left out if they are of no right length otherwise.

        Raises:
            AccessError: the file may not be read.
            MissingInputError: there is no such file or variable.
            UsageError: there is no key of this length.
        """
        found = self._found()
        lengths = KEY_BYTES[mode]
        if len(found) not in lengths and len(found) - 1 in lengths and found.endswith(b"\n"):
            found = found[:-1]
        if len(found) not in lengths:
            *some, last = map(str, lengths)
            raise UsageError(
                "InvalidKey",
                f"it has {len(found) if len(found) < _MOST_BYTES else f'{_MOST_BYTES} or more'} bytes",
                where=self._where(),
                fix=f"{mode} takes {', '.join(some)}{' or ' if some else ''}{last}, as they are: neither hexadecimal nor base64",
            )
        return found

    def _found(self) -> bytes:
        if self._content is not None:
            return self._content
        if self.variable is not None:
            content = os.environb.get(os.fsencode(self.variable))
            if content is None:
                raise MissingInputError("KeyMissing", "it is not set", where=self._where())
            return content
        try:
            with Path(self.file or "").open("rb") as file:
                return file.read(_MOST_BYTES)
        except PermissionError as error:
            raise AccessError("PermissionDenied", "the key may not be read", where=self._where()) from error
        except OSError as error:
            raise MissingInputError("KeyMissing", f"the key cannot be read: {error.strerror}", where=self._where()) from error

    def _where(self) -> str:
        return self.file or (f"environment variable {self.variable}" if self.variable else "key")

    def __repr__(self) -> str:
        where = f"file={self.file!r}" if self.file else f"variable={self.variable!r}" if self.variable else "..."
        return f"Key({where})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is never written anywhere")


class Encryption(msgspec.Struct, frozen=True):
    """How the files of one side are encrypted.

    Attributes:
        key: of them all.
        mode: one of MindSpore's.
    """

    key: Key
    mode: Mode = "AES-GCM"

    def __post_init__(self) -> None:
        """Refuse what a type checker would have refused, without showing it."""
        if not isinstance(self.key, Key):
            raise UsageError("InvalidKey", "a key is given as a reshard.Key", where="key")
        if self.mode not in KEY_BYTES:
            raise UsageError("InvalidOption", f"{self.mode!r} is none of {', '.join(KEY_BYTES)}", where="mode")
