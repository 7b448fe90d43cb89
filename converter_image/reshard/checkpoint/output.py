"""What a format lays out: a file as literal bytes and spans of tensors, so that layout and movement of bytes stay apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor that a file is to hold.

    Attributes:
        name: any text.
        dtype: the name of a type in `reshard.checkpoint.dtypes`.
        shape: lengths in elements; of a `str` its number of UTF-32 characters.
        nbytes: length of the content in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of a tensor's content.

    Attributes:
        tensor: its position among the tensors of the file.
        offset: the first byte's place in the content.
        length: bytes of the content that it is.
    """

    tensor: int
    offset: int
    length: int
