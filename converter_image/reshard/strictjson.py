"""JSON objects of a bounded number of entries in which a key that is there twice is seen, instead of the last one winning."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class TooManyError(msgspec.DecodeError):
    """An object has more entries than it may have."""


class _Key:
    """A key, never equal to another."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def pairs(content: bytes | msgspec.Raw, most: int, kind: type[T]) -> list[tuple[str, T]]:
    """The pairs of an object, with values of this kind; a hostile one would fill the memory before it could be counted.

    Raises:
        TooManyError: there are more than `most`.
        msgspec.DecodeError, UnicodeDecodeError: it is no such object.
        RecursionError: it nests too deeply.
    """
    left = most

    def to_key(_: type, text: str) -> _Key:
        nonlocal left
        left -= 1
        if left < 0:
            raise TooManyError(f"an object has more than {most} entries")
        return _Key(text)

    decoder = msgspec.json.Decoder(dict[_Key, kind], dec_hook=to_key)  # type: ignore[valid-type]  # a type known at run time only
    return [(key.text, value) for key, value in decoder.decode(content).items()]
