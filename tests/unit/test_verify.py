"""Readable files with elements in wrong places: the comparison with the source finds them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import TYPE_CHECKING, Any

import models
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from memory_store import MemoryReader
from memory_tasks import streamed, task, written

from reshard.checkpoint import safetensors
from reshard.engine import small
from reshard.engine.verify import check_file
from reshard.engine.verify_entries import Known
from reshard.errors import BugError, DataError
from reshard.layout.tiles import flat_span
from reshard.plan import prove, runs
from reshard.plan.columns import Columns
from reshard.spec.rules import CastRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.checkpoint.manifest import Verified
    from reshard.engine.task import Task
    from reshard.layout.box import Box
    from reshard.plan import RankPlan, TargetTensor
    from reshard.plan.columns import Numbers
    from reshard.plan.geometry import Overlap
    from reshard.plan.rank import TensorGroup
    from reshard.plan.runs import Runs

FORMATS = st.sampled_from(["ckpt", "safetensors"])


@dataclass(frozen=True)
class Mistake:
    """One that a plan could have.

    Attributes:
        how: "boxes": two source boxes of one shape are taken for each other; "copies": their ranks too; "offset": a source box
            is shifted; "place": a target box is; "rank": another source rank.
        part: which part of a tensor has it.
        what: the other part, or axis and direction, or the source rank.
    """

    how: str
    part: int
    what: tuple[int, ...]

    @property
    def is_seen_by_proof(self) -> bool:
        return self.how == "place"

    def made_in(self, plan: RankPlan, number: int, entries: dict[int, TensorEntry]) -> RankPlan:
        """Return the plan with this mistake in one tensor, which gets a group of its own."""
        groups = list(plan.groups)
        group = groups.pop(int(plan.group_of[number]))
        tensor, inside = plan.tensors[number], group.numbers == number
        if not inside.all():
            rest = tuple(positions[~inside] for positions in group.positions)
            groups.append(replace(group, numbers=group.numbers[~inside], positions=rest))
        parts, ranks = list(tensor.geometry.overlaps), list(tensor.ranks)
        held = [positions[inside] for positions in group.positions]
        at, part = self.part, parts[self.part]
        if self.how in {"boxes", "copies"}:
            (other,) = self.what
            parts[at], parts[other] = (
                replace(part, source=parts[other].source),
                replace(parts[other], source=part.source),
            )
            if self.how == "copies":
                ranks[at], ranks[other] = ranks[other], ranks[at]
                held[at], held[other] = held[other], held[at]
        elif self.how == "offset":
            parts[at] = replace(part, source=shifted(part.source, *self.what))
        elif self.how == "place":
            target = shifted(part.target, *self.what)
            first, end = flat_span(tensor.shape, target)
            parts[at] = replace(part, target=target, first=first, end=end)
        else:
            (ranks[at],) = self.what
            held[at] = np.array([plan.tables.of_rank(ranks[at]).structure.tensors.index(entries[ranks[at]])])
        geometry = replace(tensor.geometry, overlaps=tuple(parts))
        wrong = replace(group, numbers=np.array([number]), geometry=geometry, ranks=tuple(ranks), positions=tuple(held))
        return replace(plan, groups=(*groups, wrong))


def shifted(box: Box, axis: int, by: int) -> Box:
    return replace(box, start=(*box.start[:axis], box.start[axis] + by, *box.start[axis + 1 :]))


def mistakes(tensor: TargetTensor, entries: dict[int, TensorEntry]) -> Iterator[Mistake]:
    """All that a plan of this tensor could have and still read within files and write within the slice."""
    parts = tensor.geometry.overlaps
    for at, other in combinations(range(len(parts)), 2):
        if parts[at].source.shape == parts[other].source.shape:
            if parts[at].source != parts[other].source:
                yield Mistake("boxes", at, (other,))
            yield Mistake("copies", at, (other,))
    for at, part in enumerate(parts):
        yield from (Mistake("rank", at, (rank,)) for rank in entries if rank != tensor.ranks[at])
        for how, box, shape in (("offset", part.source, part.source_shape), ("place", part.target, tensor.shape)):
            for axis, length in enumerate(shape):
                if box.start[axis] > 0:
                    yield Mistake(how, at, (axis, -1))
                if box.start[axis] + box.shape[axis] < length:
                    yield Mistake(how, at, (axis, 1))


def entries_of(made: Task, tensor: TargetTensor) -> dict[int, TensorEntry]:
    """A parameter in each source file that has it in the same shape."""
    inventory = made.model.inventory
    return {
        file.rank: entry
        for file in inventory.files
        for entry in inventory.structures[file.structure].tensors
        if (entry.name, entry.shape) == (tensor.parameter.source_name, tensor.entries[0].shape)
    }


def proves(plan: RankPlan) -> bool:
    try:
        prove(plan)
    except BugError:
        return False
    return True


def verifies(made: Task, content: bytes, plan: RankPlan, level: Verified, reader: MemoryReader | None = None) -> bool:
    name = f"y.{made.output.name}"
    found = reader or MemoryReader(name, content)
    try:
        described = made.output.entries(MemoryReader(name, content), made.tensors(plan.rank))
        check_file(found, plan, made.model, made.source_files(), level, described)
    except BugError as error:
        if error.reason != "VerificationFailed":
            raise
        return False
    return True


def sampled(made: Task, content: bytes, plan: RankPlan) -> np.ndarray:
    """Return the bytes of a correct file that a sample compares."""
    reader = MemoryReader(f"y.{made.output.name}", content)
    assert verifies(made, content, plan, "Sample", reader)
    found = np.zeros(len(content), np.bool_)
    for offset, length in reader.reads:
        found[offset : offset + length] = True
    return found


@examples(500)
@given(models.models(16), FORMATS, FORMATS, st.data())
def test_elements_in_wrong_places_do_not_verify(model: models.Model, source: str, target: str, data: st.DataObject) -> None:
    """Neither by the right plan, nor by the plan that they were written with, whose places are wrong."""
    model = model.repeated(data.draw(st.sampled_from([1, 1, 12])))  # many tensors that are alike are compared together
    made, _ = task(model, source, target)
    plan = made.planner.plan(data.draw(st.integers(0, model.target_ranks - 1)))
    possible = [
        (number, mistake, entries)
        for number, tensor in enumerate(plan.tensors)
        if prod(tensor.shape)
        for entries in (entries_of(made, tensor),)
        for mistake in mistakes(tensor, entries)
    ]
    how = sorted({mistake.how for _, mistake, _ in possible})
    assume(how)
    chosen = data.draw(st.sampled_from(how))
    number, mistake, entries = data.draw(st.sampled_from([each for each in possible if each[1].how == chosen]))
    wrong = mistake.made_in(plan, number, entries)
    assert proves(plan)
    assert proves(wrong) == (not mistake.is_seen_by_proof)

    right, content = streamed(made, plan), streamed(made, wrong)
    differs = np.frombuffer(right, np.uint8) != np.frombuffer(content, np.uint8)
    seen = sampled(made, right, plan)
    assert verifies(made, content, plan, "Full") == (not differs.any())
    assert verifies(made, content, plan, "Sample") == (not (differs & seen).any())
    if not mistake.is_seen_by_proof:
        assert not (verifies(made, content, wrong, "Full") and differs.any())
        assert not (verifies(made, content, wrong, "Sample") and (differs & seen).any())


@pytest.mark.parametrize("level", ["Sample", "Full"])
def test_small_tensors_that_were_not_cast_do_not_verify(level: Verified) -> None:
    cut = models.Cut((2,), ((0,), ()))
    tensors = tuple(models.Tensor(f"t{i}", "Float16", (4, 2), cut, 0, cut, 0) for i in range(20))
    model = models.Model(2, 1, 2, 1, tensors, 1, remove_redundancy=False)
    made, _ = task(model, "ckpt", "safetensors", cast=(CastRule("*", "BFloat16"),))
    plan, content = made.planner.plan(0), bytearray(written(made, 0))
    assert verifies(made, bytes(content), plan, level)
    for entry in made.output.entries(MemoryReader("y.safetensors", bytes(content)), made.tensors(0)):
        offset, length = entry.extents[0]
        content[offset : offset + length] = model.target(0)[entry.name].tobytes()
    assert not verifies(made, bytes(content), plan, level)


def exchanged(sources: Numbers) -> Numbers:
    """Return the places of pieces in the opposite order."""
    return sources[::-1].copy()


def wrong_runs(found: Runs) -> Runs:
    assert len(set(found.lengths.tolist())) == 1
    return found._replace(sources=exchanged(found.sources))


def replaced(patch: pytest.MonkeyPatch, usual: Callable[..., object], wrong: Callable[..., object]) -> None:
    """Replace a function in every module that uses it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("reshard.") and getattr(module, usual.__name__, None) is usual:
            patch.setattr(module, usual.__name__, wrong)


