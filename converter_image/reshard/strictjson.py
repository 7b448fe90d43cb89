"""JSON objects with a limited number of entries, in which duplicate keys are detected instead of the last one being used."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class TooManyError(msgspec.DecodeError):
    """An object with more entries than allowed."""


class _Key:
    """A key that never equals another."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def pairs(content: bytes | msgspec.Raw, most: int, kind: type[T]) -> list[tuple[str, T]]:
    """Return the pairs of an object, with values of this type. The limit prevents a malicious object from exhausting the memory.

    Raises:
        TooManyError: there are more than `most` entries.
        msgspec.DecodeError, UnicodeDecodeError: the content is not such an object.
        RecursionError: the content is nested too deeply.
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
