"""The safetensors parser and writer, against the library."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import ml_dtypes
import numpy as np
import parsing
import pytest
import rawfiles
from hypothesis import given
from hypothesis import strategies as st
from safetensors import TensorSpec, serialize

from reshard import checkpoint
from reshard.checkpoint import safetensors, safetensors_output
from reshard.checkpoint.crc import NamedContents, append_zeros
from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import OutputTensor
from reshard.errors import DataError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.checkpoint.inventory import Structure
    from reshard.checkpoint.output import Span

TENSORS = {
    "layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "step": np.array(7, dtype=np.int32),
    "é/..\x00": np.ones((2, 1, 3), dtype=np.bool_),
    "empty": np.ones((0, 3), dtype=np.float16),
    "b": np.ones(5, dtype=ml_dtypes.bfloat16),
}
METADATA = {"format": "ms"}
EMPTY = b'{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'
CONTENT = rawfiles.safetensors(TENSORS, METADATA)
reader = partial(parsing.reader, "safetensors")
contents = partial(parsing.contents, "safetensors")
refused = partial(parsing.refused_file, "safetensors")


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], first: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


def written(tensors: dict[str, np.ndarray], metadata: dict[str, str], crc: int | None = None) -> bytes:
    described = [OutputTensor(n, rawfiles.TYPE_NAMES[a.dtype], a.shape, a.nbytes) for n, a in tensors.items()]
    described = [described[i] for i in safetensors_output.content_order(described)]
    content = joined(safetensors_output.pieces(described, metadata, crc), [tensors[each.name] for each in described])
    assert safetensors_output.file_size(described, metadata, crc=crc is not None) == len(content)
    return content


def joined(pieces: Iterable[bytes | Span], arrays: list[np.ndarray]) -> bytes:
    """Return the content of a file. A span can contain several tensors."""
    content = b""
    for piece in pieces:
        found = piece if isinstance(piece, bytes) else b"".join(array.tobytes() for array in arrays[piece.tensor :])
        content += found if isinstance(piece, bytes) else found[piece.offset : piece.offset + piece.length]
    return content


def test_a_file_written_by_the_library_is_read() -> None:
    assert contents(CONTENT) == {n: (rawfiles.TYPE_NAMES[a.dtype], a.shape, a.tobytes()) for n, a in TENSORS.items()}
    assert safetensors.read_header(reader(CONTENT)).structure.metadata == METADATA


def test_written_bytes_equal_those_of_the_library() -> None:
    everything = {name.lower(): np.zeros((2, 3), rawfiles.NUMPY_TYPES[name]) for name in rawfiles.TYPE_NAMES.values()} | TENSORS
    assert written(everything, METADATA) == rawfiles.safetensors(everything, METADATA)


# The library's names of types that its numpy interface does not know.
SMALL = {
    "float4_e2m1fn_x2": "float4_e2m1fn_x2",
    "Float8E5M2": "float8_e5m2",
    "Float8E4M3FN": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "Complex64": "complex64",
    "Int8": "int8",
    "Int16": "int16",
}


def test_every_type_of_the_library_is_written_in_its_order() -> None:
    found = {name: np.full(DTYPES[name].itemsize, position, np.uint8) for position, name in enumerate(SMALL)}
    specs = {
        name: TensorSpec(dtype=SMALL[name], shape=[1], data_ptr=array.ctypes.data, data_len=array.nbytes)
        for name, array in found.items()
    }
    theirs = serialize(specs)
    described = [OutputTensor(name, name, (1,), array.nbytes) for name, array in found.items()]
    described = [described[i] for i in safetensors_output.content_order(described)]
    pieces = safetensors_output.pieces(described, {}, None)
    ours = joined(pieces, [found[each.name] for each in described])
    assert contents(theirs) == {name: (name, (1,), array.tobytes()) for name, array in found.items()}
    assert ours == theirs


def test_equal_headers_share_their_structure() -> None:
    seen: dict[bytes, Structure] = {}
    first = safetensors.read_header(reader(CONTENT), seen)
    assert safetensors.read_header(reader(CONTENT), seen).structure is first.structure
    assert refused(CONTENT[:-1]).reason == "Truncated"
    with pytest.raises(DataError, match="Truncated"):
        safetensors.read_header(reader(CONTENT[:-1]), seen)


def test_int4_is_recognized_by_the_metadata() -> None:
    content = rawfiles.safetensors({"q": np.arange(4, dtype=np.int8)}, METADATA | {"q": "Int4"})
    found = safetensors.read_header(reader(content)).structure
    assert found.metadata == METADATA
    assert found.tensors[0].dtype == "Int4"
    again = b"".join(
        p for p in safetensors_output.pieces([OutputTensor("q", "Int4", (4,), 4)], METADATA, None) if isinstance(p, bytes)
    )
    assert contents(again + bytes(4)) == {"q": ("Int4", (4,), bytes(4))}


def test_text_survives() -> None:
    tensor = OutputTensor("t", "str", (2,), 8)
    header = b"".join(p for p in safetensors_output.pieces([tensor], METADATA, None) if isinstance(p, bytes))
    assert contents(header + "hé".encode("utf-32-le")) == {"t": ("str", (2,), "hé".encode("utf-32-le"))}


def test_the_crc_covers_names_and_contents_in_name_order() -> None:
    crc = 0
    for name in sorted(TENSORS):
        content = bytes(int(TENSORS[name])) if name == "step" else TENSORS[name].tobytes()  # as many zeros as its value
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    content = written(TENSORS, METADATA, crc)
    found = safetensors.read_header(reader(content))
    assert found.crc == crc
    assert found.structure.metadata == METADATA
    checkpoint.check_crc(reader(content), found)
    damaged = bytearray(content)
    damaged[-1] ^= 1
    with pytest.raises(DataError, match="CrcMismatch"):
        checkpoint.check_crc(reader(bytes(damaged)), found)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 4096, 1_000_003])
def test_a_crc_is_extended_by_zeros_without_processing_them(count: int) -> None:
    assert append_zeros(zlib.crc32(b"before"), count) == zlib.crc32(b"before" + bytes(count))


def test_a_scalar_below_zero_counts_as_its_bytes() -> None:
    found = NamedContents()
    found.begin("a", "Int16", ())
    found.update(b"\xff\xff")
    assert found.crc == zlib.crc32(b"a\xff\xff")


def test_a_truncated_file_is_refused() -> None:
    for cut in range(len(CONTENT)):
        refused(CONTENT[:cut])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Empty"),
        (b"\x01\x00", "Truncated"),
        (struct.pack("<Q", 100_000_001) + b"{}", "HeaderTooLarge"),
        (struct.pack("<Q", 2**63) + b"{}", "HeaderTooLarge"),
        (struct.pack("<Q", 50) + b"{}", "Truncated"),
        (file(b"\xff\xfe"), "HeaderInvalid"),
        (file(b'{"a": {"dtype": "F32", "skipped": "\xff", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)), "HeaderInvalid"),
        (file(b"[]"), "HeaderInvalid"),
        (file(b"[" * 100_000), "HeaderInvalid"),
        (file(b'{"a":' * 100_000), "HeaderInvalid"),
        (file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "HeaderInvalid"),
        (file({"a": 1}), "HeaderInvalid"),
        (file({"a": {"dtype": "I8", "shape": [1]}}), "HeaderInvalid"),
        (file({"a": entry("I8", [1] * 33, 0, 1)}, b"a"), "HeaderInvalid"),
        (file({"a": {"dtype": "I8", "shape": [1.5], "data_offsets": [0, 1]}}, b"a"), "HeaderInvalid"),
        (file({"__metadata__": {"a": 1}}), "HeaderInvalid"),
        (file({"__metadata__": {"crc_num": "x"}}), "HeaderInvalid"),
        (file({"__metadata__": {"reshard.str": "x"}}), "HeaderInvalid"),
        (file({"a": entry("I8", [2], 0, 3)}, b"abc"), "SizeMismatch"),
        (file({"a": entry("I8", [-1], 0, -1)}), "SizeMismatch"),
        (file({"a": entry("I8", [1 << 62, 1 << 62], 0, 1)}, b"a"), "SizeMismatch"),
        (file({"a": entry("I8", [1], 1, 0)}, b"a"), "SizeMismatch"),
        (file({"a": entry("I8", [1], -1, 0)}, b"a"), "SizeMismatch"),
        (file({"a": entry("C128", [1], 0, 16)}, bytes(16)), "UnknownType"),
        (file({"a": entry("F4", [1], 0, 1)}, b"a"), "NotByteAligned"),
        (file({"a": entry("F4", [], 0, 1)}, b"a"), "NotByteAligned"),
        (file({"a": entry("F4", [4], 0, 3)}, b"abc"), "SizeMismatch"),
        (file({"a": entry("F6_E2M3", [4], 0, 4)}, b"abcd"), "SizeMismatch"),
        (file({"a": entry("I8", [2], 0, 2), "b": entry("I8", [2], 1, 3)}, b"abc"), "Damaged"),
        (file({"a": entry("I8", [2], 0, 2), "b": entry("I8", [2], 3, 5)}, b"abcde"), "Damaged"),
        (file({"a": entry("I8", [2], 1, 3)}, b"abc"), "Damaged"),
        (file({"a": entry("I8", [2], 0, 2)}, b"abc"), "Truncated"),
        (file({"a": entry("I8", [2], 0, 2)}, b"a"), "Truncated"),
        (file({}, b"a"), "Truncated"),
        (file(b'{"a":' + EMPTY + b',"a":' + EMPTY + b"}"), "DuplicateParameter"),
        (file(b'{"__metadata__":{},"__metadata__":{}}'), "DuplicateParameter"),
        (file(b'{"__metadata__":{},}'), "HeaderInvalid"),
        (file(b'{"__metadata__":{"format":"pt"},}  '), "HeaderInvalid"),
        (file(b'{"a":{"dtype":"I8","shape":[1],"shape":[0],"data_offsets":[0,0]}}'), "HeaderInvalid"),
        (file(b'{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1],"x":1,"data_offset\\u0073":[0,1]}}', b"a"), "HeaderInvalid"),
        (file(b'{"\\ud800":' + EMPTY + b"}"), "HeaderInvalid"),
    ],
)
def test_damage_is_named(content: bytes, reason: str) -> None:
    assert refused(content).reason == reason


@pytest.mark.parametrize(("begin", "entry", "end"), [(b"{", b'"":1', b"}"), (b'{"__metadata__":{', b'"":""', b"}}")])
def test_a_malicious_header_does_not_exhaust_memory(begin: bytes, entry: bytes, end: bytes) -> None:
    content = file(begin + b",".join([entry] * (1 << 22)) + end)
    tracemalloc.start()
    try:
        assert refused(content).reason == "TooManyTensors"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 400 << 20


def test_a_header_above_the_limit_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_output, "MAX_HEADER_BYTES", 100)
    with pytest.raises(OutputError, match="HeaderTooLarge"):
        written(TENSORS, METADATA)


@given(st.data())
def test_every_damage_is_an_error(data: st.DataObject) -> None:
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        found = safetensors.read_header(reader(bytes(content)))
    except DataError:
        return
    for tensor in found.structure.tensors:
        assert all(a >= 0 and a + n <= len(content) for a, n in tensor.extents)
        assert tensor.nbytes == int(np.prod(tensor.shape, dtype=object)) * DTYPES[tensor.dtype].itemsize


@pytest.mark.parametrize(
    "repeated",
    ['"dtype":"I8","dtype":"I8"', r'"dtype":"I8","d\u0074ype":"I8"', '"dtype":"I8","other":1,"other":1'],
)
def test_a_key_of_one_tensor_among_many_occurs_twice(repeated: str) -> None:
    others = "".join(f',"t{i}":{{"dtype":"I8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(1, 50))
    whole = f'{{"__metadata__":{{"a":"b"}},"t0":{{{repeated},"shape":[1],"data_offsets":[0,1]}}{others}}}'
    assert refused(file(whole.encode(), bytes(50))).reason == "HeaderInvalid"
    once = whole.replace(repeated, '"dtype":"I8"')
    assert len(safetensors.read_header(reader(file(once.encode(), bytes(50)))).structure.tensors) == 50


@pytest.mark.parametrize("text", ["", "}", "},", "},:", '},\\"x', "{", "a}b"])
@pytest.mark.parametrize("space", ["", " "])
def test_metadata_is_read_wherever_it_is(text: str, space: str) -> None:
    metadata = f'"__metadata__":{space}{{"format":"ms","a":"{text}"}}'
    tensors = ",".join(f'"t{i}":{{"dtype":"I8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(3))
    first = safetensors.read_header(reader(file(f"{{{metadata},{tensors}}}".encode(), b"abc")))
    last = safetensors.read_header(reader(file(f"{{{tensors},{metadata}}}".encode(), b"abc")))
    assert first == last
    assert first.structure.metadata == {"format": "ms", "a": text.replace("\\", "")}
    assert [tensor.name for tensor in first.structure.tensors] == ["t0", "t1", "t2"]


@pytest.mark.parametrize("text", ["", "}", "},", "a},b", "},:{"])
@pytest.mark.parametrize("metadata", [{}, {"__metadata__": {"format": "pt", "a": "},"}}])
def test_a_header_is_read_in_parts(text: str, metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"{text}{i}{text}": entry("I8", [1], i, i + 1) for i in range(20)}
    content = file(json.dumps(metadata | tensors, separators=(",", ":")).encode(), bytes(20))
    whole = safetensors.read_header(reader(content))
    monkeypatch.setattr(safetensors, "PART_BYTES", 1)
    assert safetensors.read_header(reader(content)) == whole
    assert [tensor.name for tensor in whole.structure.tensors] == list(tensors)


def test_a_name_in_two_parts_of_a_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = ",".join(f'"{name}":{{"dtype":"I8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i, name in enumerate("abca"))
    monkeypatch.setattr(safetensors, "PART_BYTES", 1)
    assert refused(file(f"{{{tensors}}}".encode(), bytes(4))).reason == "DuplicateParameter"


@pytest.mark.parametrize("part", [1, 40, safetensors.PART_BYTES])
@given(data=st.data())
def test_a_damaged_part_is_read_as_a_damaged_whole(part: int, data: st.DataObject) -> None:
    header = bytearray(b",".join(b'"%d":{"dtype":"I8","shape":[1],"data_offsets":[%d,%d]}' % (i, i, i + 1) for i in range(4)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(header) - 1))
        header[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from([b"", b'"', b"}", b"{", b"},", b'},"', b'":{'])
        )
    content = reader(file(b"{" + bytes(header) + b"}", bytes(4)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(safetensors, "PART_BYTES", part)
        try:
            found = safetensors.read_header(content)
        except DataError:
            found = None
        if found is not None:
            patched.setattr(safetensors, "_usual", Mock(side_effect=safetensors.OtherFormError))
            assert safetensors.read_header(content) == found


def test_a_name_that_metadata_reserves_is_no_tensor() -> None:
    tensor = '{"dtype":"I8","shape":[1],"data_offsets":[0,1]}'
    for header in (f'{{"t":{tensor},"__metadata__":{tensor}}}', f'{{"__metadata__":{{"a":"b"}},"__metadata__":{tensor}}}'):
        assert refused(file(header.encode(), b"a")).reason in {"HeaderInvalid", "DuplicateParameter"}
