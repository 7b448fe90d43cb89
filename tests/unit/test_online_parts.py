"""Loads that several threads read in parts: the bytes that numpy cuts, each read once, and nothing after an error."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut, held
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryReader
from memory_tasks import task
from rawfiles import same

import reshard
from reshard.engine.gather import Gatherer
from reshard.errors import StorageError
from reshard.layout.box import Box
from reshard.layout.tiles import divide, flat_span
from reshard.online import parts, reading
from reshard.online.load import tensors_of
from reshard.plan import rank as plan_rank
from reshard.spec.rules import CastRule, PadRule
from reshard.storage.traffic import Meter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import thin_s3

    from reshard.engine.task import Task

# Lengths in bytes, so that tiny tensors are divided as large ones are.
SMALL = {
    parts: {
        "_MOST_PART_BYTES": 64,
        "_LEAST_PART_BYTES": 32,
        "_LONG_RUN_BYTES": 24,
        "_LONG_REMOTE_RUN_BYTES": 48,
        "GAP_BYTES": 16,
        "TILE_BYTES": 128,
    },
    reading: {"_JOB_BYTES": 40, "_PREFETCH_BYTES": 4096, "GAP_BYTES": 16, "TILE_BYTES": 128},
    plan_rank: {"SMALL_BYTES": 8},
}
KINDS = st.sampled_from(["ckpt", "safetensors"])


@contextmanager
def small_parts() -> Iterator[None]:
    """Divide tiny tensors too."""
    with ExitStack() as stack:
        for module, values in SMALL.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        yield


def loaded(made: Task, rank: int, meter: Meter | None = None, **how: Any) -> dict[str, np.ndarray]:
    with small_parts():
        return dict(tensors_of(made, rank, meter, **how))


@examples(300)
@given(models.models(), KINDS, st.integers(1, 4), st.booleans(), st.booleans())
def test_every_rank_gets_exactly_its_slices(model: models.Model, kind: str, workers: int, together: bool, remote: bool) -> None:
    made, store = task(model, kind, kind)
    store.remote = remote
    for rank in range(min(4, model.target_ranks)):
        meter = Meter()
        expected = model.target(rank)
        assert same(loaded(made, rank, meter, workers=workers, together=together), expected)
        needed = sum(array.nbytes for array in expected.values())
        assert remote or meter.traffic.nbytes <= 4 * needed + (64 << 10)


@examples(100)
@given(models.models(), KINDS, st.sampled_from(["Float32", "BFloat16", "Float64"]), st.data())
def test_casts_and_padding_equal_those_of_a_load_in_one_piece(
    model: models.Model, kind: str, to: Any, data: st.DataObject
) -> None:
    rules = [
        PadRule(tensor.name, dimension, count * data.draw(st.integers(1, 4)))
        for tensor in model.tensors
        for dimension, count in enumerate(models.parts(tensor.target, len(tensor.shape)))
        if data.draw(st.booleans())
    ]
    made, store = task(model, kind, kind, cast=(CastRule("*", to),), pad=tuple(rules))
    store.remote = data.draw(st.booleans())
    for rank in range(min(4, model.target_ranks)):
        assert same(loaded(made, rank, workers=3, together=True), dict(tensors_of(made, rank)))


def test_padding_overwrites_what_a_buffer_contained() -> None:
    cut = Cut((2,), ((), (0,)))
    tensor = models.Tensor("w", "Float32", (20, 8), Cut((4,), ((0,), ())), 0, cut, 0)
    model = models.Model(4, 1, 2, 1, (tensor,), 0, remove_redundancy=False)
    made, _ = task(model, "safetensors", "safetensors", pad=(PadRule("w", 0, 30), PadRule("w", 1, 12)))
    whole = np.zeros((30, 12), np.float32)
    whole[:20, :8] = model.whole(tensor)
    for rank, indexes in enumerate(held(whole.shape, cut)):
        found = loaded(made, rank, out={"w": np.full((30, 6), 7, np.float32)})
        assert same(found, {"w": whole.reshape(-1)[indexes]})


@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC"])
@pytest.mark.parametrize("workers", [1, 4])
def test_encrypted_sources(mode: Any, workers: int, tmp_path: Path) -> None:
    made = disk.write(tmp_path / "made", disk.example())
    (tmp_path / "key").write_bytes(b"0123456789abcdef")
    key = reshard.Encryption(reshard.Key(file=str(tmp_path / "key")), mode)
    encrypted = str(tmp_path / "encrypted")
    request = reshard.Request(str(made.source), encrypted, str(made.source_strategy), str(made.target_strategy), encryption=key)
    reshard.transform_checkpoint(request)
    with small_parts():
        for rank in range(6):
            how = {"source_strategy": str(made.target_strategy), "target_strategy": str(made.target_strategy)}
            assert same(reshard.load(encrypted, rank=rank, decryption=key, workers=workers, **how), made.model.target(rank))


@examples(200)
@given(st.data())
def test_a_box_is_divided_in_order_into_boxes_of_limited_span(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), max_size=4)))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = Box(start, tuple(data.draw(st.integers(1, n - a)) for n, a in zip(shape, start, strict=True)))
    most = data.draw(st.integers(1, 300))
    found = list(divide(shape, box, most))
    assert all(end - first <= most for first, end in (flat_span(shape, part) for part in found))
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    pieces = [numbers[part.slices()].reshape(-1) for part in found]
    assert np.concatenate(pieces).tolist() == numbers[box.slices()].reshape(-1).tolist()


@examples(200)
@given(st.data())
def test_a_box_is_gathered_into_any_strides(data: st.DataObject) -> None:
    """Source and target are windows of larger tensors; gaps are read or not."""
    shape = tuple(data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3)))
    whole = {"w": np.arange(np.prod(shape, dtype=int), dtype=data.draw(st.sampled_from([np.uint8, np.float32]))).reshape(shape)}
    tensor = models.Tensor("w", "UInt8" if whole["w"].itemsize == 1 else "Float32", shape, None, 0, None, 0)
    model = models.Model(1, 1, 1, 1, (tensor,), 0, remove_redundancy=False)
    made, _ = task(model, data.draw(KINDS), "ckpt")
    expected = model.whole(tensor)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = Box(start, tuple(data.draw(st.integers(1, n - a)) for n, a in zip(shape, start, strict=True)))
    room = np.zeros([n + data.draw(st.integers(0, 2)) for n in box.shape], f"u{expected.itemsize}")
    into = room[tuple(slice(0, n) for n in box.shape)]
    files = made.source_files(Meter())
    (entry,) = made.planner.plan(0).tensors[0].entries
    gatherer = Gatherer(files, data.draw(st.sampled_from([16, 64, 4096])), data.draw(st.sampled_from([0, 8, 4096])))
    gatherer.read(0, entry, box, into)
    files.close()
    assert into.tobytes() == np.ascontiguousarray(expected[box.slices()]).tobytes()
    assert np.count_nonzero(room) <= np.count_nonzero(into)


@pytest.mark.parametrize("remote", [False, True])
def test_each_byte_of_long_runs_is_read_once_and_nothing_else(remote: bool) -> None:
    cut = Cut((4,), ((0,), ())), 0, Cut((2,), ((0,), ())), 0
    tensors = tuple(models.Tensor(name, "Float32", (96, 32), *cut) for name in "ab")
    model = models.Model(4, 1, 2, 1, tensors, 0, remove_redundancy=False)
    made, store = task(model, "safetensors", "safetensors")
    store.remote = remote
    meter = Meter()
    assert same(loaded(made, 1, meter, workers=3, together=True), model.target(1))
    assert meter.traffic.nbytes == sum(array.nbytes for array in model.target(1).values())
    assert meter.traffic.requests == meter.traffic.nbytes // 64


def test_one_tensor_is_read_by_all_threads() -> None:
    tensor = models.Tensor("w", "Float32", (48, 32), None, 0, None, 0)
    model = models.Model(1, 1, 1, 1, (tensor,), 0, remove_redundancy=False)
    made, _ = task(model, "safetensors", "safetensors")
    three = threading.Barrier(3, timeout=60)

    def read_into(reader: MemoryReader, view: memoryview, offset: int) -> None:
        three.wait()  # breaks unless three threads read at the same time, all 96 parts
        view[:] = reader.read(offset, len(view))

    with mock.patch.object(MemoryReader, "read_into", read_into):
        assert same(loaded(made, 0, workers=3, together=True), model.target(0))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("nth", [1, 4, 8])
def test_a_read_that_fails_in_a_thread_ends_the_load(nth: int, together: bool) -> None:
    model = disk.example()
    made, _ = task(model, "ckpt", "ckpt")
    count, lock = [0], threading.Lock()

    def read_into(reader: MemoryReader, view: memoryview, offset: int) -> None:
        with lock:
            count[0] += 1
            fails = count[0] == nth
        if fails:
            raise StorageError("ReadFailed", "it failed", where=reader.name)
        view[:] = reader.read(offset, len(view))

    found: list[tuple[str, np.ndarray]] = []
    with mock.patch.object(MemoryReader, "read_into", read_into), small_parts(), pytest.raises(StorageError, match="it failed"):
        found.extend(tensors_of(made, 2, workers=3, together=together))
    assert len(found) < 4
    assert all(rawfiles.equal(array, model.target(2)[name]) for name, array in found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reshard-load")]


def test_threads_end_when_iteration_stops_early() -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    with small_parts():
        tensors = tensors_of(made, 0, workers=3)
        next(tensors)
        tensors.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reshard-load")]


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_objects(server: thin_s3.ThinServer, kind: str, tmp_path: Path) -> None:
    made = disk.write(tmp_path / "made", disk.example(), kind)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            server.put("bucket", str(path.relative_to(tmp_path)), path.read_bytes())
    base = "s3://bucket/made"
    with small_parts():
        for rank in range(6):
            found = reshard.load(f"{base}/src", f"{base}/source.ckpt", f"{base}/target.ckpt", rank)
            assert same(found, made.model.target(rank))
            tensors = reshard.iter_tensors(f"{base}/src", f"{base}/source.ckpt", f"{base}/target.ckpt", rank, workers=1)
            assert same(dict(tensors), made.model.target(rank))
