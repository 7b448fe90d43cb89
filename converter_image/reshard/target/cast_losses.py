"""Sum the changes of casts, which the records of ranks contain, to those of parameters. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from reshard.checkpoint.manifest import Loss
from reshard.target.fingerprint_sums import numbers_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


class CastLosses(msgspec.Struct, frozen=True):
    """The changes that casts have made to the parameters in one file.

    Attributes:
        numbers: positions of the changed parameters in the draft of the manifest, ascending, as little-endian numbers of 4 bytes.
        rounded: see `Loss`, as little-endian numbers of 8 bytes.
        overflowed: likewise.
    """

    numbers: bytes = b""
    rounded: bytes = b""
    overflowed: bytes = b""

    def __post_init__(self) -> None:
        if len(self.numbers) % 4 or not len(self.rounded) == len(self.overflowed) == 2 * len(self.numbers):
            raise ValueError("the numbers of parameters and of their changes differ")

    @classmethod
    def of(cls, losses: Mapping[int, Loss]) -> CastLosses:
        """Return the record of these changes, by position of the parameter."""
        numbers = sorted(losses)
        found = np.array([losses[number] for number in numbers], "<i8").reshape(-1, 2)
        return cls(np.array(numbers, "<u4").tobytes(), found[:, 0].tobytes(), found[:, 1].tobytes())


class LossSums:
    """Adds up the changes that casts have made in the files of ranks.

    Args:
        names: name of each parameter.
        known: ranks whose changes are not added.

    Attributes:
        ranks: ranks that were added.
    """

    def __init__(self, names: Sequence[str], known: Collection[int] = ()) -> None:
        self.ranks: set[int] = set()
        self._names, self._known = names, known
        self._sums = np.zeros((2, len(names)), np.int64)

    def add(self, rank: int, losses: CastLosses) -> None:
        """Add the changes in the file of a target rank.

        Raises:
            DataError: a parameter does not exist.
        """
        self.ranks.add(rank)
        if rank not in self._known:
            numbers = numbers_of(rank, losses.numbers, len(self._names))
            for total, content in zip(self._sums, (losses.rounded, losses.overflowed), strict=True):
                total[numbers] += np.frombuffer(content, "<i8")

    def by_name(self) -> dict[str, Loss]:
        """Return the changes of the parameters of which casts have changed elements."""
        found: dict[str, Loss] = {}
        changed = np.flatnonzero(self._sums[0])
        for number, *loss in zip(changed.tolist(), *self._sums[:, changed].tolist(), strict=True):
            name = self._names[number]
            found[name] = found.get(name, Loss()).plus(Loss(*loss))
        return found
