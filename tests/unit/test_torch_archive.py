"""Archives of `torch.save`: read in few requests, described exactly, and refused by name if bytes are not elements."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_files import DATA, BytesReader, FileReader, archive, name, sha256_of, tensor, text

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.errors import DataError
from reshard.formats.torch.archive import locate, read_archive
from reshard.formats.torch.dtypes import BY_STORAGE, REFUSED

FILES = DATA / "files"
STORED = b"\x80\x02" + tensor() + b"."


def row_major(reader: FileReader, key: str) -> tuple[str, tuple[int, ...], bytes]:
    found = read_archive(reader)
    stored = next(each for each in found.tensors if each.name == key)
    offset, length = locate(reader, found, stored.storage)
    content = np.frombuffer(reader.read(offset, length), f"V{stored.dtype.itemsize}")[stored.first :]
    if 0 in stored.shape:
        return str(stored.dtype.torch), stored.shape, b""
    steps = tuple(step * content.itemsize for step in stored.strides)
    return (
        str(stored.dtype.torch),
        stored.shape,
        np.lib.stride_tricks.as_strided(content, stored.shape, steps, writeable=False).tobytes(),
    )


@pytest.mark.parametrize("file", ["shared.pt", "types.pt"])
def test_each_tensor_equals_the_one_that_torch_saved(file: str) -> None:
    expected = json.loads((FILES / "expected.json").read_text())[file]
    reader = FileReader(FILES / file)
    found = {}
    for stored in read_archive(reader).tensors:
        dtype, shape, content = row_major(reader, stored.name)
        found[stored.name] = {"dtype": dtype, "shape": list(shape), "sha256": sha256_of(content)}
    assert found == expected


def test_shared_strided_and_other_values() -> None:
    found = read_archive(FileReader(FILES / "shared.pt"))
    stored = {each.name: each for each in found.tensors}
    assert {stored[f"model.{key}"].storage for key in ("w", "tied", "rows", "column")} == {"0"}
    assert (stored["model.rows"].first, stored["model.rows"].row_major) == (8, True)
    assert (stored["model.column"].strides, stored["model.column"].row_major) == ((4,), False)
    assert [stored[key].row_major for key in ("model.transposed", "expanded", "scalar", "nothing")] == [
        False,
        False,
        True,
        True,
    ]
    assert found.others == 6  # epoch, and the leaves of args


def test_a_file_is_described_by_few_small_reads() -> None:
    reader = FileReader(FILES / "types.pt")
    read_archive(reader)
    assert reader.reads <= 8


@pytest.mark.parametrize(
    ("file", "reason", "what"),
    [
        ("lazy.pt", "UnresolvedTensor", "conj"),
        ("quantised.pt", "UnknownType", "scale"),
        ("legacy.pt", "LegacyTorchFile", "before 1.6"),
        ("module.pt", "PickleNotAllowed", "Net"),
    ],
)
def test_unsupported_torch_files_are_refused_by_name(file: str, reason: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        read_archive(FileReader(FILES / file))
    assert caught.value.reason == reason
    assert what in caught.value.what
    assert caught.value.fix


@pytest.mark.parametrize(("file", "key"), [("quantised.pt", "q"), ("lazy.pt", "conjugated")])
def test_tensors_that_are_not_wanted_are_not_checked(file: str, key: str) -> None:
    with pytest.raises(DataError, match=f"tensor {key}.*--exclude"):
        read_archive(FileReader(FILES / file), wanted=key.__eq__)
    assert read_archive(FileReader(FILES / file), wanted=lambda each: each != key).tensors == ()


MAKER = name("torch._utils", "_rebuild_tensor_v2")


def typed(kind: bytes, maker: bytes = MAKER) -> bytes:
    """A tensor of a class, or with attributes, as `Tensor.__reduce_ex__` describes it."""
    arguments = tensor().removeprefix(MAKER).removesuffix(b"R")
    return name("torch._tensor", "_rebuild_from_type_v2") + b"(" + maker + kind + arguments + b"}tR"


def test_a_tensor_with_attributes_is_found() -> None:
    (found,) = read_archive(BytesReader(archive(b"\x80\x02" + typed(name("torch._tensor", "Tensor")) + b"."))).tensors
    assert (found.shape, found.strides, found.storage) == ((2, 3), (3, 1), "0")


DISTRIBUTED = "save the state dict with torch.distributed.checkpoint, or save local tensors"


@pytest.mark.parametrize(
    ("pickled", "what", "fix"),
    [
        (typed(name("torch.distributed.tensor", "DTensor")), "refers to torch.distributed.tensor.DTensor", DISTRIBUTED),
        (
            typed(name("torch.distributed._tensor.api", "DTensor"), name("torch._utils", "_rebuild_wrapper_subclass")),
            "refers to torch.distributed._tensor.api.DTensor",
            DISTRIBUTED,
        ),
        (name("torch.distributed._shard.sharded_tensor.api", "ShardedTensor"), "ShardedTensor", DISTRIBUTED),
        (name("torch.nn.modules.linear", "Linear"), "refers to torch.nn.modules.linear.Linear", "save `module.state_dict()`"),
        (name("torch.optim.adamw", "AdamW"), "torch.optim.adamw.AdamW", "save the state dicts of optimizers"),
        (name("torch._utils", "_rebuild_sparse_tensor"), "_rebuild_sparse_tensor", "save `tensor.to_dense()`"),
        (name("mine", "Tensor"), "refers to mine.Tensor", "save only tensors"),
    ],
)
def test_objects_of_other_classes_are_refused_with_what_helps(pickled: bytes, what: str, fix: str) -> None:
    with pytest.raises(DataError, match=r"PickleNotAllowed: f\.pt") as caught:
        read_archive(BytesReader(archive(b"\x80\x02" + pickled + b".")))
    assert what in caught.value.what
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize("factory", ["N", "c__builtin__\nlist\n", "cbuiltins\ndict\n", "c__builtin__\nset\n"])
def test_tensors_in_a_defaultdict_are_found(factory: str) -> None:
    made = name("collections", "defaultdict") + factory.encode() + b"\x85Rq\x00(" + text("a") + tensor() + text("n") + b"K\x01u"
    content = archive(b"\x80\x02}" + text("state") + made + b"s" + text("same") + b"h\x00s.")
    found = read_archive(BytesReader(content))
    assert ([each.name for each in found.tensors], found.others) == (["state.a", "same.a"], 2)


@pytest.mark.parametrize("factory", [b"cmine\nfunction\n", b"cos\nsystem\n"])
def test_other_factories_of_a_defaultdict_are_refused_by_name(factory: bytes) -> None:
    content = archive(b"\x80\x02" + name("collections", "defaultdict") + factory + b"\x85R.")
    with pytest.raises(DataError, match=r"PickleNotAllowed: f\.pt: the pickle refers to (mine\.function|os\.system)"):
        read_archive(BytesReader(content))


def parsed(content: bytes) -> str:
    """Return the number of tensors of an archive, or the reason of its refusal."""
    try:
        return str(len(read_archive(BytesReader(content)).tensors))
    except DataError as refusal:
        error = refusal
    assert str(error).isprintable()
    assert error.where
    assert error.fix
    return error.reason


def lists_of_lists(depth: int, width: int) -> bytes:
    """A list of `width` times the same list, and so on: small, and width ** depth values."""
    found = b"]q\x00"
    for i in range(1, depth):
        found += b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * width + b"e"
    return found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archive(STORED), "1"),
        (b"", "NotTorchFile"),
        (b"PK\3\4", "Truncated"),
        (archive(STORED)[:-1], "Truncated"),
        (b"hello" * 100, "NotTorchFile"),
        (archive(STORED, compression=zipfile.ZIP_DEFLATED), "ArchiveCompressed"),
        (archive(STORED, {"data/0": bytes(24), "byteorder": b"big"}), "BigEndian"),
        (archive(STORED, {"data/0": bytes(24), "byteorder": b"little"}), "1"),
        (archive(STORED, {"data/0": bytes(24), "constants.pkl": b""}), "NotTorchFile"),
        (archive(STORED, {"data/0": bytes(24), "../x": b""}), "1"),
        (archive(STORED, {}), "TensorInvalid"),
        (archive(STORED, {"data/0": bytes(23)}), "TensorOutside"),
        (archive(b"\x80\x02" + tensor(shape=(3, 3)) + b"."), "TensorOutside"),
        (archive(b"\x80\x02" + tensor(first=1) + b"."), "TensorOutside"),
        (archive(b"\x80\x02" + tensor(strides=(4, 1)) + b"."), "TensorOutside"),
        (archive(b"\x80\x02" + tensor(strides=(-3, 1)) + b"."), "TensorInvalid"),
        (archive(b"\x80\x02" + tensor(shape=(1 << 60, 1 << 60)) + b"."), "TensorOutside"),
        (archive(b"\x80\x02" + tensor(shape=(1,) * 33, strides=(1,) * 33) + b"."), "TensorInvalid"),
        (archive(b"\x80\x02" + tensor(strides=(1,)) + b"."), "TensorInvalid"),
        (archive(b"\x80\x02" + tensor(shape=(0, 1 << 40)) + b"."), "1"),
        (archive(b"\x80\x02" + tensor(storage="UntypedStorage") + b"."), "TensorInvalid"),
        (archive(b"\x80\x02" + tensor(rest=b"}" + text("neg") + b"\x88s") + b"."), "UnresolvedTensor"),
        (
            archive(b"\x80\x02}(" + text("a.b") + tensor() + text("a") + b"}" + text("b") + tensor() + b"su."),
            "DuplicateParameter",
        ),
        (archive(b"\x80\x02]q\x00h\x00a."), "PickleTooLarge"),  # a list that holds itself
        (
            archive(b"\x80\x02}X\xa0\x86\x01\x00" + 100_000 * b"k" + b"](" + 2_000 * b"K\x01" + b"es."),
            "PickleTooLarge",
        ),  # long names
        (archive(b"\x80\x02" + lists_of_lists(5, 40) + b"."), "PickleTooLarge"),
        (archive(b"\x80\x02" + name("torch._utils", "_rebuild_wrapper_subclass") + b")R."), "TensorInvalid"),
        (archive(b"\x80\x02" + name("torch._tensor", "_rebuild_from_type_v2") + b")R."), "TensorInvalid"),
        (archive(b"\x80\x02" + name("torch._utils", "_rebuild_parameter") + b"N\x85R."), "TensorInvalid"),
        (archive(b"\x80\x02" + typed(name("torch", "Tensor"), name("torch._utils", "_rebuild_qtensor")) + b"."), "UnknownType"),
        (archive(b"\x80\x02cos\nsystem\n" + text("true") + b"\x85R."), "PickleNotAllowed"),
    ],
)
def test_an_invalid_archive_is_refused(content: bytes, reason: str) -> None:
    assert parsed(content) == reason


def test_a_directory_that_points_outside_is_refused() -> None:
    whole = archive(STORED)
    end = whole.rindex(b"PK\5\6")
    entry = whole.index(b"PK\1\2")
    size, offset = struct.unpack_from("<II", whole, end + 12)
    for at, value in ((end + 12, size + 1), (end + 16, offset + 1), (end + 16, 1 << 31), (entry + 42, 1 << 20), (entry + 42, 7)):
        changed = bytearray(whole)
        struct.pack_into("<I", changed, at, value)
        assert parsed(bytes(changed)) in {"ArchiveInvalid", "Truncated"}, (at, value)
    local = whole.index(b"archive/data.pkl")
    assert parsed(whole[:local] + b"archive/data.pkm" + whole[local + 16 :]) == "ArchiveInvalid"
    for more in (b"x", b"PK\5\6" * 5):
        assert parsed(whole + more) in {"1", "ArchiveInvalid", "Truncated"}


def with_wide_numbers(whole: bytes, offset: int = 0) -> bytes:
    """The archive with all numbers of its directory in 64 bits, as torch writes those of 4 GiB and more."""
    end = whole.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<HII", whole, end + 10)
    directory, at = b"", start
    while at < start + size:
        n, extra, comment = struct.unpack_from("<HHH", whole, at + 28)
        (header,) = struct.unpack_from("<I", whole, at + 42)
        plain = whole[at + 24 : at + 28] + bytes(4)
        fixed = whole[at : at + 20] + b"\xff" * 8 + struct.pack("<HHH", n, 28, 0) + whole[at + 34 : at + 42] + b"\xff" * 4
        directory += fixed + whole[at + 46 : at + 46 + n]
        directory += struct.pack("<HH", 1, 24) + plain * 2 + struct.pack("<Q", header + offset)
        at += 46 + n + extra + comment
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
    return whole[:start] + directory + record + locator + whole[end : end + 8] + b"\xff" * 12 + bytes(2)


def test_numbers_of_64_bits() -> None:
    wide = with_wide_numbers(archive(STORED))
    with zipfile.ZipFile(io.BytesIO(wide)) as reference:  # other readers use it
        assert reference.read("archive/data/0") == bytes(24)
    reader = BytesReader(wide)
    found = read_archive(reader)
    offset, length = locate(reader, found, "0")
    assert (found.container.entries["data/0"].size, reader.read(offset, length)) == (24, bytes(24))
    assert parsed(with_wide_numbers(archive(STORED), 1 << 40)) == "ArchiveInvalid"
    assert parsed(with_wide_numbers(archive(STORED), (1 << 63) - 1)) == "ArchiveInvalid"


@given(st.data())
def test_damage_is_only_refused(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from([archive(STORED), (FILES / "shared.pt").read_bytes()])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    parsed(bytes(whole[: data.draw(st.integers(0, len(whole)))]) if data.draw(st.booleans()) else bytes(whole))


def test_an_item_may_be_anywhere_in_a_file() -> None:
    content = b"x" * 37 + archive(STORED)
    reader = BytesReader(content + b"y" * 500)
    found = read_archive(reader, 37, len(content) - 37)
    offset, length = locate(reader, found, "0")
    assert (length, reader.read(offset, length)) == (24, bytes(24))
    with pytest.raises(DataError, match="Truncated"):
        read_archive(reader, 37, len(content) + 500)


def test_types() -> None:
    assert not set(BY_TORCH_NAME) & set(REFUSED)
    assert {found.torch for found in BY_STORAGE.values()} == {
        *("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"),
        *("complex64", "complex128"),
    }
