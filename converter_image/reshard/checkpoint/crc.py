"""MindSpore's CRC32 of a safetensors file: over names and contents, by name (mindspore/train/serialization.py, _exec_save)."""

from __future__ import annotations

from zlib_ng import zlib_ng

_SIGNED = {"Int8", "Int16", "Int32", "Int64", "Int4"}
_INTEGERS = _SIGNED | {"UInt8", "UInt16", "UInt32", "UInt64"}
# CRC-32's polynomial (IEEE 802.3) and x^8, both with the coefficient of x^0 as the highest of 32 bits.
_POLYNOMIAL = 0xEDB88320
_X_8 = 1 << (31 - 8)


class NamedContents:
    """The CRC32 of tensors that are given one after the other, sorted by name.

    Attributes:
        crc: the CRC32 of what was given so far.
    """

    def __init__(self) -> None:
        self.crc = 0
        self._counts = False
        self._signed = False

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Go on to a tensor. A scalar's content must then come in one part."""
        self.crc = zlib_ng.crc32(name.encode(), self.crc)
        # MindSpore gives numpy's arrays to bytes(), which makes of a scalar integer that many zeros.
        self._counts = not shape and dtype in _INTEGERS
        self._signed = dtype in _SIGNED

    def update(self, part: memoryview | bytes) -> None:
        """The next part of the tensor's content."""
        if self._counts and (count := int.from_bytes(part, "little", signed=self._signed)) >= 0:
            self.crc = append_zeros(self.crc, count)
        else:  # of a negative number MindSpore can work out no CRC
            self.crc = zlib_ng.crc32(part, self.crc)


def append_zeros(crc: int, count: int) -> int:
    """The CRC32 of what has this one and then so many zero bytes, in time that grows with the logarithm of their number."""
    state, factor = crc ^ 0xFFFFFFFF, _X_8
    while count:
        if count & 1:
            state = _product(state, factor)
        factor = _product(factor, factor)
        count >>= 1
    return state ^ 0xFFFFFFFF


def _product(one: int, other: int) -> int:
    """Of two polynomials over GF(2), modulo CRC-32's."""
    found = 0
    while one:
        if one & 0x80000000:
            found ^= other
        one = one << 1 & 0xFFFFFFFF
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return found
