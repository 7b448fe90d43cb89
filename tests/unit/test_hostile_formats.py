"""Damaged and malicious checkpoints of every format: each is read or refused by name, in memory bounded by the files."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from effort import share
from local_folder import LocalFolder
from torch_files import DATA, BytesReader, safetensors

from reshard.errors import ReshardError
from reshard.formats.registry import detect
from reshard.formats.torch.items import Item, Templates, locate_items

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.formats.protocol import SourceFormat
    from reshard.formats.torch.strided import Content

HYPER_PARALLEL = Path(__file__).parent / "data" / "hyper_parallel"
MINDFORMERS = Path(__file__).parent / "data" / "mindformers" / "iteration_00000010"
OF_TORCH = ("placements", "items", "per_rank", "fsdp2_tp", "megatron")
MUTATIONS = share(40)
_FIXED = 12 << 20  # bytes that any pickle may need, see `unpickle.Limits`


def truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def enlarged(content: bytes, chance: random.Random) -> bytes:
    """Some bytes in a row are all ones, which makes numbers large."""
    at, n = chance.randrange(len(content)), chance.choice((1, 2, 4, 8))
    return content[:at] + b"\xff" * n + content[at + n :]


def repeated(content: bytes, chance: random.Random) -> bytes:
    low, high = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:high] + content[low:high] * chance.choice((1, 1, 30)) + content[high:]


def removed(content: bytes, chance: random.Random) -> bytes:
    low, high = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return content[:low] + content[high:]


KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (truncated, flipped, enlarged, repeated, removed)


def sources() -> dict[str, Callable[[Path], object]]:
    """For each name a function that writes a checkpoint to a folder."""
    found: dict[str, Callable[[Path], object]] = {}
    for name in OF_TORCH:
        found[name] = lambda path, name=name: shutil.copytree(DATA / name, path)
    for name in ("common", "per_rank"):
        found[f"hyper_parallel/{name}"] = lambda path, name=name: shutil.copytree(HYPER_PARALLEL / name, path)
    found["torch-save"] = lambda path: (path.mkdir(), shutil.copy(DATA / "files" / "types.pt", path))
    found["torch-safetensors"] = sharded
    found["mindformers"] = mindformers
    return found


def sharded(path: Path) -> None:
    path.mkdir()
    for rank in (0, 1):
        info = {"DCP_SHARDING_INFO": f'{{"w": {{"saved_offsets": [{rank}, 0]}}}}', "format": "pt"}
        content = safetensors({"w": ("F32", (1, 3), bytes(12))}, info)
        (path / f"shard-0000{rank + 1}-model-00001-of-00001.safetensors").write_bytes(content)


def mindformers(path: Path) -> None:
    shutil.copytree(MINDFORMERS, path)


@pytest.mark.parametrize("name", sorted(sources()))
def test_a_damaged_file_is_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "source"
    sources()[name](path)
    folder = LocalFolder(path)
    found = detect(folder.names)
    assert found is not None
    assert not read(found, folder)
    files = [file for file in sorted(path.iterdir()) if file.name != "expected.json"]
    total = sum(file.stat().st_size for file in files)
    refused = 0
    tracemalloc.start()
    try:
        for number in range(MUTATIONS * len(KINDS)):
            chance = random.Random(f"{name} {number}")
            file = chance.choice(files)
            content = file.read_bytes()
            file.write_bytes(KINDS[number % len(KINDS)](content, chance))
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            refused += read(found, folder)
            assert tracemalloc.get_traced_memory()[1] - before < 10 * (total + file.stat().st_size) + _FIXED
            file.write_bytes(content)
    finally:
        tracemalloc.stop()
    assert refused


def test_items_after_an_equal_one_are_located_as_if_they_were_alone() -> None:
    first = (DATA / "items" / "__1_0.distcp").read_bytes()
    (start, length, _) = located(first, 0)[0]
    equal = 0
    for number in range(MUTATIONS * 10):
        chance = random.Random(number)
        content = (flipped, enlarged)[number % 2](first, chance)[: len(first)].ljust(len(first), b"\0")
        alone, after = None, None
        with suppress(ReshardError):
            alone = located(content, 0)
        with suppress(ReshardError):
            after = located(first + content, 0, len(first))
        assert (alone is None) == (after is None)
        if alone is not None and after is not None:
            assert [content[:2] for content in alone] == [(start, length)]
            assert [content[:2] for content in after] == [(start, length), (len(first) + start, length)]
            assert alone[0].strides == after[1].strides
            equal += 1
    assert equal > MUTATIONS


def read(found: SourceFormat, folder: LocalFolder) -> bool:
    """Whether a checkpoint is refused, with a message that says where and what helps."""
    try:
        found.read(folder)
    except ReshardError as refusal:
        error = refusal
    else:
        return False
    assert str(error).isprintable()
    assert error.where
    assert error.fix
    return True


def located(content: bytes, *starts: int) -> list[Content]:
    items = [Item("w", "Float32", (2, 6), start, len(content) // len(starts)) for start in starts]
    return list(locate_items(BytesReader(content), items, Templates()))


@pytest.mark.parametrize(
    "document",
    [
        b'{"state_dict_metadata": {' + b",".join(b'"%d":{}' % i for i in range(100_000)) + b'}, "storage_data": {}}',
        b'{"state_dict_metadata": {}, "storage_data": {' + b",".join(b'"%d":[]' % i for i in range(100_000)) + b"}}",
        b'{"state_dict_metadata": {"w": {"properties": {"dtype": "Float32"}, "global_shape": [1], "chunk": ['
        + b",".join([b'{"global_offset":[0],"local_shape":[1]}'] * 20_000)
        + b']}}, "storage_data": {}}',
        b"[" * 1_000_000,
    ],
)
def test_metadata_of_mindformers_takes_memory_by_its_size(document: bytes, tmp_path: Path) -> None:
    path = tmp_path / "source"
    mindformers(path)
    (path / "metadata.json").write_bytes(document)
    folder = LocalFolder(path)
    found = detect(folder.names)
    assert found is not None
    tracemalloc.start()
    try:
        with pytest.raises(ReshardError):
            found.read(folder)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(document) + (1 << 20)
    finally:
        tracemalloc.stop()
