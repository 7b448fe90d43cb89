"""Deviations of MindSpore 2.10 from the definition, each with its reason and exact condition.

A difference that none of these accounts for fails the tests, and so does one of these that is never seen.

Two are refusals, and so in no table. If a stage has several strategy files, MindSpore silently takes the first
(_merge_protobuf_strategy in mindspore/parallel/_parallel_serialization.py). So do we, but not if another cuts a parameter in
another way: then one of them is of another run, and nothing says which is the source's.

If the source's ranks have different copies of a parameter that no strategy names, MindSpore takes one of them: for target rank r
that of source rank r modulo their number. Such ranks may be of two training steps, or hold slices of a tensor, so we refuse them
(`Case.inconsistent`); once the user accepts the parameter, we take the same copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from definition import Cut
    from transforms import Case, Tensor

# For each target rank the source ranks that MindSpore reads.
RankLists = list[list[int]]


@dataclass(frozen=True)
class Difference:
    """Return the differences of MindSpore's output for one target rank from the definition.

    Attributes:
        kind: "content", "type", "missing" or "extra".
    """

    kind: str
    rank: int
    tensor: Tensor


@dataclass(frozen=True)
class Deviation:
    """One way in which MindSpore differs.

    Attributes:
        kind: of the differences.
        reason: why we differ.
        holds: whether it accounts for a difference; given the source ranks too that MindSpore reads for each target rank.
        example: the number of a case where it is seen.
    """

    name: str
    kind: str
    reason: str
    holds: Callable[[Case, Difference, RankLists], bool]
    example: int


def ignores_device_order(cut: Cut | None) -> bool:
    """Return whether MindSpore takes the device axes in the order of the dimensions that they cut, not of the device matrix.

    It does where an optimizer shard uses the leading axis and all others cut (_construct_tensor_layout_for_opt_shard in
    mindspore/parallel/_tensor.py), but not where an axis list cuts a dimension. The ranks then hold other parts than the same
    layout without the shard says, so this is taken for an error of MindSpore's.
    """
    if cut is None or not cut.size or any(len(axes) > 1 for axes in cut.maps):
        return False
    cutting = [len(cut.matrix) - 1 - axis for axes in cut.maps for axis in axes]
    free = [axis for axis, length in enumerate(cut.matrix) if length > 1 and axis not in cutting]
    cutting = [axis for axis in cutting if cut.matrix[axis] > 1]
    return free == [0] and cutting != sorted(cutting)


def _shard_order(case: Case, found: Difference, _: RankLists) -> bool:
    return not case.nested and (ignores_device_order(found.tensor.source) or ignores_device_order(found.tensor.target))


def _unplaced(case: Case, found: Difference, _: RankLists) -> bool:
    return case.target_named and found.tensor.source is not None and found.tensor.target is None


def _int4(_: Case, found: Difference, __: RankLists) -> bool:
    return found.tensor.dtype == "Int4"


def _other_stage(case: Case, found: Difference, lists: RankLists) -> bool:
    read = {rank // case.source_devices for rank in lists[found.rank]}
    return found.tensor.source is None and read.isdisjoint(found.tensor.source_stages)


def _shared(case: Case, found: Difference, lists: RankLists) -> bool:
    if case.source_format != "safetensors" or case.source_stages > 1 or any(ranks != lists[0] for ranks in lists):
        return False
    return found.rank // case.target_devices in found.tensor.target_stages and len(found.tensor.target_stages) > 1


DEVIATIONS = (
    Deviation("shard order", "content", "an optimizer shard ignores the order of the devices", _shard_order, 35),
    Deviation("unplaced", "extra", "what the target does not name is there, as one source rank's slice of it", _unplaced, 1),
    Deviation("Int4", "type", "it becomes Int8, with the same bytes", _int4, 22),
    Deviation(
        "other stage", "missing", "what no strategy names is lost if it lives on a stage that is not read", _other_stage, 34
    ),
    Deviation("shared", "missing", "what target stages share goes to one of them only, if all ranks read the same", _shared, 19),
)


# Files that MindSpore does not convert, and why we do.
UNCONVERTED = {
    "text.ckpt": "a safetensors file has no text; ours holds code points, and says in its metadata that they are a str",
}
# A tensor without elements is lost where MindSpore writes a `.ckpt` synchronously. It writes and loads one that is saved
# asynchronously. Ours keeps it.
# And if two names become one, the later silently replaces the earlier. For us it is an error.


def explained(case: Case, found: Difference, lists: RankLists) -> Deviation | None:
    """Return the deviation that explains a difference."""
    return next((d for d in DEVIATIONS if d.kind == found.kind and d.holds(case, found, lists)), None)


def may_reorder(case: Case) -> bool:
    """Return whether MindSpore may write the parameters of a `.ckpt` in another order than the source has them.

    It reads the last stage first, writes what no strategy names last, and of safetensors for several stages goes by a set.
    """
    named = [tensor.source is not None or tensor.target is not None for tensor in case.tensors]
    if case.source_format == "safetensors":
        return case.source_stages > 1 or case.target_stages > 1 or not all(named)
    return case.source_stages > 1 or named != sorted(named, reverse=True)


def refuses(case: Case, error: str) -> bool:
    """Return whether MindSpore may fail so: with stages of one rank it takes the number within the stage for the rank's."""
    known = ("is not in the current stage", "The checkpoint of rank")
    return case.target_devices == 1 and case.target_stages > 1 and any(text in error for text in known)
