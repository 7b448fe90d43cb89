"""Each type of each format through `reshard transform`, against the safetensors library, numpy and ml_dtypes."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from pages import ROOT
from safetensors import TensorSpec, deserialize, serialize

from reshard.checkpoint.arrays import array_of
from reshard.checkpoint.dtypes import BY_CKPT_NAME, BY_SAFETENSORS_NAME, BY_TORCH_NAME, DTYPES, OBJECT, STRING
from reshard.checkpoint.output import OutputTensor
from reshard.cli import main
from reshard.errors import DataError
from reshard.formats.registry import output_format
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Bits of one number of each type that safetensors 0.8.0 reads (safetensors/src/tensor.rs, Dtype::bitsize).
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
}
# Numbers of a type in the smallest whole number of bytes.
TOGETHER = {name: {4: 2, 6: 4}.get(bits, 1) for name, bits in BITS.items()}
Tensors = dict[str, tuple[str, list[int], bytes]]


def read(content: bytes) -> Tensors:
    """Return type, shape and content of each tensor, as the library reads them."""
    return {name: (view["dtype"], view["shape"], bytes(view["data"])) for name, view in deserialize(content)}


def file(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file, which the library must be able to read."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())
    assert read(content) == {name: (dtype, [*shape], data) for name, (dtype, shape, data) in tensors.items()}
    return content


def content_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> bytes:
    return np.random.default_rng([seed, *dtype.encode()]).bytes(int(np.prod(shape)) * BITS[dtype] // 8)


def transform(source: Path, target: Path, *more: str) -> int:
    return main(["transform", "--source", str(source), "--target", str(target), "--verification", "full", *more])


def strategy(path: Path, parts: Mapping[str, tuple[int, int]], ranks: int) -> str:
    """Write the strategy of ranks that hold rows, columns, or whole tensors of two dimensions."""
    maps = {(1, 1): ((), ()), (ranks, 1): ((0,), ()), (1, ranks): ((), (0,))}
    layouts = {name: Layout((ranks,), maps[found]) for name, found in parts.items()}
    path.write_bytes(dump(StrategyFile(path.name, {0: layouts}), "protobuf"))
    return str(path)


def rank_file(target: Path, rank: int, kind: str = "safetensors") -> bytes:
    return (target / f"rank_{rank}" / f"checkpoint_{rank}.{kind}").read_bytes()


def test_the_table_has_each_type_of_the_library() -> None:
    assert set(BY_SAFETENSORS_NAME) == set(BITS)
    assert {name: found.values for name, found in BY_SAFETENSORS_NAME.items()} == TOGETHER
    assert all(found.bits == BITS[name] * TOGETHER[name] for name, found in BY_SAFETENSORS_NAME.items())
    with pytest.raises(Exception, match="unknown variant"):
        deserialize(struct.pack("<Q", 56) + b'{"a":{"dtype":"C128","shape":[1],"data_offsets":[0,16]}}' + bytes(16))


@pytest.mark.parametrize("dtype", [found for found in BY_TORCH_NAME.values() if found.safetensors], ids=lambda found: found.torch)
def test_the_library_relates_the_names_of_torch_and_safetensors_and_their_shapes(dtype: Any) -> None:
    data = np.arange(6 * dtype.itemsize, dtype=np.uint8)
    spec = TensorSpec(dtype=dtype.torch, shape=[3, 2], data_ptr=data.ctypes.data, data_len=data.nbytes)
    name, shape, _ = read(bytes(serialize({"w": spec})))["w"]
    assert (name, tuple(shape)) == (dtype.safetensors, dtype.count_values((3, 2)))
    assert dtype.count_elements(tuple(shape)) == (3, 2)


@pytest.mark.parametrize("dtype", [found for found in DTYPES.values() if found.array], ids=lambda found: found.name)
def test_the_arrays_of_a_type_have_its_size(dtype: Any) -> None:
    assert array_of(bytes(6 * dtype.itemsize), dtype.name, (3, 2)).nbytes == 6 * dtype.itemsize
    if dtype.values > 1:  # no library takes such an array for one of plain integers
        assert array_of(b"", dtype.name, (0,)).dtype.kind == "V"
    elif dtype.torch:
        known = getattr(ml_dtypes, dtype.torch, None) or getattr(np, dtype.torch)
        assert array_of(bytes(dtype.itemsize), dtype.name, ()).dtype == np.dtype(known)


@st.composite
def cut_tensors(draw: Callable[..., Any]) -> tuple[int, Tensors, dict[str, tuple[int, int]]]:
    """Ranks, a tensor of each type, and the number of slices of each along both dimensions."""
    ranks = draw(st.sampled_from([2, 3, 4]))
    tensors, parts = {}, {}
    for dtype, together in TOGETHER.items():
        parts[dtype] = draw(st.sampled_from([(1, 1), (ranks, 1), (1, ranks)]))
        rows, columns = (draw(st.integers(0 if k == 1 else 1, 5)) * k for k in parts[dtype])
        tensors[dtype] = (
            dtype,
            (rows, columns * together),
            content_of(dtype, (rows, columns * together), draw(st.integers(0, 9))),
        )
    return ranks, tensors, parts


@examples(60)
@given(case=cut_tensors())
def test_each_type_is_cut_and_joined_again(case: tuple[int, Any, dict[str, tuple[int, int]]]) -> None:
    ranks, tensors, parts = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.safetensors").write_bytes(file(tensors))
        cut = strategy(folder / "cut.ckpt", parts, ranks)
        assert transform(folder / "model.safetensors", folder / "parts", "--target-strategy", cut) == 0
        for rank in range(ranks):
            found = read(rank_file(folder / "parts", rank))
            for dtype, (_, (rows, columns), data) in tensors.items():
                groups = columns // TOGETHER[dtype]
                whole = np.frombuffer(data, np.uint8).reshape(rows, groups, BITS[dtype] * TOGETHER[dtype] // 8)
                slices = [rank if k > 1 else 0 for k in parts[dtype]]
                for axis, (k, at) in enumerate(zip(parts[dtype], slices, strict=True)):
                    whole = np.split(whole, k, axis)[at]
                shape = [whole.shape[0], whole.shape[1] * TOGETHER[dtype]]
                assert found[dtype] == (dtype, shape, whole.tobytes())
        assert transform(folder / "parts", folder / "whole", "--source-strategy", cut) == 0
        assert read(rank_file(folder / "whole", 0)) == {n: (t, [*shape], data) for n, (t, shape, data) in tensors.items()}


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "U16"])
@pytest.mark.parametrize("shape", [(9000, 32), (40, 64 << 10)])
def test_many_short_and_few_long_runs_of_a_type_are_cut(dtype: str, shape: tuple[int, int], tmp_path: Path) -> None:
    data = content_of(dtype, shape)
    (tmp_path / "model.safetensors").write_bytes(file({"w": (dtype, shape, data)}))
    columns, rows = (strategy(tmp_path / f"{i}.ckpt", {"w": parts}, 4) for i, parts in enumerate([(1, 4), (4, 1)]))
    assert transform(tmp_path / "model.safetensors", tmp_path / "columns", "--target-strategy", columns) == 0
    both = ("--source-strategy", columns, "--target-strategy", rows)
    assert transform(tmp_path / "columns", tmp_path / "rows", *both) == 0
    found = [read(rank_file(tmp_path / "rows", rank))["w"] for rank in range(4)]
    assert b"".join(part for _, _, part in found) == data
    assert main(["verify", str(tmp_path / "rows")]) == 0


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_a_type_survives_ckpt_files_or_is_refused_by_name(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = (3, 8)
    (tmp_path / "model.safetensors").write_bytes(file({"w": (dtype, shape, content_of(dtype, shape))}))
    code = transform(tmp_path / "model.safetensors", tmp_path / "ckpt", "--format", "ckpt")
    found = BY_SAFETENSORS_NAME[dtype]
    if found.ckpt is None:
        assert code == 65
        assert f"UnknownType: parameter w: a .ckpt file cannot contain the type {found.name}" in capsys.readouterr().err
        return
    assert code == 0
    (value,) = rawfiles.Checkpoint.FromString(rank_file(tmp_path / "ckpt", 0, "ckpt")).value
    assert (value.tensor.tensor_type, tuple(value.tensor.dims)) == (found.ckpt, shape)
    assert transform(tmp_path / "ckpt", tmp_path / "again", "--format", "safetensors") == 0
    assert read(rank_file(tmp_path / "again", 0)) == {"w": (dtype, [*shape], value.tensor.tensor_content)}


@pytest.mark.parametrize("dtype", sorted(BY_CKPT_NAME))
def test_a_type_of_a_ckpt_file_survives_safetensors_or_is_refused_by_name(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = BY_CKPT_NAME[dtype]
    content = rawfiles.message("w", [0] if dtype == STRING else [4], dtype, bytes(range(65, 65 + 4 * found.itemsize)))
    if dtype == STRING:
        content = rawfiles.message("w", [0], dtype, "text".encode("utf-32-le"))
    (tmp_path / "net.ckpt").write_bytes(content)
    code = transform(tmp_path / "net.ckpt", tmp_path / "safetensors", "--format", "safetensors")
    if found.safetensors is None:
        assert code == 65
        assert f"UnknownType: parameter w: safetensors has no equivalent of the type {dtype}" in capsys.readouterr().err
        return
    assert code == 0
    assert read(rank_file(tmp_path / "safetensors", 0))["w"][:2] == (found.safetensors, [4])
    assert transform(tmp_path / "safetensors", tmp_path / "again", "--format", "ckpt") == 0
    assert rank_file(tmp_path / "again", 0, "ckpt") == content


@pytest.mark.parametrize(
    ("dtype", "shape", "columns", "reason", "what"),
    [
        ("F4", (2, 6), 2, "NotByteAligned", "parameter w: the target strategy divides rows of 6 F4 numbers into 2 slices"),
        (
            "F6_E2M3",
            (2, 8),
            4,
            "NotByteAligned",
            "parameter w: the target strategy divides rows of 8 F6_E2M3 numbers into 4",
        ),
        ("F6_E3M2", (2, 12), 2, "NotByteAligned", "parameter w: the target strategy divides rows of 12 F6_E3M2 numbers"),
        ("F4", (2, 6), 4, "LayoutDoesNotDivide", "parameter w: the target strategy does not fit"),
        ("F4", (2, 3), 1, "NotByteAligned", "parameter w: the last dimension of F4[2, 3] is not a multiple of 2"),
        ("F6_E2M3", (4, 2), 1, "NotByteAligned", "parameter w: the last dimension of F6_E2M3[4, 2] is not a multiple of 4"),
    ],
)
def test_a_slice_that_ends_within_a_byte_is_refused_by_name(
    dtype: str, shape: tuple[int, int], columns: int, reason: str, what: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    source, target = tmp_path / "model.safetensors", tmp_path / "target"
    source.write_bytes(file({"w": (dtype, shape, content_of(dtype, shape))}))
    cut = strategy(tmp_path / "cut.ckpt", {"w": (1, columns)}, columns)
    arguments = ("transform", "--source", str(source), "--target", str(target), "--target-strategy", cut)
    assert what in refused(65, reason, *arguments)


@pytest.mark.parametrize("dtype", ["complex32", "bcomplex32"])
def test_a_type_that_only_torch_has_is_refused_by_both_formats(dtype: str) -> None:
    for output in ("Ckpt", "Safetensors"):
        with pytest.raises(DataError, match=f"UnknownType: parameter w: .*{dtype}"):
            output_format(output).can_hold(OutputTensor("w", dtype, (2,), 8))


def test_a_scalar_of_two_numbers_is_refused_in_safetensors() -> None:
    with pytest.raises(DataError, match="NotByteAligned: parameter w: a scalar of the type float4_e2m1fn_x2 has 2 numbers"):
        output_format("Safetensors").can_hold(OutputTensor("w", "float4_e2m1fn_x2", (), 1))


def test_the_table_in_the_documentation_is_right() -> None:
    page = (ROOT / "docs" / "formats.md").read_text("utf-8")
    for found in DTYPES.values():
        if found.name == OBJECT:  # no type of elements
            continue
        names = (found.ckpt, found.safetensors, found.torch)
        size = f"{found.bits // 8}" if found.values == 1 else f"{found.bits // 8}, for {found.values} numbers"
        row = f"| {found.name} | {size} | {' | '.join(name or '-' for name in names)} |"
        assert row in page
