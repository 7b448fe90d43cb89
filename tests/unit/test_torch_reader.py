"""Checkpoints of PyTorch as sources: each tensor is found in its files, byte by byte, and what contradicts is refused by name."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch_checkpoints
from hypothesis import given
from hypothesis import strategies as st
from local_folder import LocalFolder, content_of
from torch_files import DATA, METADATA, archive, instance, metadata, number, sha256_of, tensor, text

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.errors import DataError, MissingInputError, RequestError, ReshardError
from reshard.formats.registry import detect, source_format
from reshard.formats.torch.items import Item, Templates, locate_items

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.model import Checkpoint

RECORDED = [*sorted(path.parent.name for path in DATA.glob("*/.metadata")), "per_rank"]
LARGE = (4 << 30) + 5


def read(folder: LocalFolder, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
    found = detect(folder.names)
    assert found is not None
    return found.read(folder, workers=2, wanted=wanted)


def digests(path: Path, found: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], str]]:
    return {each.name: (each.dtype, each.shape, sha256_of(content_of(path, found, each))) for each in found.tensors}


def expected(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    recorded = json.loads((path / "expected.json").read_text())
    return {name: (BY_TORCH_NAME[each["dtype"]].name, tuple(each["shape"]), each["sha256"]) for name, each in recorded.items()}


@pytest.mark.parametrize("name", RECORDED)
def test_the_content_of_each_tensor_is_found_exactly(name: str) -> None:
    path = DATA / name
    assert digests(path, read(LocalFolder(path))) == expected(path)


def test_a_few_requests_read_a_file() -> None:
    folder = LocalFolder(DATA / "fsdp2")
    read(folder)
    assert folder.reads <= 2 * 4


def test_the_reads_of_a_file_are_known_when_it_is_opened(tmp_path: Path) -> None:
    """Over a network, many of them are fetched at a time."""
    torch_checkpoints.write(tmp_path / "large", 2, 12, rows=64, columns=1024)
    folder = LocalFolder(tmp_path / "large")
    read(folder)
    assert folder.reads > 2 * 12
    assert folder.unforeseen == 0


def test_objects_are_whole_items() -> None:
    found = read(LocalFolder(DATA / "placements"))
    (lr,) = (each for each in found.objects if each.name == "options.lr")
    (place,) = lr.places
    content = (DATA / "placements" / found.files[place.file]).read_bytes()[place.offset : place.offset + place.length]
    assert (content[:4], content[-22:-18]) == (b"PK\3\4", b"PK\5\6")


def one_tensor(
    path: Path, item: bytes, shape: tuple[int, ...] = (2, 3), dtype: str = "float32", names: Sequence[str] = ("w0",)
) -> LocalFolder:
    """A checkpoint of one file, whose metadata states this shape, with equal items for these tensors."""
    document = metadata({name: (shape, [((0,) * len(shape), shape)]) for name in names}, dtype=dtype, length=len(item))
    (path / ".metadata").write_bytes(document)
    (path / "f").write_bytes(item * len(names))
    return LocalFolder(path)


ITEM = archive(b"\x80\x02" + tensor() + b".")


@pytest.mark.parametrize(
    ("item", "options", "reason"),
    [
        (ITEM, {"shape": (3, 2)}, "MetadataMismatch"),
        (ITEM, {"dtype": "int32"}, "MetadataMismatch"),
        (ITEM, {"dtype": "complex32"}, "MetadataMismatch"),
        (ITEM, {"dtype": "qint8"}, "UnknownType"),
        (
            archive(b"\x80\x02" + tensor((1 << 17, 2), (3, 1), count=3 << 17) + b".", {"data/0": bytes(3 << 19)}),
            {"shape": (1 << 17, 2)},
            "UnsupportedStrides",
        ),
        (archive(b"\x80\x02]" + tensor() + b"a."), {}, "TensorInvalid"),
        (archive(b"\x80\x02K\1."), {}, "TensorInvalid"),
        (archive(b"\x80\x02" + tensor() + b".", {"data/0": bytes(24), "byteorder": b"big"}), {}, "BigEndian"),
        (ITEM[:-30], {}, "Truncated"),
        (b"PK\3\4" + bytes(3000), {}, "Truncated"),
        (bytes(3000), {}, "NotTorchFile"),
    ],
)
def test_an_item_that_contradicts_the_metadata_is_refused(
    item: bytes, options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(one_tensor(tmp_path, item, **options))
    assert caught.value.reason == reason
    assert "tensor w0" in str(caught.value)


@given(st.permutations(range(3)), st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2), st.integers(0, 2))
def test_tensors_in_any_order_are_divided_into_ranges(order: list[int], shape: tuple[int, ...], gap: int, first: int) -> None:
    steps, step = [0, 0, 0], 1
    for i in order:
        steps[i], step = step, step * (shape[i] + gap)
    content = np.arange(first + step + 1, dtype=np.float32)
    item = archive(b"\x80\x02" + tensor(shape, steps, first=first, count=len(content)) + b".", {"data/0": content.tobytes()})
    whole = np.lib.stride_tricks.as_strided(content[first:], shape, [4 * n for n in steps])
    with tempfile.TemporaryDirectory() as name:
        found = read(one_tensor(Path(name), item, shape))
        assert content_of(Path(name), found, found.tensors[0]) == whole.tobytes()


def test_the_stride_of_a_dimension_with_one_element_may_be_any_number(tmp_path: Path) -> None:
    item = archive(b"\x80\x02" + tensor((1, 2, 2), ((1 << 62) - 1, 1, 2), count=4) + b".", {"data/0": bytes(range(16))})
    found = read(one_tensor(tmp_path, item, (1, 2, 2)))
    expected = np.frombuffer(bytes(range(16)), np.float32).reshape(2, 2).T
    assert content_of(tmp_path, found, found.tensors[0]) == expected.tobytes()


def test_the_pieces_of_all_tensors_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.formats.torch.strided._MOST_PIECES_IN_ALL", 1)
    item = archive(b"\x80\x02" + tensor((2, 2), (1, 2), count=4) + b".", {"data/0": bytes(range(16))})
    with pytest.raises(DataError, match=r"UnsupportedStrides.*in total"):
        read(one_tensor(tmp_path, item, (2, 2)))


def test_a_shard_by_columns_next_to_one_by_rows(tmp_path: Path) -> None:
    rows, columns = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(6, 12, dtype=np.float32).reshape(2, 3)
    first = archive(b"\x80\x02" + tensor() + b".", {"data/0": rows.tobytes()})
    second = archive(b"\x80\x02" + tensor(strides=(1, 2)) + b".", {"data/0": columns.tobytes("F")})
    assert len(first) == len(second)
    boxes = [((0, 0), (2, 3)), ((2, 0), (2, 3))]
    (tmp_path / ".metadata").write_bytes(metadata({"w": ((4, 3), boxes)}, length=len(first)))
    (tmp_path / "f").write_bytes(first + second)
    found = read(LocalFolder(tmp_path))
    assert content_of(tmp_path, found, found.tensors[0]) == rows.tobytes() + columns.tobytes()
    assert len(found.tensors[0].shards.tiling) == 4


def test_views_of_a_larger_storage_are_found(tmp_path: Path) -> None:
    item = archive(b"\x80\x02" + tensor(first=2, count=10) + b".", {"data/0": bytes(range(40))})
    found = read(one_tensor(tmp_path, item))
    assert content_of(tmp_path, found, found.tensors[0]) == bytes(range(8, 32))


class Sparse:
    """Two archives of 4 GiB and 5 zeros, of which only what torch wrote around the content is stored."""

    name = "large"
    head, tail = (DATA / "large" / "head").read_bytes(), (DATA / "large" / "tail").read_bytes()
    length = len(head) + LARGE + len(tail)
    size = 2 * length

    def read(self, offset: int, length: int) -> bytes:
        at = offset % self.length
        low = self.head[at : at + length]
        high = self.tail[max(at - len(self.head) - LARGE, 0) :][: max(at + length - len(self.head) - LARGE, 0)]
        return (
            (low + bytes(length - len(low) - len(high)) + high)[:length]
            if at + length <= self.length
            else self._both(offset, length)
        )

    def _both(self, offset: int, length: int) -> bytes:
        middle = self.length - offset
        return self.read(offset, middle) + self.read(self.length, length - middle)


def test_content_of_more_than_4_gib_is_found() -> None:
    reader = Sparse()
    items = [Item(f"w{i}", "UInt8", (LARGE,), i * reader.length, reader.length) for i in (0, 1)]
    found = list(locate_items(reader, items, Templates()))
    assert [content[:2] for content in found] == [(i * reader.length + len(reader.head), LARGE) for i in (0, 1)]


def test_each_byte_outside_the_content_is_compared(tmp_path: Path) -> None:
    """A second item that differs in any byte is resolved as if it were the only one."""
    folder = one_tensor(tmp_path, ITEM, names=("w0", "w1"))
    offset = read(folder).tensors[0].shards.offsets[0]
    for at in range(len(ITEM)):
        changed = bytearray(ITEM * 2)
        changed[len(ITEM) + at] ^= 1
        (tmp_path / "f").write_bytes(changed)
        try:
            found = read(folder)
        except DataError:
            assert not offset <= at < offset + 24
        else:
            assert found.tensors[1].shards.offsets[0] == len(ITEM) + offset, at
            alone = one_tensor(tmp_path, bytes(changed[len(ITEM) :]))
            assert read(alone).tensors[0].shards.offsets[0] == offset
            one_tensor(tmp_path, ITEM, names=("w0", "w1"))


def test_a_missing_or_short_file_is_refused(tmp_path: Path) -> None:
    shutil.copytree(DATA / "items", tmp_path, dirs_exist_ok=True)
    folder = LocalFolder(tmp_path)
    file = tmp_path / "__1_1.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="Truncated"):
        read(folder)
    file.unlink()
    with pytest.raises(MissingInputError, match="FileMissing"):
        read(folder)


def test_a_checkpoint_that_is_being_written_is_refused(tmp_path: Path) -> None:
    shutil.copytree(DATA / "items", tmp_path, dirs_exist_ok=True)
    (tmp_path / ".metadata").unlink()
    with pytest.raises(MissingInputError, match=r"FileMissing: .*\.metadata does not exist.*incomplete"):
        read(LocalFolder(tmp_path))


def test_formats_are_found_by_name() -> None:
    assert source_format("torch-dcp").name == "torch-dcp"
    assert detect(["model.safetensors", "config.json"]) is None


def test_megatron_checkpoints_have_documents() -> None:
    path = DATA / "megatron"
    folder = LocalFolder(path)
    assert detect(folder.names) == source_format("megatron")
    found = read(folder)
    assert digests(path, found) == expected(path)
    assert found.documents == (".metadata", "common.pt", "metadata.json")
    assert [each.name for each in found.objects] == [f"rng_state/shard_{i}.{j}_2.2" for i in (0, 1) for j in (0, 1)]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b'{"sharded_backend": "zarr", "sharded_backend_version": 1}', "UnsupportedSource"),
        (b"{}", "MetadataInvalid"),
        (b"[" * 100_000, "MetadataInvalid"),
        (None, "FileMissing"),
    ],
)
def test_other_documents_of_megatron_are_refused(document: bytes | None, reason: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / "megatron", tmp_path, dirs_exist_ok=True)
    (tmp_path / "metadata.json").unlink()
    if document is not None:
        (tmp_path / "metadata.json").write_bytes(document)
    with pytest.raises(ReshardError, match=f"{reason}: "):
        read(LocalFolder(tmp_path))


def test_flat_buffers_of_an_optimizer_are_refused_unless_they_are_excluded(tmp_path: Path) -> None:
    flat = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_x.bucket_idx_0.exp_avg"
    folder = one_tensor(tmp_path, ITEM, names=("w", flat, "optimizer.state.exp_avg.w"))
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    (tmp_path / "common.pt").write_bytes(b"")
    with pytest.raises(RequestError, match=r"FlatOptimizer: .*dp_group_idx_0"):
        read(folder)
    assert [each.name for each in read(folder, wanted=lambda name: name != flat).tensors] == ["w", "optimizer.state.exp_avg.w"]


def document_of_object(name_: str, file: str, length: int) -> bytes:
    """Metadata of a checkpoint with one value that is not a tensor."""
    entry = text(name_) + instance(METADATA, "BytesStorageMetadata")
    index = instance(METADATA, "MetadataIndex", fqn=text(name_), index=b"N")
    state = {"relative_path": text(file), "offset": number(0), "length": number(length)}
    info = instance("torch.distributed.checkpoint.filesystem", "_StorageInfo", **state)
    fields = {"state_dict_metadata": b"}(" + entry + b"u", "planner_data": b"N", "storage_data": b"}(" + index + info + b"u"}
    return b"\x80\x04" + instance(METADATA, "Metadata", **fields) + b"."


@pytest.mark.parametrize("tensor_first", [True, False])
def test_a_tensor_that_is_another_value_on_another_rank_is_refused(tensor_first: bool, tmp_path: Path) -> None:
    documents = [
        metadata({"step": ((2, 3), [((0, 0), (2, 3))])}, length=len(ITEM), file="__0_0.distcp"),
        document_of_object("step", "__1_0.distcp", len(ITEM)),
    ]
    for rank, document in enumerate(documents if tensor_first else reversed(documents)):
        (tmp_path / f"__{rank}.metadata").write_bytes(document)
        (tmp_path / f"__{rank}_0.distcp").write_bytes(ITEM)
    with pytest.raises(DataError) as caught:
        read(LocalFolder(tmp_path))
    assert caught.value.reason == "RanksDisagree"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"__1.metadata": None}, "FileMissing"),
        ({"__3.metadata": None}, "FileMissing"),
        ({".metadata": metadata({"w": ((2, 3), [((0, 0), (2, 3))])}, length=len(ITEM))}, "AmbiguousFiles"),
        ({"__1000000000000_0.distcp": b"", "other.distcp": b""}, None),
    ],
)
def test_metadata_of_each_rank_is_complete_and_of_one_save(
    changed: dict[str, bytes | None], reason: str | None, tmp_path: Path
) -> None:
    # A value that only one rank has leaves no hole, so that the proof of the shards would not miss it.
    for rank in range(4):
        document = metadata({f"w{rank}": ((2, 3), [((0, 0), (2, 3))])}, length=len(ITEM), file=f"__{rank}_0.distcp")
        (tmp_path / f"__{rank}.metadata").write_bytes(document)
        (tmp_path / f"__{rank}_0.distcp").write_bytes(ITEM)
    for file, content in changed.items():
        if content is None:
            (tmp_path / file).unlink()
        else:
            (tmp_path / file).write_bytes(content)
    if reason is None:
        assert [tensor.name for tensor in read(LocalFolder(tmp_path)).tensors] == ["w0", "w1", "w2", "w3"]
        return
    with pytest.raises(ReshardError) as caught:
        read(LocalFolder(tmp_path))
    assert caught.value.reason == reason


@pytest.mark.parametrize("options", [{"names": ["a\ud800"]}, {"file": "a\ud800"}])
def test_names_that_are_not_unicode_are_refused(options: dict[str, object], tmp_path: Path) -> None:
    names = options.pop("names", ["w"])
    document = metadata({name: ((2, 3), [((0, 0), (2, 3))]) for name in names}, length=len(ITEM), **options)
    (tmp_path / ".metadata").write_bytes(document)
    with pytest.raises(DataError) as caught:
        read(LocalFolder(tmp_path))
    assert caught.value.reason == "PickleInvalid"


COLUMN_MAJOR = archive(b"\x80\x02" + tensor((2, 3), (1, 2)) + b".")


@pytest.mark.parametrize(
    ("items", "files"), [([COLUMN_MAJOR] * 2, 2), ([ITEM, COLUMN_MAJOR], None), ([COLUMN_MAJOR, ITEM], None)]
)
def test_all_copies_of_a_shard_by_columns_are_found(items: list[bytes], files: int | None, tmp_path: Path) -> None:
    for rank, item in enumerate(items):
        document = metadata({"w": ((2, 3), [((0, 0), (2, 3))])}, length=len(item), file=f"__{rank}_0.distcp")
        (tmp_path / f"__{rank}.metadata").write_bytes(document)
        (tmp_path / f"__{rank}_0.distcp").write_bytes(item)
    if files is None:
        with pytest.raises(DataError, match="UnsupportedStrides"):
            read(LocalFolder(tmp_path))
        return
    (found,) = read(LocalFolder(tmp_path)).tensors
    assert [len(found.shards.placement.files_of(tile)) for tile in range(len(found.shards.tiling))] == [files] * 3
