"""JSON objects in which a key that is there twice is seen, instead of the last one winning in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Key:
    """A key, never equal to another."""

    def __init__(self, text: str) -> None:
        self.text = text


def _to_key(kind: type, text: str) -> Any:  # noqa: ANN401 - msgspec's signature
    return kind(text)


def pairs_decoder(kind: type[T]) -> Callable[[bytes | msgspec.Raw], list[tuple[str, T]]]:
    """A function from a JSON object to its pairs, with values of this kind.

    It raises msgspec.DecodeError, or RecursionError where the text nests too deeply.
    """
    decoder = msgspec.json.Decoder(dict[_Key, kind], dec_hook=_to_key)  # type: ignore[valid-type]  # a type known at run time only
    return lambda content: [(key.text, value) for key, value in decoder.decode(content).items()]
