"""Pickles, metadata and archives of PyTorch, written byte by byte, so that tests can write what torch would not."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Chunks = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    Boxes = tuple[tuple[int, ...], Chunks]

DATA = Path(__file__).parents[1] / "unit" / "data" / "torch"
METADATA = "torch.distributed.checkpoint.metadata"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class FileReader:
    """A file read by ranges, which counts the bytes read."""

    def __init__(self, path: Path) -> None:
        self.name, self._content, self.reads = path.name, path.read_bytes(), 0

    @property
    def size(self) -> int:
        return len(self._content)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size, (offset, length)
        self.reads += 1
        return self._content[offset : offset + length]


class BytesReader(FileReader):
    """Bytes by range."""

    def __init__(self, content: bytes) -> None:
        self.name, self._content, self.reads = "f.pt", content, 0


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def sequence(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, found: str) -> bytes:
    return f"c{module}\n{found}\n".encode()


def size(values: Sequence[int]) -> bytes:
    return name("torch", "Size") + sequence(values) + b"\x85R"


def instance(module: str, found: str, **state: bytes) -> bytes:
    return name(module, found) + b")\x81}(" + b"".join(text(key) + value for key, value in state.items()) + b"ub"


def metadata(  # noqa: PLR0913 - each test varies another one
    tensors: Mapping[str, Boxes],
    *,
    dtype: str = "float32",
    file: str = "f",
    offset: int = 0,
    transforms: Sequence[str] = (),
    stored: Mapping[str, Chunks] | None = None,
    version: bool = True,
    length: int = 10,
    step: int | None = None,
    keys: Sequence[str] = (),
) -> bytes:
    """A `.metadata` document: for each tensor its shape, and the offsets and lengths of its chunks, each `length` bytes,
    `step` bytes after the one before.

    With `keys` the chunks are entries of a file, as in HyperParallel, which has its types as text: "torch.float32" or "Float32".
    """
    kind = name("torch", dtype) if dtype.islower() and "." not in dtype else text(dtype)
    properties = (
        name(METADATA, "TensorProperties") + b")\x81(" + kind
        + name("torch.serialization", "_get_layout") + text("torch.strided") + b"\x85R\x89"
        + name(METADATA, "_MEM_FORMAT_ENCODING") + b"K\x00\x85R\x89tb"
    )  # fmt: skip
    entries, storage, at = b"", b"", offset
    left = iter(keys)
    for key, (shape, boxes) in tensors.items():
        chunks = b"".join(instance(METADATA, "ChunkStorageMetadata", offsets=size(a), sizes=size(n)) for a, n in boxes)
        entries += text(key) + instance(
            METADATA, "TensorStorageMetadata", properties=properties, size=size(shape), chunks=b"](" + chunks + b"e"
        )
        for start, _ in boxes if stored is None else stored[key]:
            storage += instance(METADATA, "MetadataIndex", fqn=text(key), index=b"N", offset=size(start))
            state = {"relative_path": text(file), "offset": number(at), "length": number(length)}
            if keys:
                state["tensor_key"] = text(next(left))
            if transforms:
                state["transform_descriptors"] = b"](" + b"".join(map(text, transforms)) + b"e"
            storage += instance("torch.distributed.checkpoint.filesystem", "_StorageInfo", **state)
            at += length if step is None else step
    state = {"state_dict_metadata": b"}(" + entries + b"u", "planner_data": b"N", "storage_data": b"}(" + storage + b"u"}
    if version:
        state["version"] = text("1.0.0")
    return b"\x80\x04" + instance(METADATA, "Metadata", **state) + b"."


def document(tensors: Mapping[str, Boxes], **options: object) -> tuple[str, bytes]:
    return "m", metadata(tensors, **options)


def tensor(
    shape: Sequence[int] = (2, 3),
    strides: Sequence[int] = (3, 1),
    *,
    first: int = 0,
    key: str = "0",
    count: int = 6,
    storage: str = "FloatStorage",
    rest: bytes = b"",
) -> bytes:
    """The part of a data.pkl that is a tensor."""
    kind = name("torch.storage", storage) if storage == "UntypedStorage" else name("torch", storage)
    persistent = b"(" + text("storage") + kind + text(key) + text("cpu") + number(count) + b"tQ"
    return (
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + persistent + number(first) + sequence(shape) + sequence(strides)
        + b"\x89" + name("collections", "OrderedDict") + b")R" + rest + b"tR"
    )  # fmt: skip


def archive(pickled: bytes, contents: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with this data.pkl and these further entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as found:
        found.writestr("archive/data.pkl", pickled)
        for key, content in ({"data/0": bytes(24)} if contents is None else contents).items():
            found.writestr(f"archive/{key}", content)
    return out.getvalue()


def safetensors(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file with these tensors: name, type, shape and content."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata is not None else {}
    at = 0
    for key, (dtype, shape, content) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + len(content))}
        at += len(content)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(content for _, _, content in tensors.values())
