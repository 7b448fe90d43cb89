"""Loads into memory of the caller: each buffer is filled in place, or refused by name before anything is read."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import disk
import ml_dtypes
import numpy as np
import pytest
import rawfiles
from memory_store import MemoryReader
from memory_tasks import task
from rawfiles import same

import reshard
from reshard.errors import DataError, RequestError, UsageError
from reshard.online.load import tensors_of
from reshard.storage.traffic import Meter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EXPECTED = disk.example().target(0)


def buffers() -> dict[str, Any]:
    return {name: np.full_like(array, 1) for name, array in EXPECTED.items()}


class Exported:
    """An object that only supports DLPack."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0


class Tensor:
    """A tensor of torch, over an array."""

    layout = "strided"

    def __init__(self, array: np.ndarray, device: str = "cpu") -> None:
        self.array, self.device = array, SimpleNamespace(type=device)
        self.dtype, self.shape = array.dtype, array.shape

    def is_contiguous(self) -> bool:
        return self.array.flags.c_contiguous

    def is_conj(self) -> bool:
        return False

    is_neg = is_conj

    def numel(self) -> int:
        return self.array.size

    def element_size(self) -> int:
        return self.array.itemsize

    def untyped_storage(self) -> Any:
        return SimpleNamespace(nbytes=lambda: self.array.nbytes)

    def data_ptr(self) -> int:
        return self.array.ctypes.data


class DTensor(Tensor):
    pass


@pytest.fixture
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name: np.dtype(name) for name in ("float32", "int32", "int8")} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    nn = SimpleNamespace(Parameter=DTensor.__mro__[2])
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=Tensor, nn=nn, strided="strided", **kinds))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: Exported(array, 3)], ids=["numpy", "DLPack"])
def test_buffers_are_filled_and_returned(wrap: Callable[[np.ndarray], Any], together: bool) -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    arrays = buffers()
    out = {name: array if array.dtype == ml_dtypes.bfloat16 else wrap(array) for name, array in arrays.items()}
    found = dict(tensors_of(made, 0, out=out, together=together))
    assert all(found[name] is out[name] for name in EXPECTED)
    assert same(arrays, EXPECTED)


@pytest.mark.usefixtures("_torch")
def test_torch_tensors_are_filled_and_returned() -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    arrays = buffers()
    out = {name: Tensor(array) for name, array in arrays.items()}
    assert dict(tensors_of(made, 0, out=out)) == out
    assert same(arrays, EXPECTED)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


UNFIT: list[tuple[Callable[[np.ndarray], Any], str]] = [
    (lambda a: a[:-1], r"has the shape \[47, 4\], but the tensor has \[48, 4\]"),
    (lambda a: a[np.newaxis], r"has the shape \[1, 48, 4\]"),
    (lambda a: a.astype(np.float64), "has the type float64, but the tensor has float32; pass a buffer of this type, or use cast"),
    (lambda a: a.astype(">f4"), "has the type >f4"),
    (np.asfortranarray, "is not contiguous in row-major order"),
    (lambda a: np.repeat(a, 2, 1)[:, ::2], "is not contiguous in row-major order"),
    (read_only, "is read-only"),
    (lambda a: a.tolist(), "is a list; pass a numpy array, a torch tensor"),
    (memoryview, "is a memoryview"),
    (lambda a: Exported(a, 2), r"is on a device \(DLPack type 2, number 0\); pass host memory"),
    (lambda a: Exported(read_only(a)), "is read-only|cannot be imported with DLPack"),
    (lambda a: Exported(a[:, :2]), r"has the shape \[48, 2\]"),
]


@pytest.mark.parametrize(("change", "said"), UNFIT)
def test_a_buffer_that_does_not_fit_is_refused_by_name_before_anything_is_read(
    change: Callable[[np.ndarray], Any], said: str
) -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    meter, arrays = Meter(), buffers()
    with pytest.raises(UsageError, match=rf"^BufferInvalid: parameter w: the buffer .*({said})"):
        tensors_of(made, 0, meter, out=arrays | {"w": change(arrays["w"].copy())})
    with pytest.raises(UsageError, match=rf"^BufferInvalid: parameter w: the buffer .*({said})"):
        dict(
            tensors_of(
                made, 0, meter, out=lambda name, *_: change(arrays[name].copy()) if name == "w" else arrays[name], together=True
            )
        )
    assert meter.traffic.nbytes == 0
    assert all((array == 1).all() for array in arrays.values())


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (DTensor, "is a DTensor; pass a plain tensor, such as tensor.to_local"),
        (lambda a: Tensor(a, "cuda"), "is on the device .*; pass a tensor in host memory, which may be pinned"),
        (lambda a: Tensor(a.astype(np.int32)), "has the type int32, but the tensor has float32"),
        (lambda a: Tensor(a.T), r"has the shape \[4, 48\]"),
        (lambda a: Tensor(np.asfortranarray(a)), "is not contiguous"),
    ],
)
def test_a_torch_tensor_that_does_not_fit_is_refused_by_name(change: Callable[[np.ndarray], Any], said: str) -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    arrays = buffers()
    with pytest.raises(UsageError, match=f"^BufferInvalid: parameter w: the buffer {said}"):
        tensors_of(made, 0, out=arrays | {"w": change(arrays["w"].copy())})


