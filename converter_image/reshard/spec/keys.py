"""Keys of encrypted files. A key is never printed, encoded or pickled. Performs no I/O."""

from __future__ import annotations

from typing import Literal, NoReturn

import msgspec

from reshard.errors import UsageError

Mode = Literal["AES-GCM", "AES-CBC", "SM4-CBC"]

KEY_BYTES: dict[Mode, tuple[int, ...]] = {"AES-GCM": (16, 24, 32), "AES-CBC": (16, 24, 32), "SM4-CBC": (16,)}


class Key:
    """A key: its bytes, or the file or environment variable that contains them. Exactly one is set.

    Attributes:
        content: the bytes of the key.
        file: path of the file.
        variable: name of the environment variable.
    """

    __slots__ = ("content", "file", "variable")

    def __init__(self, content: bytes | None = None, *, file: str | None = None, variable: str | None = None) -> None:
        if sum(given is not None for given in (content, file, variable)) != 1:
            raise UsageError(
                "InvalidKey",
                "a key must be exactly one of content, file and variable",
                where="key",
                fix="pass one of content=..., file=... and variable=...",
            )
        if content is not None and not isinstance(content, bytes):
            raise UsageError(
                "InvalidKey", "the content of a key must be bytes", where="key", fix="pass bytes, or a path as file=..."
            )
        self.content, self.file, self.variable = content, file, variable

    def __repr__(self) -> str:
        where = f"file={self.file!r}" if self.file else f"variable={self.variable!r}" if self.variable else "..."
        return f"Key({where})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be copied or pickled")


class Encryption(msgspec.Struct, frozen=True):
    """The encryption of the files of one side.

    Attributes:
        key: key of all files.
        mode: mode of MindSpore's encryption.
    """

    key: Key
    mode: Mode = "AES-GCM"

    def __post_init__(self) -> None:
        """Validate the values without showing them."""
        if not isinstance(self.key, Key):
            raise UsageError("InvalidKey", "the key must be a reshard.Key", where="key", fix="pass reshard.Key(file=...)")
        if self.mode not in KEY_BYTES:
            raise UsageError(
                "InvalidOption", f"{self.mode!r} is not one of {', '.join(KEY_BYTES)}", where="mode", fix="use one of these modes"
            )
