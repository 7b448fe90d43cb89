"""Calculate the fingerprints of the tensors of a file in the pass that produces it."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.layout.box import Box, shifted
from reshard.layout.fingerprint import Fingerprints
from reshard.target.fingerprint_sums import SliceFingerprints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.engine.small import Small
    from reshard.plan import RankPlan
    from reshard.plan.columns import Numbers
    from reshard.plan.rank import TensorGroup

# Bytes of small tensors that are copied together, as few as fit into the CPU cache.
_TOGETHER_BYTES = 256 << 10

_of_thread = threading.local()  # a pass produces many files in few threads, and each calculation needs memory


def _calculation() -> Fingerprints:
    if not hasattr(_of_thread, "calculation"):
        _of_thread.calculation = Fingerprints()
    found: Fingerprints = _of_thread.calculation
    return found


class FileFingerprints:
    """The fingerprints of the tensors of one file, of the elements as they are written and before encryption.

    Args:
        plan: plan of the rank.
    """

    def __init__(self, plan: RankPlan) -> None:
        self._plan, self._nbytes = plan, 0
        self._sums = np.zeros(len(plan.parameters), np.uint64)

    def add(self, number: int, box: Box, content: memoryview) -> None:
        """Add a box of a tensor.

        Args:
            number: number of the tensor in the plan.
            box: elements of the rank's slice.
            content: the elements in the target's type.
        """
        group = self._plan.groups[self._plan.group_of[number]]
        found = np.frombuffer(content, np.uint8)[None]
        sums = self._sums[number : number + 1]  # an array: numpy warns if scalars overflow
        sums += self._of(group, found, shifted(box, group.geometry.box.start))
        self._nbytes += len(content)

    def add_small(self, moves: Sequence[tuple[int, Small]], content: memoryview) -> None:
        """Add small tensors, which are whole slices.

        Args:
            moves: the tensors, each with their first byte in `content`.
            content: the elements in the target's type.
        """
        plan = self._plan
        numbers = np.concatenate([np.arange(move.first, move.end) for _, move in moves])
        places = np.concatenate([at + plan.ends[move.first : move.end] - plan.ends[move.first] for at, move in moves])
        order = np.argsort(plan.group_of[numbers], kind="stable")
        numbers, places = numbers[order], places[order]
        for which in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(plan.group_of[numbers])) + 1):
            group = plan.groups[plan.group_of[numbers[which[0]]]]
            if length := group.written_nbytes:
                for some in np.split(which, range(0, len(which), max(1, _TOGETHER_BYTES // length))[1:]):
                    self._sums[numbers[some]] = self._of(group, _stacked(content, places[some], length), group.geometry.box)
                self._nbytes += length * len(which)

    def records(self) -> tuple[SliceFingerprints, ...]:
        """Return the fingerprints, or nothing if a server has copied some of the elements."""
        if self._nbytes != self._plan.written_nbytes:
            return ()
        alike: dict[tuple[tuple[int, ...], Box], list[Numbers]] = defaultdict(list)  # a kind may be that of one parameter
        for group in self._plan.groups:
            alike[group.kind.target_shape, group.geometry.box].append(group.numbers)
        found = ((box, np.concatenate(numbers)) for (_, box), numbers in alike.items())
        return tuple(SliceFingerprints.of(box, self._plan.in_model[numbers], self._sums[numbers]) for box, numbers in found)

    def _of(self, group: TensorGroup, contents: np.ndarray, box: Box) -> np.ndarray:
        kind = group.kind
        return _calculation().of_boxes(contents, kind.target_shape, box, DTYPES[kind.target_dtype].itemsize)


def _stacked(content: memoryview, places: Numbers, length: int) -> np.ndarray:
    """Return copies of these ranges, one in each row."""
    # Elements of this length at every byte.
    ranges = np.ndarray((len(content) - length + 1,), np.dtype((np.void, length)), content, strides=(1,))
    return ranges[places].view(np.uint8).reshape(len(places), length)