def test_names_without_a_buffer_and_buffers_without_a_tensor_are_refused() -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    arrays = buffers()
    with pytest.raises(UsageError, match=r"^BufferUnused: parameter other: .*; remove the buffer"):
        tensors_of(made, 0, out=arrays | {"other": arrays["w"]})
    del arrays["step"]
    with pytest.raises(UsageError, match=r"^BufferMissing: parameter step: .*exclude=\('step',\)"):
        tensors_of(made, 0, out=arrays)


def test_buffers_with_common_memory_are_refused() -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    memory = np.zeros(4096, np.uint8)
    arrays = buffers()
    apart = arrays | {"w": memory[:768].view("f4").reshape(48, 4), "step": memory[768:772].view("i4").reshape(())}
    assert same(dict(tensors_of(made, 0, out=apart)), EXPECTED)
    common = apart | {"step": memory[764:768].view("i4").reshape(())}
    with pytest.raises(UsageError, match=r"^BufferInvalid: parameter (w|step): the buffer shares memory with the buffer of"):
        tensors_of(made, 0, out=common)
    with pytest.raises(UsageError, match=r"^BufferInvalid: parameter (w|step): the buffer shares memory with the buffer of"):
        dict(tensors_of(made, 0, out=lambda name, *_: common[name], together=True))


def test_a_function_allocates_each_tensor_with_its_shape_and_type() -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    asked, given = [], {}

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        asked.append(name)
        given[name] = np.empty(shape, dtype)
        return given[name]

    found = dict(tensors_of(made, 0, out=allocate, together=True))
    assert same(found, EXPECTED)
    assert asked == list(found)
    assert all(found[name] is given[name] for name in asked)


def test_an_iterator_asks_for_one_tensor_at_a_time_and_accepts_the_same_memory_again() -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    memory, asked = np.zeros(4096, np.uint8), []

    def allocate(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        asked.append(name)
        return memory[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    found = {}
    for name, array in tensors_of(made, 0, out=allocate):
        found[name] = array.copy()
        assert asked == list(found)
    assert same(found, EXPECTED)


@pytest.mark.usefixtures("_torch")
def test_a_function_gets_the_types_of_the_framework() -> None:
    made, _ = task(disk.example(), "ckpt", "ckpt")
    types = {}

    def allocate(name: str, shape: tuple[int, ...], dtype: Any) -> Tensor:
        types[name] = dtype
        return Tensor(np.empty(shape, dtype))

    found = dict(tensors_of(made, 0, framework="torch", out=allocate))
    assert types["m"] is sys.modules["torch"].bfloat16
    assert same({name: tensor.array for name, tensor in found.items()}, EXPECTED)


def test_types_without_buffers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.ckpt").write_bytes(rawfiles.message("t", [0], "str", "x".encode("utf-32-le")))
    with pytest.raises(RequestError, match=r"^UnknownType: parameter t: text cannot be loaded into a buffer; exclude"):
        reshard.load(str(tmp_path), out={"t": np.zeros((), "<U1")})
    (tmp_path / "net.ckpt").write_bytes(rawfiles.message("h", [2], "HiFloat8", b"ab"))
    with pytest.raises(DataError, match=r"^UnknownType: parameter h"):
        reshard.load(str(tmp_path), out={"h": np.zeros(2, np.uint8)})


def test_load_and_iter_tensors_pass_buffers_on(made: disk.Checkpoint) -> None:
    for function in (reshard.load, reshard.iter_tensors):
        arrays = buffers()
        found = dict(function(str(made.source), str(made.source_strategy), str(made.target_strategy), 0, out=arrays))
        assert all(found[name] is arrays[name] for name in EXPECTED)
        assert same(arrays, EXPECTED)


def test_a_load_that_fails_returns_no_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    made, store = task(disk.example(), "ckpt", "ckpt")
    monkeypatch.setattr(MemoryReader, "version", "2", raising=False)
    store.files = {path: content + b"\0" for path, content in store.files.items()}
    with pytest.raises(DataError, match="SourceChanged"):
        dict(tensors_of(made, 0, out=buffers()))
