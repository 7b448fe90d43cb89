"""Cast floating-point elements to another type. Values are rounded to nearest, ties to even, on every machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reshard.checkpoint.manifest import Loss

if TYPE_CHECKING:
    Elements = np.ndarray[Any, np.dtype[Any]]


class _Float(NamedTuple):
    """A binary floating-point type: the bits of an element and of its mantissa, and the numpy type, if there is one."""

    bits: int
    mantissa: int
    numpy: type[np.floating[Any]] | None

    @property
    def integer(self) -> np.dtype[Any]:
        """The unsigned integer type of the same size."""
        return np.dtype(f"u{self.bits // 8}")


_FLOATS = {
    "Float64": _Float(64, 52, np.float64),
    "Float32": _Float(32, 23, np.float32),
    "Float16": _Float(16, 10, np.float16),
    "BFloat16": _Float(16, 7, None),
}


@dataclass(frozen=True, slots=True)
class Losses:
    """The changes that the casts of a file have made.

    Attributes:
        by_name: changes of each parameter of which a cast has changed elements.
    """

    by_name: dict[str, Loss] = field(default_factory=dict)

    def add(self, name: str, loss: Loss) -> None:
        """Add the changes of a cast to those of a parameter."""
        if loss.rounded:
            self.by_name[name] = self.by_name.get(name, Loss()).plus(loss)

    @property
    def total(self) -> Loss:
        """The changes of all parameters."""
        return reduce(Loss.plus, self.by_name.values(), Loss())


def cast(content: memoryview, before: str, into: memoryview, after: str) -> Loss:
    """Cast elements of type `before` to type `after`, see `reshard.spec.rules.FloatType`.

    NaNs stay NaNs, with their sign and the leading bits of their payload. They become quiet, as the processors of some machines
    make them.

    Args:
        content: elements to cast.
        before: type of these elements.
        into: buffer for as many elements.
        after: new type.
    """
    kinds = _FLOATS[before], _FLOATS[after]
    bits, target = np.frombuffer(content, kinds[0].integer), np.frombuffer(into, kinds[1].integer)
    with np.errstate(all="ignore"):
        values = _values(bits, kinds[0])
        if kinds[1].numpy is not None:
            np.copyto(target.view(kinds[1].numpy), values, casting="same_kind")
        else:
            _round_to_bfloat16(values, target)
        nans = np.isnan(values)
        if count := int(np.count_nonzero(nans)):
            target[nans] = _nans(bits[nans].astype(np.uint64), *kinds)
        if kinds[0].bits < kinds[1].bits:
            return Loss()
        found = _values(target, kinds[1])
        rounded = int(np.count_nonzero(found != values)) - count
        overflowed = int(np.count_nonzero(np.isinf(found))) - int(np.count_nonzero(np.isinf(values))) if rounded else 0
        return Loss(rounded, overflowed)


def _values(bits: Elements, kind: _Float) -> Elements:
    """Return elements as numpy computes with them."""
    if kind.numpy is not None:
        return bits.view(kind.numpy)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _round_to_bfloat16(values: Elements, into: Elements) -> None:
    """Round to the upper half of float32. NaNs give arbitrary results."""
    bits = (_to_odd(values) if values.dtype == np.float64 else values.astype(np.float32, copy=False)).view(np.uint32)
    rounding = (bits >> np.uint32(16)) & np.uint32(1)
    rounding += np.uint32(0x7FFF)
    rounding += bits
    np.right_shift(rounding, np.uint32(16), out=into, casting="unsafe")


def _to_odd(values: Elements) -> Elements:
    """Return float32 values in which the last bit says whether anything was cut off, so that a second rounding is exact.

    Boldo and Melquiond, Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd, 2008.
    """
    nearest = values.astype(np.float32)
    inexact = nearest != values
    away = np.abs(nearest) > np.abs(values)
    bits = nearest.view(np.uint32)
    bits -= away  # the next value towards zero
    bits |= inexact
    return bits.view(np.float32)


def _nans(bits: Elements, before: _Float, after: _Float) -> Elements:
    """Return NaNs of another type, from and to unsigned integers of 64 bits."""
    payload = bits & np.uint64((1 << before.mantissa) - 1)
    longer = after.mantissa - before.mantissa
    payload = payload << np.uint64(longer) if longer > 0 else payload >> np.uint64(-longer)
    sign = bits >> np.uint64(before.bits - 1) << np.uint64(after.bits - 1)
    exponent = (1 << (after.bits - 1)) - (1 << after.mantissa)
    return sign | payload | np.uint64(exponent | 1 << (after.mantissa - 1))
