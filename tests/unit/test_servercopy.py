"""Parts of a file that a server copies by itself: the limits of uploads hold, and every byte is in one part."""

from __future__ import annotations

import memory_tasks
import models
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.engine.moves import moves
from reshard.engine.servercopy import UploadPart, parts, split
from reshard.storage.protocol import PartLimits

LIMITS = PartLimits(smallest=5 << 20, most=10_000, longest_copy=1 << 30)
ROWS = models.Cut((4,), ((0,), ()))
FEWER_ROWS = models.Cut((2,), ((0,), ()))
COLUMNS = models.Cut((2,), ((), (0,)))


def parts_of(
    shape: tuple[int, int], target: models.Cut, kind: str, count: int = 1, limits: PartLimits = LIMITS
) -> tuple[list[UploadPart], int]:
    tensors = tuple(models.Tensor(f"w{i}", "Float32", shape, ROWS, 0, target, 0) for i in range(count))
    model = models.Model(4, 1, 2, 1, tensors, 1, remove_redundancy=False)
    made, _ = memory_tasks.task(model, kind, kind)
    laid_out = list(split(moves(made.planner.plan(1), made.pieces(1))))
    found = parts(laid_out, limits)
    assert found is not None
    assert [part.first for part in found[1:]] == [part.end for part in found[:-1]]
    assert (found[0].first, found[-1].end) == (0, len(laid_out))
    assert sum(part.nbytes for part in found) == made.file_size(1)
    return found, sum(part.nbytes for part in found if part.rank is None)


def test_row_slices_are_copied_except_for_a_prefix() -> None:
    found, sent = parts_of((4096, 4096), FEWER_ROWS, "safetensors")
    assert [part.rank for part in found] == [None, 2, 3]
    assert LIMITS.smallest <= sent < LIMITS.smallest + (1 << 20) + 4096
    assert found[2].nbytes == 16 << 20
    assert found[1].offset + found[1].nbytes == found[2].offset + found[2].nbytes


def test_column_slices_are_sent() -> None:
    found, sent = parts_of((4096, 2048), COLUMNS, "safetensors")
    assert {part.rank for part in found} == {None}
    assert sent == sum(part.nbytes for part in found)


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["ckpt", "safetensors"]), st.integers(1, 4), st.booleans())
def test_all_parts_but_the_last_are_long_enough(rows: int, columns: int, kind: str, count: int, cut: bool) -> None:
    limits = LIMITS._replace(smallest=2000)
    found, _ = parts_of((4 * rows, 2 * columns), FEWER_ROWS if cut else COLUMNS, kind, count, limits)
    assert all(part.nbytes >= 2000 for part in found[:-1])
    assert all(part.nbytes >= 2000 for part in found if part.rank is not None)


def test_a_file_with_too_many_parts_is_not_copied() -> None:
    sent = [bytes(LIMITS.smallest)] * 4
    assert parts(sent, LIMITS._replace(most=4)) is not None
    assert parts(sent, LIMITS._replace(most=3)) is None


@pytest.mark.parametrize(("most", "fits"), [(4, True), (3, False)])
def test_a_long_copy_is_several_parts(most: int, fits: bool) -> None:
    # The beginning of one of two 4 MiB runs is sent.
    limits = LIMITS._replace(smallest=1 << 20, longest_copy=(4 << 20) - 1, most=most)
    tensors = (models.Tensor("w", "Float32", (1024, 4096), ROWS, 0, FEWER_ROWS, 0),)
    made, _ = memory_tasks.task(models.Model(4, 1, 2, 1, tensors, 1, remove_redundancy=False), "safetensors", "safetensors")
    laid_out = list(split(moves(made.planner.plan(1), made.pieces(1))))
    assert (parts(laid_out, limits) is not None) == fits
