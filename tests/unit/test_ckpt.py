"""The `.ckpt` parser and writer, against protobuf's own."""

from __future__ import annotations

import struct
import zlib
from functools import partial

import numpy as np
import parsing
import pytest
import rawfiles
from hypothesis import given
from hypothesis import strategies as st

from reshard import checkpoint
from reshard.checkpoint import ckpt, ckpt_output
from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import OutputTensor, Span
from reshard.errors import DataError

TENSORS = {
    "layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "step": np.array(7, dtype=np.int32),
    "é/..\x00": np.ones((2, 1, 3), dtype=np.bool_),
}
CONTENT = rawfiles.ckpt(TENSORS)


reader = partial(parsing.reader, "ckpt")
contents = partial(parsing.contents, "ckpt")
refused = partial(parsing.refused_file, "ckpt")


def test_a_file_written_by_protobuf_is_read() -> None:
    assert contents(CONTENT) == {n: (rawfiles.TYPE_NAMES[a.dtype], a.shape, a.tobytes()) for n, a in TENSORS.items()}


def test_only_heads_are_read() -> None:
    big = np.zeros(1 << 22, np.uint8)
    source = reader(rawfiles.ckpt({str(i): big for i in range(4)}))
    ckpt.read_header(source)
    assert sum(n for _, n in source.reads) < 64 << 10
    assert len(source.reads) <= 6


def test_packed_dims_are_read_too() -> None:
    tensor = b"\x0a\x02\x02\x03\x12\x04Int8\x1a\x06abcdef"
    value = b"\x0a\x01x\x12" + bytes([len(tensor)]) + tensor
    assert contents(b"\x0a" + bytes([len(value)]) + value) == {"x": ("Int8", (2, 3), b"abcdef")}


def test_adjacent_messages_of_one_name_are_one_parameter() -> None:
    parts = [rawfiles.message("x", [2, 3], "Int8", part) for part in (b"abcd", b"ef")]
    other = rawfiles.message("y", [1], "Int8", b"g")
    assert contents(b"".join(parts) + other) == {"x": ("Int8", (2, 3), b"abcdef"), "y": ("Int8", (1,), b"g")}
    assert refused(parts[0] + other + parts[1]).reason == "DuplicateParameter"
    assert refused(b"".join(parts) + rawfiles.message("x", [3], "Int8", b"abc")).reason == "DuplicateParameter"
    assert refused(b"".join(parts * 2)).reason == "SizeMismatch"


def test_dims_of_zero_with_content_are_a_scalar() -> None:
    assert contents(rawfiles.message("x", [0], "Int16", b"ab")) == {"x": ("Int16", (), b"ab")}


@pytest.mark.parametrize(
    ("dtype", "size"), [("Float8E4M3FN", 1), ("Float8E5M2", 1), ("HiFloat8", 1), ("Complex64", 8), ("Complex128", 16)]
)
def test_types_that_mindspore_writes_and_cannot_load_are_read(dtype: str, size: int) -> None:
    content = bytes(range(3 * size))
    assert contents(rawfiles.message("x", [3], dtype, content)) == {"x": (dtype, (3,), content)}


def test_empty_messages_of_a_parameter_that_was_saved_asynchronously_add_nothing() -> None:
    rows = [rawfiles.message("x", [2, 3], "Int8", part) for part in (b"abc", b"def", b"", b"")]
    assert contents(b"".join(rows) + rawfiles.message("y", [1], "Int8", b"g")) == {
        "x": ("Int8", (2, 3), b"abcdef"),
        "y": ("Int8", (1,), b"g"),
    }


def test_a_tensor_without_elements_is_one_message() -> None:
    content = rawfiles.message("x", [0, 4], "Float32", b"") + rawfiles.message("y", [1], "Int8", b"g")
    assert contents(content) == {"x": ("Float32", (0, 4), b""), "y": ("Int8", (1,), b"g")}
    tensors = [OutputTensor("x", "Float32", (0, 4), 0), OutputTensor("y", "Int8", (1,), 1)]
    assert laid_out(tensors, {"x": b"", "y": b"g"}) == content
    assert ckpt_output.file_size(tensors, crc=False) == len(content)


def test_text_has_as_many_elements_as_characters() -> None:
    assert contents(rawfiles.message("x", [0], "str", "hé".encode("utf-32-le"))) == {"x": ("str", (2,), "hé".encode("utf-32-le"))}


