"""Files as literal bytes and spans of tensors, which separates their format from the movement of bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of a file to be written.

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
    """A range of bytes of a tensor's content.

    Attributes:
        tensor: its position among the tensors of the file.
        offset: the first byte's place in the content.
        length: bytes of the content that it is.
    """

    tensor: int
    offset: int
    length: int
