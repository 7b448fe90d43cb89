"""MindSpore's CRC32 of a safetensors file: over names and contents, by name (mindspore/train/serialization.py, _exec_save)."""

from __future__ import annotations

from zlib_ng import zlib_ng

_SIGNED = {"Int8", "Int16", "Int32", "Int64", "Int4"}
_INTEGERS = _SIGNED | {"UInt8", "UInt16", "UInt32", "UInt64"}
# The polynomial of CRC-32 (IEEE 802.3) and x^8. The highest of 32 bits is the coefficient of x^0.
_POLYNOMIAL = 0xEDB88320
_X_8 = 1 << (31 - 8)


class NamedContents:
    """CRC32 of tensors, which are added one after the other, sorted by name.

    Attributes:
        crc: CRC32 of the content so far.
    """

    def __init__(self) -> None:
        self.crc = 0
        self._counts = False
        self._signed = False

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Start a tensor. The content of a scalar must be added at once."""
        self.crc = zlib_ng.crc32(name.encode(), self.crc)
        # MindSpore passes numpy arrays to bytes(), which returns as many zeros as a scalar integer says.
        self._counts = not shape and dtype in _INTEGERS
        self._signed = dtype in _SIGNED

    def update(self, part: memoryview | bytes) -> None:
        """Add the next part of the tensor's content."""
        if self._counts and (count := int.from_bytes(part, "little", signed=self._signed)) >= 0:
            self.crc = append_zeros(self.crc, count)
        else:  # MindSpore cannot calculate a CRC of a negative number
            self.crc = zlib_ng.crc32(part, self.crc)


def append_zeros(crc: int, count: int) -> int:
    """Return the CRC32 after appending zero bytes, in logarithmic time."""
    state, factor = crc ^ 0xFFFFFFFF, _X_8
    while count:
        if count & 1:
            state = _product(state, factor)
        factor = _product(factor, factor)
        count >>= 1
    return state ^ 0xFFFFFFFF


def _product(one: int, other: int) -> int:
    """Multiply two polynomials over GF(2), modulo the polynomial of CRC-32."""
    found = 0
    while one:
        if one & 0x80000000:
            found ^= other
        one = one << 1 & 0xFFFFFFFF
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return found
