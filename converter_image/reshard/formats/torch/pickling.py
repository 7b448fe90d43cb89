"""Pickles that PyTorch reads, written byte by byte: the description of one tensor, and the metadata of a distributed checkpoint.

Protocol 2 is the oldest that has classes without a constructor, and `torch.load(weights_only=True)` knows its opcodes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, TypeVar

from reshard.checkpoint.dtypes import DTYPES
from reshard.formats.torch.dtypes import STORAGES
from reshard.layout.box import strides

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

_PROTOCOL = b"\x80\x02"
_NONE, _FALSE, _EMPTY_DICT, _EMPTY_LIST, _EMPTY_TUPLE = b"N", b"\x89", b"}", b"]", b")"
_MARK, _TUPLE, _APPENDS, _SETITEMS = b"(", b"t", b"e", b"u"
_TUPLES = (b"\x85", b"\x86", b"\x87")  # of one to three values
_NEWOBJ, _REDUCE, _BUILD, _PERSISTENT, _STOP = b"\x81", b"R", b"b", b"Q", b"."
_BATCH = 1000  # values between marks, as from Python's pickler, because they are on the stack of the reader at the same time

_METADATA = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
_VERSION = "1.0.0"

Shape = tuple[int, ...]
T = TypeVar("T")


def _integer(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + value.to_bytes(1)
    if value < 1 << 16:
        return b"M" + value.to_bytes(2, "little")
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + len(raw).to_bytes(1) + raw


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _integers(values: Shape) -> bytes:
    encoded = b"".join(map(_integer, values))
    if not values:
        return _EMPTY_TUPLE
    return encoded + _TUPLES[len(values) - 1] if len(values) <= len(_TUPLES) else _MARK + encoded + _TUPLE


def tensor_pickle(dtype: str, shape: Shape, nbytes: int) -> bytes:
    """Return `data.pkl` of an archive with one row-major tensor, byte for byte as `torch.save` writes it.

    Args:
        dtype: type of the elements, by its name in `reshard.checkpoint.dtypes`. torch must have it.
        shape: lengths of the tensor.
        nbytes: length of the content in bytes.
    """
    numbers = count()

    def kept(value: bytes) -> bytes:  # Python's pickler numbers all values that it might refer to
        return value + b"q" + next(numbers).to_bytes(1)

    def lengths(values: Shape) -> bytes:
        return kept(_integers(values)) if values else _EMPTY_TUPLE

    found = DTYPES[dtype]
    storage = STORAGES.get(str(found.torch))
    elements = nbytes // found.itemsize if storage else nbytes
    out = _PROTOCOL + kept(_name("torch._utils", "_rebuild_tensor_v2" if storage else "_rebuild_tensor_v3")) + _MARK
    out += _MARK + kept(_text("storage")) + kept(_name("torch", storage) if storage else _name("torch.storage", "UntypedStorage"))
    out += kept(_text("0")) + kept(_text("cpu")) + _integer(elements) + kept(_TUPLE) + _PERSISTENT
    out += _integer(0) + lengths(shape) + lengths(strides(tuple(max(n, 1) for n in shape))) + _FALSE
    out += kept(_name("collections", "OrderedDict")) + kept(_EMPTY_TUPLE + _REDUCE)
    if not storage:
        out += kept(_name("torch", str(found.torch)))
    return out + kept(_TUPLE) + kept(_REDUCE) + _STOP


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of a tensor, or an object, and the range of bytes that holds it.

    Attributes:
        start: index of the shard's first element in the whole tensor. None: an object.
        shape: lengths of the shard.
        path: path of the file.
        offset: first byte.
        length: number of bytes.
    """

    start: Shape | None
    shape: Shape
    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor or an object of a checkpoint.

    Attributes:
        dtype: name of the type in torch. None: an object.
        shape: lengths of the whole tensor.
        keys: keys and positions that lead to the value in nested dicts and lists.
        shards: shards of the tensor, or the object itself.
    """

    dtype: str | None
    shape: Shape
    keys: tuple[str | int, ...]
    shards: Sequence[Shard]


def metadata_pickle(values: Mapping[str, Value], *, nested: bool) -> bytes:
    """Return the `.metadata` of a checkpoint. torch 2.15 reads `TensorProperties` with 5 fields, and earlier versions require 5.

    Args:
        values: content of the checkpoint, by name.
        nested: whether the document lists the keys of each value, from which `dcp_to_torch_save` restores nested dicts.
    """
    made = _Metadata()
    made.write(values, nested=nested)
    return bytes(made.out)


class _Metadata:
    """The document. A value that occurs again is a reference, so that a shard takes about 100 bytes."""

    def __init__(self) -> None:
        self.out = bytearray(_PROTOCOL)
        self._known: dict[Hashable, bytes] = {}  # what repeats a value, by its key
        self._numbers = count()

    def write(self, values: Mapping[str, Value], *, nested: bool) -> None:
        """Append the whole document."""
        self._instance(_METADATA, "Metadata", "state_dict_metadata")
        for name, value in self._batches(_EMPTY_DICT, values.items(), _SETITEMS):
            self._string(name)
            self._value(value)
        self._string("planner_data")
        if nested:
            for name, value in self._batches(_EMPTY_DICT, values.items(), _SETITEMS):
                self._string(name)
                self._keys(value.keys)
        else:
            self.out += _NONE
        self._string("storage_data")
        shards = ((name, n, shard) for name, value in values.items() for n, shard in enumerate(value.shards))
        for name, number, shard in self._batches(_EMPTY_DICT, shards, _SETITEMS):
            self._index(name, number, shard)
            self._place(shard)
        self._string("storage_meta")
        self.out += _NONE
        self._string("version")
        self._string(_VERSION)
        self.out += _SETITEMS + _BUILD + _STOP

    def _value(self, value: Value) -> None:
        if value.dtype is None:
            self._new(_METADATA, "BytesStorageMetadata")
            return
        self._instance(_METADATA, "TensorStorageMetadata", "properties")
        self._new(_METADATA, "TensorProperties")
        self.out += _MARK
        self._global("torch", value.dtype)
        self._call("torch.serialization", "_get_layout", _text("torch.strided"))
        self.out += _FALSE  # requires no gradient
        self._call(_METADATA, "_MEM_FORMAT_ENCODING", _integer(0))  # contiguous
        self.out += _FALSE + _TUPLE + _BUILD  # not in pinned memory
        self._string("size")
        self._size(value.shape)
        self._string("chunks")
        for shard in self._batches(_EMPTY_LIST, value.shards, _APPENDS):
            self._instance(_METADATA, "ChunkStorageMetadata", "offsets")
            self._size(shard.start or ())
            self._string("sizes")
            self._size(shard.shape)
            self.out += _SETITEMS + _BUILD
        self.out += _SETITEMS + _BUILD

    def _keys(self, keys: tuple[str | int, ...]) -> None:
        self.out += _MARK
        for key in keys:
            if isinstance(key, str):
                self._string(key)
            else:
                self.out += _integer(key)
        self.out += _TUPLE

    def _index(self, name: str, number: int, shard: Shard) -> None:
        self._instance(_METADATA, "MetadataIndex", "fqn")
        self._string(name)
        self._string("index")
        if shard.start is None:
            self.out += _NONE
        else:
            self.out += _integer(number)
            self._string("offset")
            self._size(shard.start)
        self.out += _SETITEMS + _BUILD

    def _place(self, shard: Shard) -> None:
        self._instance(_FILES, "_StorageInfo", "relative_path")
        self._string(shard.path)
        self._string("offset")
        self.out += _integer(shard.offset)
        self._string("length")
        self.out += _integer(shard.length) + _SETITEMS + _BUILD

    def _new(self, module: str, name: str) -> None:
        self._global(module, name)
        self.out += _EMPTY_TUPLE + _NEWOBJ

    def _instance(self, module: str, name: str, key: str) -> None:
        """Append an instance and the start of its state, up to its first key. `_SETITEMS + _BUILD` ends it."""
        if self._repeated((module, name, key)):
            return
        self._new(module, name)
        self.out += _EMPTY_DICT + _MARK
        self._string(key)
        opened = _EMPTY_TUPLE + _NEWOBJ + _EMPTY_DICT + _MARK
        self._known[module, name, key] = self._known[module, name] + opened + self._known[key]

    def _call(self, module: str, name: str, argument: bytes) -> None:
        self._global(module, name)
        self.out += argument + _TUPLES[0] + _REDUCE

    def _size(self, lengths: Shape) -> None:
        if not self._repeated(lengths):
            self._call("torch", "Size", _integers(lengths))
            self._keep(lengths)

    def _string(self, value: str) -> None:
        if not self._repeated(value):
            self.out += _text(value)
            self._keep(value)

    def _global(self, module: str, name: str) -> None:
        key = (module, name)
        if not self._repeated(key):
            self.out += _name(module, name)
            self._keep(key)

    def _repeated(self, key: Hashable) -> bool:
        """Append a value again by references, if it has occurred before."""
        references = self._known.get(key)
        if references is not None:
            self.out += references
        return references is not None

    def _keep(self, key: Hashable) -> None:
        """Number the value that was appended last, for references."""
        number = next(self._numbers)
        if number < 1 << 8:
            self.out += b"q" + number.to_bytes(1)
            self._known[key] = b"h" + number.to_bytes(1)
        else:
            self.out += b"r" + struct.pack("<I", number)
            self._known[key] = b"j" + struct.pack("<I", number)

    def _batches(self, empty: bytes, values: Iterable[T], add: bytes) -> Iterator[T]:
        """Append a dict or a list, to which the caller appends the entries of each yielded value."""
        self.out += empty
        waiting = iter(values)
        while batch := list(islice(waiting, _BATCH)):
            self.out += _MARK
            yield from batch
            self.out += add