@pytest.mark.parametrize("cut", range(1, len(CONTENT)))
def test_a_truncated_file_is_refused_or_ends_after_a_parameter(cut: int) -> None:
    boundaries = {len(rawfiles.ckpt(dict(list(TENSORS.items())[:n]))) for n in range(1, 3)}
    if cut in boundaries:
        assert len(contents(CONTENT[:cut])) < len(TENSORS)
    else:
        refused(CONTENT[:cut])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x00", "NotCheckpoint"),
        (b"PK\x03\x04 a zip archive", "NotCheckpoint"),
        (b"\x08\x00\x12\x05hello", "NotCheckpoint"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "Truncated"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "Damaged"),
        (rawfiles.message("x", [1 << 40, 1 << 40], "Int8", b"a"), "SizeMismatch"),
        (rawfiles.message("x", [-1], "Int8", b"a"), "SizeMismatch"),
        (rawfiles.message("x", [1] * 33, "Int8", b"a"), "Damaged"),
        (rawfiles.message("x", [3], "Int8", b"ab"), "SizeMismatch"),
        (rawfiles.message("x", [3], "str", b"abc"), "SizeMismatch"),
        (rawfiles.message("x", [3], "int8", b"abc"), "UnknownType"),
        (rawfiles.message("x", [3], "F8_E4M3", b"abc"), "UnknownType"),
        (rawfiles.message("x", [3], "I" * 65, b"abc"), "Damaged"),
        (rawfiles.message("n" * 70_000, [3], "Int8", b"abc"), "Damaged"),
        (rawfiles.message("x", [1], "Int8", b"a").replace(b"x", b"\xff"), "Damaged"),
        (b"\x0a\x05\x0a\x01x\x1a\x00", "MapParameter"),
        (b"\x0a\x03\x0a\x01x", "Damaged"),
        (b"\x0a\x00", "Damaged"),
        (b"\x0a\x04\x12\x02\x12\x00", "Damaged"),
        (b"\x0a\x01\x07", "Damaged"),
    ],
)
def test_damage_is_named(content: bytes, reason: str) -> None:
    assert refused(content).reason == reason


@pytest.mark.parametrize(("magic", "mode"), [(0x7F3A5ED8, "AES-GCM"), (0x7F3A5ED9, "AES-CBC"), (0x7F3A5EDA, "SM4-CBC")])
def test_an_encrypted_file_is_reported_as_such(magic: int, mode: str) -> None:
    error = refused(struct.pack("<I", magic) + bytes(100))
    assert error.reason == "Encrypted"
    assert mode in str(error)


def test_fields_of_later_versions_are_skipped() -> None:
    tensor = b"\x08\x01\x12\x04Int8\x28\x07\x35abcd\x39abcdefgh\x42\x02xy\x1a\x01z"
    value = b"\x20\x09\x0a\x01x\x12" + bytes([len(tensor)]) + tensor
    assert contents(b"\x0a" + bytes([len(value)]) + value) == {"x": ("Int8", (1,), b"z")}


def test_the_crc_is_stripped_and_checked() -> None:
    content = rawfiles.ckpt(TENSORS, crc=True)
    found = ckpt.read_header(reader(content))
    assert found.crc == zlib.crc32(CONTENT)
    assert found.structure == ckpt.read_header(reader(CONTENT)).structure
    checkpoint.check_crc(reader(content), found)
    damaged = bytearray(content)
    damaged[len(CONTENT) - 1] ^= 1
    with pytest.raises(DataError, match="CrcMismatch"):
        checkpoint.check_crc(reader(bytes(damaged)), found)


def laid_out(tensors: list[OutputTensor], data: dict[str, bytes]) -> bytes:
    return b"".join(
        piece if isinstance(piece, bytes) else data[tensors[piece.tensor].name][piece.offset : piece.offset + piece.length]
        for piece in ckpt_output.pieces(tensors)
    )


def test_written_bytes_equal_those_of_protobuf() -> None:
    tensors = [OutputTensor(n, rawfiles.TYPE_NAMES[a.dtype], a.shape, a.nbytes) for n, a in TENSORS.items()]
    content = laid_out(tensors, {n: a.tobytes() for n, a in TENSORS.items()})
    assert content == CONTENT
    assert ckpt_output.file_size(tensors, crc=False) == len(content)
    assert ckpt_output.file_size(tensors, crc=True) == len(content) + len(ckpt_output.crc_trailer(1))


def test_large_parameters_are_split_where_mindspore_splits_them() -> None:
    tensors = [OutputTensor("x", "UInt8", ((1 << 30) + 5,), (1 << 30) + 5)]
    spans = [piece for piece in ckpt_output.pieces(tensors) if isinstance(piece, Span)]
    assert spans == [Span(0, 0, 512 << 20), Span(0, 512 << 20, 512 << 20), Span(0, 1 << 30, 5)]


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SHAPES = st.lists(st.integers(0, 3), max_size=4).filter(lambda shape: shape != [0])


@given(st.lists(st.tuples(NAMES, st.sampled_from(sorted(DTYPES)), SHAPES), unique_by=lambda t: t[0], min_size=1, max_size=5))
def test_written_tensors_are_read_back(described: list[tuple[str, str, list[int]]]) -> None:
    tensors = []
    for name, dtype, dims in described:
        if DTYPES[dtype].ckpt:
            shape = (7,) if dtype == "str" else tuple(dims)
            tensors.append(OutputTensor(name, dtype, shape, int(np.prod(shape)) * DTYPES[dtype].itemsize))
    data = {t.name: bytes(range(t.nbytes % 200)) * 2 + bytes(t.nbytes) for t in tensors}
    content = laid_out(tensors, data)
    if content:
        assert contents(content) == {t.name: (t.dtype, t.shape, data[t.name][: t.nbytes]) for t in tensors}


@given(st.data())
def test_every_damage_is_an_error(data: st.DataObject) -> None:
    content = bytearray(rawfiles.ckpt(TENSORS, crc=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    source = reader(bytes(content))
    try:
        found = ckpt.read_header(source)
    except DataError:
        return
    for entry in found.structure.tensors:
        assert all(a >= 0 and a + n <= len(content) for a, n in entry.extents)
        assert entry.nbytes == int(np.prod(entry.shape, dtype=object)) * DTYPES[entry.dtype].itemsize
