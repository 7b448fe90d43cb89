"""Classes of documents, which msgspec examines when it converts a document to them for the first time."""

from __future__ import annotations

from threading import Lock
from typing import TypeVar

import msgspec

T = TypeVar("T")

_examined: set[type] = set()
_examining = Lock()


def examined(kind: type[T]) -> type[T]:
    """Return a class of documents that several threads can use at the same time.

    While msgspec (0.22.0) examines a class, it calls Python code. A thread that converts a document to the same class meanwhile
    uses what is not complete yet, and the interpreter crashes. Here, one thread at a time lets it examine a class.
    """
    with _examining:
        if kind not in _examined:
            msgspec.json.Decoder(kind)
            _examined.add(kind)
    return kind