def bug_in_scatter(patch: pytest.MonkeyPatch) -> None:
    usual = small.scatter
    replaced(patch, usual, lambda content, start, found, into: usual(content, start, wrong_runs(found), into))


def bug_in_joined(patch: pytest.MonkeyPatch) -> None:
    usual = runs.joined

    def wrong(found: Runs, most: int) -> tuple[Runs, list[runs.Joined]]:
        alone, together = usual(found, most)
        return alone, [each._replace(runs=wrong_runs(each.runs)) for each in together]

    replaced(patch, usual, wrong)


def bug_in_offsets(patch: pytest.MonkeyPatch) -> None:
    usual = Columns.__init__

    def wrong(self: Columns, *arguments: Any) -> None:
        usual(self, *arguments)
        self.offsets = exchanged(self.offsets)

    patch.setattr(Columns, "__init__", wrong)


def bug_in_find(patch: pytest.MonkeyPatch) -> None:
    usual = Columns.find
    patch.setattr(Columns, "find", lambda self, names: exchanged(usual(self, names)))


BUGS = {"scatter": bug_in_scatter, "joined": bug_in_joined, "offsets": bug_in_offsets, "find": bug_in_find}


@pytest.mark.parametrize("count", [4, 40])
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_what_copies_many_small_tensors_is_found(bug: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification shares none of it. The comparison of few tensors finds the same bugs."""
    rows, columns = models.Cut((4,), ((0,), ())), models.Cut((4,), ((), (0,)))
    tensors = tuple(models.Tensor(f"w{i:02}", "Float32", (8, 32), rows, 0, columns, 0) for i in range(count))
    model = models.Model(4, 1, 4, 1, tensors, 1, remove_redundancy=False)
    right, _ = task(model, "safetensors", "safetensors")
    expected = streamed(right, right.planner.plan(1))
    assert verifies(right, expected, right.planner.plan(1), "Full")
    BUGS[bug](monkeypatch)
    wrong, _ = task(model, "safetensors", "safetensors")
    plan = wrong.planner.plan(1)
    content = streamed(wrong, plan)
    if count > 8 or bug == "find":  # few tensors are not read together
        assert content != expected
    for level in ("Sample", "Full"):
        assert verifies(wrong, content, plan, level) == (content == expected)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
@pytest.mark.parametrize("count", [4, 40])
def test_what_is_known_of_one_rank_hides_no_mistake_in_the_next(count: int, kind: str) -> None:
    cut = models.Cut((4,), ((0,), ()))
    tensors = tuple(models.Tensor(f"w{i:02}", "Float32", (8, 32), cut, 0, cut, 0) for i in range(count))
    made, _ = task(models.Model(4, 1, 4, 1, tensors, 1, remove_redundancy=False), "safetensors", kind)
    known, name = Known(), f"y.{kind}"

    def check(rank: int, content: bytes) -> None:
        reader, plan = MemoryReader(name, content), made.planner.plan(rank)
        described = known.read(lambda seen: made.output.entries(reader, made.tensors(rank), seen), at_once=False)
        check_file(reader, plan, made.model, made.source_files(), "Sample", described, known=known)

    files = [written(made, rank) for rank in range(4)]
    for rank, content in enumerate(files):
        check(rank, content)
    right = files[2]
    for content in (files[1], right[:-1] + bytes([right[-1] ^ 1]), right.replace(b"w00", b"w99"), right.replace(b"w01", b"w00")):
        with pytest.raises((BugError, DataError)):
            check(2, content)
        check(2, right)


def test_equal_headers_are_parsed_once() -> None:
    known = Known()

    def read(content: bytes) -> tuple[TensorEntry, ...]:
        reader = MemoryReader("y.safetensors", content)
        return known.read(lambda seen: safetensors.read_header(reader, seen).structure.tensors, at_once=False)

    one, other = (rawfiles.write("safetensors", {name: np.zeros(4, np.float32)}) for name in "ab")
    first = read(one)
    assert read(one) is first
    assert [entry.name for entry in read(other)] == ["b"]
    assert read(one) is not first  # only the last one is kept
    assert read(one) == first


def plan_of_two() -> tuple[Task, RankPlan]:
    """Return a plan of two tensors of one kind, which are in one group."""
    cut = models.Cut((2,), ((0,), ()))
    tensors = tuple(models.Tensor(name, "Float32", (4, 2), cut, 0, cut, 0) for name in ("a", "b"))
    made, _ = task(models.Model(2, 1, 2, 1, tensors, 1, remove_redundancy=False), "ckpt", "ckpt")
    return made, made.planner.plan(0)


def test_a_file_with_more_than_was_planned_does_not_verify() -> None:
    made, plan = plan_of_two()
    reader = MemoryReader("y.ckpt", written(made, 0))
    described = made.output.entries(reader, made.tensors(0))
    (group,) = plan.groups
    less = replace(group, numbers=group.numbers[:1], positions=tuple(each[:1] for each in group.positions))
    fewer = replace(plan, parameters=plan.parameters[:1], groups=(less,))
    assert proves(fewer)
    with pytest.raises(BugError, match="not planned: b"):
        check_file(reader, fewer, made.model, made.source_files(), "Full", described)


def test_tensors_of_other_names_types_or_kinds_are_no_plan() -> None:
    _, plan = plan_of_two()
    (group,) = plan.groups
    kind = replace(group.kind)  # an equal kind is another one
    wrong = {
        "the entries of two names are exchanged": replace(group, positions=tuple(each[::-1] for each in group.positions)),
        "the entries have another type": replace(group, kind=replace(group.kind, dtype="Int32")),
        "the entries have another shape": replace(group, geometry=replace(group.geometry, overlaps=shorter(group))),
        "an overlap has no rank": replace(group, ranks=group.ranks[:-1]),
        "an overlap has no entries": replace(group, positions=group.positions[:-1]),
        "the parameters are of another kind": replace(group, kind=kind),
    }
    for what, found in wrong.items():
        assert not proves(replace(plan, groups=(found,))), what
    first = replace(group, numbers=group.numbers[:1], positions=tuple(each[:1] for each in group.positions))
    assert not proves(replace(plan, groups=(first,)))
    assert not proves(replace(plan, groups=(group, first)))
    assert not proves(replace(plan, groups=()))
    assert proves(plan)


def shorter(group: TensorGroup) -> tuple[Overlap, ...]:
    """Return overlaps with source slices that have one row less than the files."""
    return tuple(
        replace(each, source_shape=(each.source_shape[0] - 1, *each.source_shape[1:])) for each in group.geometry.overlaps
    )


def test_a_disk_learns_early_which_bytes_a_sample_compares() -> None:
    rows, columns = models.Cut((2,), ((0,), ())), models.Cut((2,), ((), (0,)))
    tensors = tuple(models.Tensor(f"w{i:02}", "Float32", (128, 256), rows, 0, columns, 0) for i in range(12))
    made, _ = task(models.Model(2, 1, 2, 1, tensors, 1, remove_redundancy=False), "ckpt", "ckpt")
    files, plan = made.source_files(), made.planner.plan(0)
    content, announced_at_first = written(made, 0), list[int]()

    class Watched(MemoryReader):
        def read(self, offset: int, length: int) -> bytes:
            announced_at_first.append(len(self.announced))
            return super().read(offset, length)

    found = Watched("y.ckpt", content)
    described = made.output.entries(MemoryReader("y.ckpt", content), made.tensors(0))
    readers = [found, *map(files.opened, range(2))]
    for reader in readers:
        assert isinstance(reader, MemoryReader)
        reader.reads.clear()  # the sample that identifies a file
    check_file(found, plan, made.model, files, "Sample", described)
    for reader in readers:
        assert isinstance(reader, MemoryReader)
        assert reader.reads
        assert set(reader.reads) == set(reader.announced)
    of_one = len(found.announced) // len(tensors)
    assert of_one < announced_at_first[0] < len(found.announced)
