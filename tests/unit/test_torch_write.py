"""Distributed checkpoints written without torch: archives equal torch's byte for byte, and the reader finds each tensor again."""

from __future__ import annotations

import io
import pickletools
import zipfile
import zlib
from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from itertools import pairwise, product
from math import prod
from typing import TYPE_CHECKING, Any

import memory_tasks
import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_folder import LocalFolder, content_of
from memory_store import MemoryWriter
from output_files import opaque, rendered, shard, write_checkpoint
from torch_files import DATA, BytesReader, FileReader

from reshard.checkpoint.dtypes import BY_TORCH_NAME, DTYPES, OBJECT
from reshard.checkpoint.output import OutputFile, OutputTensor
from reshard.cli.arguments import kebab
from reshard.engine.content import Conditions, assemble
from reshard.errors import DataError, RequestError
from reshard.formats.registry import OUTPUT_GROUP, output_format, source_format
from reshard.formats.torch.archive import locate, read_archive
from reshard.formats.torch.dcp import read_metadata
from reshard.formats.torch.envelope import envelope
from reshard.formats.torch.unpickle import Limits
from reshard.formats.torch.write import DCP, MEGATRON
from reshard.spec.request import FORMATS
from reshard.storage.digest import ContentDigest
from reshard.storage.protocol import PartLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from output_files import Content

    from reshard.engine.task import Task

HELD = sorted(dtype.name for dtype in BY_TORCH_NAME.values())
SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)


def recorded() -> Iterator[tuple[str, bytes]]:
    """Yield each archive of a row-major tensor that torch wrote for a distributed checkpoint."""
    for name in ("items", "placements", "fsdp2", "fsdp2_tp"):
        folder = LocalFolder(DATA / name)
        found = source_format("torch-dcp").read(folder, wanted=lambda each: each != "column_major")
        for tensor in found.tensors:
            for tile in range(len(tensor.shards.tiling)):
                for place in tensor.shards.places(tile):
                    content = (folder.path / found.files[place.file]).read_bytes()
                    start = content.rindex(b"PK\3\4", 0, content.rindex(b"archive/data.pkl", 0, place.offset))
                    end = content.index(b"PK\5\6", place.offset + place.length) + 22
                    yield f"{name}-{tensor.name}-{tile}", content[start:end]


def single(archive: bytes) -> Content:
    """The tensor in an archive."""
    reader = BytesReader(archive)
    found = read_archive(reader)
    (stored,) = found.tensors
    content = reader.read(*locate(reader, found, stored.storage))
    return OutputTensor("x", stored.dtype.name, stored.shape, len(content)), content


def values(shape: Sequence[int], dtype: str, seed: int = 0) -> Any:
    itemsize = DTYPES[dtype].itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(prod(shape) * itemsize), f"V{itemsize}").reshape(shape)


def whole(name: str, shape: tuple[int, ...], dtype: str) -> Content:
    return shard(name, values(shape, dtype), (0,) * len(shape), shape, dtype)


def test_archives_equal_those_of_torch() -> None:
    archives = list(recorded())
    assert len(archives) > 60
    for name, archive in archives:
        assert rendered(DCP, [single(archive)]) == archive, name


def test_archives_of_more_than_4_gib_equal_those_of_torch() -> None:
    nbytes = (1 << 32) + 5
    around = envelope("UInt8", (nbytes,), nbytes)
    block, crc = bytes(1 << 24), 0
    for at in range(0, nbytes, len(block)):
        crc = zlib.crc32(block[: nbytes - at], crc)
    assert around.head == (DATA / "large" / "head").read_bytes()
    assert around.tail(crc) == (DATA / "large" / "tail").read_bytes()


@given(st.sampled_from(HELD), SHAPES)
def test_archives_are_valid_zip_files_of_each_type(dtype: str, shape: tuple[int, ...]) -> None:
    content = whole("x", shape, dtype)
    archive = rendered(DCP, [content])
    found = zipfile.ZipFile(io.BytesIO(archive))
    assert found.testzip() is None
    assert found.read("archive/data/0") == content[1]
    (entry,) = DCP.entries(BytesReader(archive), [content[0]])
    assert (entry.dtype, entry.shape, entry.nbytes) == (dtype, shape, len(content[1]))
    assert all(archive[at : at + n] == content[1] for at, n in entry.extents)


