"""Files as literal bytes and spans of tensors. This separates file formats from data movement."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of a file to be written.

    Attributes:
        name: name, in any characters.
        dtype: name of the type in `reshard.checkpoint.dtypes`.
        shape: lengths in elements. For a `str`: the number of UTF-32 characters.
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
        tensor: position among the tensors of the file.
        offset: position of the first byte in the content.
        length: number of bytes.
    """

    tensor: int
    offset: int
    length: int
