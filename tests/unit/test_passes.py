"""Which ranks share a pass over the source."""

from __future__ import annotations

import gc
import resource
import weakref
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import models
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_tasks import task

from reshard.checkpoint.blockcipher import cipher_of
from reshard.checkpoint.encryption import Encryptor
from reshard.engine.content import Conditions, Content
from reshard.engine.memory import memory_bytes, pass_budget, pass_limits
from reshard.plan.passes import Limits, equal_targets, passes
from reshard.spec.storage_options import StorageOptions
from reshard.storage.local import LocalStore
from reshard.storage.s3.store import S3Store
from reshard.transform.ranks import most_files

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = models.Cut((4,), ((), (0,))), models.Cut((8,), ((), (0,)))
REPLICAS = models.Cut((4,), ((0,), ())), models.Cut((4, 2), ((0,), ()))
ROWS = models.Cut((4,), ((0,), ())), models.Cut((8,), ((0,), ()))
TO_COLUMNS = models.Cut((4,), ((0,), ())), models.Cut((8,), ((), (0,)))
ALL = tuple(range(8))


def planned(*cuts: tuple[models.Cut, models.Cut], limits: Limits) -> tuple[tuple[int, ...], ...]:
    tensors = tuple(models.Tensor(f"w{i}", "Float32", (64, 512), a, 0, b, 0) for i, (a, b) in enumerate(cuts))
    made, _ = task(models.Model(4, 1, 8, 1, tensors, 1, remove_redundancy=False), "safetensors", "safetensors")
    return passes(made.planner, ALL, limits)


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        ([COLUMNS], ((0, 1), (2, 3), (4, 5), (6, 7))),
        ([REPLICAS], ((0, 2, 4, 6), (1, 3, 5, 7))),
        ([ROWS], tuple((rank,) for rank in ALL)),
        ([ROWS, TO_COLUMNS], (ALL,)),
    ],
)
def test_ranks_that_need_the_same_bytes_share_a_pass(
    cuts: list[tuple[models.Cut, models.Cut]], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert planned(*cuts, limits=Limits(64, 1000, equal=True, few=1, run=64 << 10)) == expected


def test_long_runs_are_read_by_each_rank() -> None:
    assert planned(COLUMNS, limits=Limits(64, 1000, equal=True, few=1, run=256)) == tuple((rank,) for rank in ALL)


def test_the_fewest_passes_are_made_and_neighbours_stay_together() -> None:
    assert planned(TO_COLUMNS, limits=Limits(3, 1000, equal=True, few=1, run=64 << 10)) == ((0, 1), (2, 3, 4), (5, 6, 7))
    assert planned(TO_COLUMNS, REPLICAS, limits=Limits(64, 8, equal=True, few=1, run=64 << 10)) == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert planned(COLUMNS, limits=Limits(64, 1000, equal=True, few=5, run=64 << 10)) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert planned(REPLICAS, limits=Limits(1, 1000, equal=False, few=1, run=64 << 10)) == tuple((rank,) for rank in ALL)


def test_a_pass_writes_as_many_ranks_as_files_can_be_open() -> None:
    limits = Limits(64, 1000, equal=True, few=1, run=64 << 10)
    assert planned(REPLICAS, limits=limits._replace(ranks=3)) == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert planned(TO_COLUMNS, limits=limits._replace(ranks=3)) == ((0, 1), (2, 3, 4), (5, 6, 7))
    assert planned(COLUMNS, limits=limits._replace(few=5, ranks=2)) == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_equal_files_that_are_encrypted_count_separately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    assert pass_limits(store, store, 1, encrypts=False).equal
    assert not pass_limits(store, store, 1, encrypts=True).equal
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert pass_limits(store, store, 1, encrypts=False).ranks == 512


def test_equal_files_take_the_memory_of_one(tmp_path: Path) -> None:
    tensors = (models.Tensor("w", "Float32", (64, 512), REPLICAS[0], 0, REPLICAS[1], 0),)
    made, _ = task(models.Model(4, 1, 8, 1, tensors, 1, remove_redundancy=False), "ckpt", "ckpt")
    store = LocalStore(tmp_path)
    assert most_files(made, store, [ALL]) == 2
    assert most_files(made, store, [(0, 2, 4, 6), (1,)]) == 1
    assert most_files(made, store, [(0,), (1,)]) == 0
    few, many = (memory_bytes(made.model, 1, store, store, (), files=1, ranks=ranks) for ranks in (4, 64))
    assert 0 < many - few < 1 << 18  # the plans of the ranks, without tiles
    encrypted = replace(made, cipher=cipher_of("AES-GCM", b"0123456789abcdef"))
    assert most_files(encrypted, store, [ALL]) == 8


def test_the_bound_of_a_pass_covers_passes_with_fewer_files(tmp_path: Path) -> None:
    """Memory is divided among the files, so that some passes take more than others with more files."""
    tensors = (models.Tensor("w", "Float32", (64, 512), REPLICAS[0], 0, REPLICAS[1], 0),)
    made, _ = task(models.Model(4, 1, 8, 1, tensors, 1, remove_redundancy=False), "ckpt", "ckpt")
    local, bucket = LocalStore(tmp_path), S3Store("s3://bucket", StorageOptions(endpoint="http://127.0.0.1:1", region="x"))
    for source, target in product((local, bucket), repeat=2):
        bounds = [memory_bytes(made.model, 1, source, target, (4 << 30,), files=files, ranks=8) for files in range(1, 65)]
        assert bounds == sorted(bounds)


def test_a_batch_of_a_local_source_fills_a_tile_of_each_of_eight_files(tmp_path: Path) -> None:
    local = LocalStore(tmp_path)
    found = {files: pass_budget(files, 2, local, local) for files in (1, 4, 8, 64)}
    assert {files: (each.batch >> 20, each.batches) for files, each in found.items()} == {
        1: (8, 4),
        4: (8, 4),
        8: (16, 2),
        64: (16, 2),
    }
    assert found[8].tile * 8 <= found[8].batch


def test_the_block_of_an_encrypted_file_is_freed_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, the blocks of one pass would still take memory in the next one."""
    alive = weakref.WeakSet[Encryptor]()
    usual = Encryptor.__init__

    def recorded(self: Encryptor, *arguments: Any) -> None:
        usual(self, *arguments)
        alive.add(self)

    monkeypatch.setattr(Encryptor, "__init__", recorded)
    tensors = (models.Tensor("w", "Float32", (64, 512), ROWS[0], 0, ROWS[1], 0),)
    made, _ = task(models.Model(4, 1, 8, 1, tensors, 1, remove_redundancy=False), "ckpt", "ckpt")
    content = Content(replace(made, cipher=cipher_of("AES-GCM", b"0123456789abcdef")), (), Conditions())
    assert len(alive) == 1
    gc.disable()
    try:
        content.emit(memoryview(b"content"))
        content.finish()
        assert not alive
    finally:
        gc.enable()


@examples(300)
@given(model=models.models(16), files=st.integers(1, 20), tensors=st.integers(1, 200), few=st.integers(1, 8), equal=st.booleans())
def test_every_rank_is_in_one_pass_within_the_limits(
    model: models.Model, files: int, tensors: int, few: int, *, equal: bool
) -> None:
    made, _ = task(model, "safetensors", "safetensors")
    ranks = tuple(range(model.target_ranks))
    found = passes(made.planner, ranks, Limits(files, tensors, equal=equal, few=few, run=64 << 10))
    assert sorted(rank for some in found for rank in some) == list(ranks)
    for some in found:
        count = len(equal_targets(made.planner, some)) if equal else len(some)
        assert count <= files
        assert count == 1 or max(len(made.planner.parameters(rank)) for rank in some) * count <= tensors