def cuts(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """Divide a dimension as FSDP does, with empty shards at its end, or at any points."""
    if draw(st.booleans()):
        count = draw(st.integers(1, 4))
        step = max(-(-length // count), 1)
        starts = [min(i * step, length) for i in range(count)]
        return [(start, min(step, length - start)) for start in dict.fromkeys(starts)]
    points = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=3))})
    return [(a, b - a) for a, b in pairwise(points)] or [(0, 0)]


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[dict[str, Any], list[list[Content]]]:
    """Tensors whose shards are a grid, each in the file of any rank."""
    ranks: list[list[Content]] = [[] for _ in range(draw(st.integers(1, 4)))]
    tensors = {}
    names = draw(st.lists(st.text(max_size=8), max_size=4, unique=True))
    for seed, name in enumerate(names):
        dtype, shape = draw(st.sampled_from(HELD)), draw(SHAPES)
        tensors[name] = dtype, values(shape, dtype, seed)
        for box in product(*(cuts(draw, length) for length in shape)):
            held = shard(name, tensors[name][1], [a for a, _ in box], [n for _, n in box], dtype)
            ranks[draw(st.integers(0, len(ranks) - 1))].append(held)
    return tensors, ranks


@given(case=checkpoints())
def test_the_reader_finds_each_tensor_again(
    case: tuple[dict[str, Any], list[list[Content]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors, ranks = case
    path = tmp_path_factory.mktemp("dcp")
    write_checkpoint(DCP, path, ranks)
    found = source_format("torch-dcp").read(LocalFolder(path))
    assert {each.name: (each.dtype, each.shape, content_of(path, found, each)) for each in found.tensors} == {
        name: (dtype, tensor.shape, tensor.tobytes()) for name, (dtype, tensor) in tensors.items()
    }
    assert found.version == "1.0.0"


def test_objects_are_copied_as_they_are_and_come_first(tmp_path: Path) -> None:
    archive = next(archive for _, archive in recorded())
    (file,) = write_checkpoint(DCP, tmp_path, [[whole("w", (2, 3), "Float32"), opaque("optim.lr", archive)]])
    assert (tmp_path / "__0_0.distcp").read_bytes().startswith(archive)
    assert [tensor.name for tensor in file.tensors] == ["optim.lr", "w"]
    found = source_format("torch-dcp").read(LocalFolder(tmp_path))
    assert [(each.name, [(place.offset, place.length) for place in each.places]) for each in found.objects] == [
        ("optim.lr", [(0, len(archive))])
    ]
    entries = DCP.entries(FileReader(tmp_path / "__0_0.distcp"), file.tensors)
    assert [(entry.name, entry.dtype) for entry in entries] == [("optim.lr", OBJECT), ("w", "Float32")]


def described(*tensors: OutputTensor, **options: Any) -> bytes:
    return replace(DCP, **options).documents([OutputFile("__0_0.distcp", 0, tensors)])[".metadata"]


def test_metadata_lists_keys_of_nested_values() -> None:
    tensor = OutputTensor("optim.groups.0.lr", "Float32", (), 4, keys=("optim", "groups", 0, "lr"))
    operations = [(code.name, argument) for code, argument, _ in pickletools.genops(described(tensor))]
    at = operations.index(("BINUNICODE", "planner_data"))
    found = [argument for name, argument in operations[at:] if name in {"BINUNICODE", "BININT1"}]
    assert found[1:5] == ["optim", "groups", 0, "lr"]
    flat = [code.name for code, _, _ in pickletools.genops(described(tensor, nested=False))]
    assert flat.count("NONE") == 2  # no keys, and no storage_meta


def test_metadata_states_five_properties() -> None:
    names = [code.name for code, _, _ in pickletools.genops(described(OutputTensor("w", "Float32", (2,), 8)))]
    properties = names[names.index("NEWFALSE") :]
    assert properties[: properties.index("BUILD")].count("NEWFALSE") == 2  # sixth would be strides
    assert "TUPLE2" not in properties[: properties.index("BUILD")]


def test_metadata_takes_about_100_bytes_for_each_shard() -> None:
    rows = [
        OutputTensor(f"layers.{i % 50}.weight", "BFloat16", (8, 4096), 65536, (i // 50 * 8, 0), (800, 4096)) for i in range(5000)
    ]
    content = DCP.documents([OutputFile(f"__{i}_0.distcp", 0, tuple(rows[i::10])) for i in range(10)])[".metadata"]
    assert len(content) < 110 * len(rows)
    read_metadata([("m", content)], Limits(stack=2200))  # as deep as a pickle of Python


def test_documents_depend_on_what_is_in_files_alone() -> None:
    tensors = [OutputTensor(name, "Float32", (2,), 8, (start,), (4,)) for name in "ba" for start in (2, 0)]
    first = DCP.documents(
        [OutputFile("__0_0.distcp", 0, (tensors[0], tensors[2])), OutputFile("__1_0.distcp", 0, (tensors[1], tensors[3]))]
    )
    reordered = DCP.documents(
        [OutputFile("__1_0.distcp", 0, (tensors[1], tensors[3])), OutputFile("__0_0.distcp", 0, (tensors[0], tensors[2]))]
    )
    assert first == reordered


def test_the_first_of_equal_shards_counts(tmp_path: Path) -> None:
    content = whole("w", (2, 3), "Float32")
    write_checkpoint(DCP, tmp_path, [[content], [content]])
    found = source_format("torch-dcp").read(LocalFolder(tmp_path))
    assert found.files == ("__0_0.distcp",)


@pytest.mark.parametrize("dtype", ["Int4", "str", "HiFloat8", "float6_e2m3fn_x4"])
def test_types_that_torch_does_not_have_are_refused(dtype: str) -> None:
    with pytest.raises(DataError, match=rf"UnknownType: .*parameter w: torch has no equivalent of the type {dtype}"):
        DCP.can_hold(OutputTensor("w", dtype, (2,), 2 * DTYPES[dtype].itemsize))


def test_a_damaged_file_is_not_what_was_written() -> None:
    content = whole("w", (2, 3), "Float32")
    archive = rendered(DCP, [content])
    for damaged, tensor, reason in (
        (archive + b"x", content[0], "SizeMismatch"),
        (archive, OutputTensor("w", "Int32", (2, 3), 24), "MetadataMismatch"),
        (archive.replace(b"data.pkl", b"data.abc"), content[0], "NotTorchFile"),
    ):
        with pytest.raises(DataError, match=reason):
            DCP.entries(BytesReader(damaged), [tensor])


def test_megatron_requires_the_files_of_its_source() -> None:
    assert MEGATRON.carried(["common.pt", ".metadata", "metadata.json"], "s", settings=False) == ("common.pt", "metadata.json")
    with pytest.raises(RequestError, match=r"NotMegatron: s: the source has no metadata\.json, "):
        MEGATRON.carried(["common.pt"], "s", settings=False)
    assert DCP.carried(["common.pt", "metadata.json"], "s", settings=True) == ()


def test_another_package_can_add_an_output_format(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("zarr", "reshard.formats.torch.write:MEGATRON", OUTPUT_GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", EntryPoints([entry]).select)
    assert output_format("zarr") is MEGATRON
    with pytest.raises(RequestError, match=r"use one of these: .*zarr"):
        output_format("tar")


@pytest.mark.parametrize("value", FORMATS[1:])
def test_each_output_format_has_its_name(value: str) -> None:
    assert output_format(value).name == kebab(value)


def test_an_unknown_output_format_is_refused() -> None:
    with pytest.raises(RequestError, match=r"UnknownFormat: .*zarr is not the name of a known output.*Ckpt, HuggingFace"):
        output_format("zarr")


ROWS, FEWER_ROWS, COLUMNS = models.Cut((4,), ((0,), ())), models.Cut((2,), ((0,), ())), models.Cut((2,), ((), (0,)))


def contents_of(made: Task, content: bytes, rank: int) -> dict[str, bytes]:
    """The content of each tensor in a file, after Python's zipfile has compared its CRC32."""
    found, at = {}, 0
    for tensor in made.tensors(rank):
        length = DCP.file_size([tensor], {})
        archive = zipfile.ZipFile(io.BytesIO(content[at : at + length]))
        assert archive.testzip() is None
        found[tensor.name] = archive.read("archive/data/0")
        at += length
    assert at == len(content)
    return found


def transform(target: models.Cut) -> tuple[Task, models.Model]:
    """A task with tensors of several tiles, of part of one, and without elements."""
    shapes = {"large": (2048, 1024), "more": (1024, 2048), "small": (4, 2), "empty": (0, 2)}
    tensors = tuple(models.Tensor(name, "Float32", shape, ROWS, 0, target, 0) for name, shape in shapes.items())
    model = models.Model(4, 1, 2, 1, tensors, 1, remove_redundancy=False)
    made, _ = memory_tasks.task(model, "safetensors", "safetensors")
    return replace(made, output=DCP), model


def test_checksums_are_those_of_the_content_that_passed() -> None:
    made, model = transform(COLUMNS)
    for rank in made.ranks:
        found = contents_of(made, memory_tasks.written(made, rank), rank)
        for tensor in model.tensors:
            half = tensor.shape[1] // 2
            assert found[tensor.name] == model.whole(tensor)[:, rank * half : (rank + 1) * half].tobytes()


def test_a_server_assembles_no_file_with_checksums() -> None:
    made, model = transform(FEWER_ROWS)
    writer = MemoryWriter()
    limits = PartLimits(smallest=1, most=10_000, longest_copy=1 << 30)
    digest = assemble(made, made.planner.plan(0), writer, Conditions(), limits)
    assert digest == str(ContentDigest(bytes(writer.content)))
    found = contents_of(made, bytes(writer.content), 0)
    assert found["large"] == model.whole(model.tensors[0])[:1024].tobytes()
