"""Metadata of distributed checkpoints of PyTorch (DCP), Megatron-core and HyperParallel: which shard is in which file.

Each `.metadata` names every shard twice, as a chunk of its tensor and as a range of bytes in a file. Both are read into packed
integers, since an object for each would take ten times the room of the document, and are matched by name and offset.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from reshard.checkpoint.dtypes import BY_TORCH_NAME, DTYPES
from reshard.errors import DataError
from reshard.formats.torch.dtypes import REFUSED, torch_type
from reshard.formats.torch.unpickle import LIMITS, Global, Limits, Record, load
from reshard.model import Checkpoint, Divisions, ObjectMeta, Place, Shards, TensorMeta, gather_shards
from reshard.model.tiling import number_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from reshard.formats.torch.unpickle import Rule
    from reshard.model.tiling import Numbers, Tiling

_MOST_DIMENSIONS = 32
_OBJECT = -1  # in place of the number of dimensions of a tensor
_PATH = re.compile(r"(?![\s\S]*(?:^|/)\.{0,2}(?:/|$))[^\x00]+")

_METADATA = "torch.distributed.checkpoint.metadata."
_PLANNER = "torch.distributed.checkpoint.planner."
_FILES = "torch.distributed.checkpoint.filesystem."
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch."
_HYPER_PARALLEL = ("hyper_parallel.core.checkpoint.", "hyper_parallel.core.distributed_checkpoint.")  # before and since a rename
_RECORDS = (
    *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
    *("MetadataIndex", "StorageMeta"),
)
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
ALLOWED: Mapping[str, Rule] = {
    **{f"{_METADATA}{name}": "record" for name in _RECORDS},
    **{f"{package}metadata.{name}": "record" for package in _HYPER_PARALLEL for name in _RECORDS},
    **{f"{package}storage.StorageInfo": "record" for package in _HYPER_PARALLEL},
    f"{_METADATA}_MEM_FORMAT_ENCODING": "argument",
    f"{_FILES}_StorageInfo": "record",
    f"{_FILES}_StoragePrefix": "record",
    # Megatron-core keeps the plans of all ranks in an attribute of the metadata, up to 0.15 of classes of its own.
    **{f"{_PLANNER}{name}": "record" for name in ("SavePlan", "WriteItem", "TensorWriteData")},
    f"{_PLANNER}WriteItemType": "argument",
    f"{_MEGATRON}MCoreMetadata": "record",
    f"{_MEGATRON}MCoreSavePlan": "record",
    "torch.Size": "argument",
    "torch.device": "argument",
    "torch.serialization._get_layout": "argument",
    "collections.OrderedDict": "pairs",
    "builtins.set": "argument",
    **{f"{module}.{name}": "argument" for module in ("pathlib", "pathlib._local") for name in _PATHS},
    **{f"torch.{name}": "name" for name in (*BY_TORCH_NAME, *REFUSED)},
}


@dataclass(slots=True)
class _Document:
    """Packed integers from one document.

    Attributes:
        where: the document, for messages.
        names: numbers of the names of tensors and objects.
        files: numbers of the paths of files.
        chunks: for each chunk its number of dimensions, the offsets, the lengths.
        indexes: for each index the number of its name, its number of dimensions (-1: an object), the offsets.
        infos: for each range of bytes the number of its file, the first byte, the number of bytes. If that is -1, the number of
            the entry of the file instead of the first byte.
        entries: numbers of the names of entries of files. None: files have none.
    """

    where: str
    names: dict[str, int]
    files: dict[str, int]
    entries: dict[str, int] | None
    chunks: array[int] = field(default_factory=lambda: array("q"))
    indexes: array[int] = field(default_factory=lambda: array("q"))
    infos: array[int] = field(default_factory=lambda: array("q"))

    def chunk(self, state: Any) -> int:  # noqa: ANN401 - any data
        """Keep a ChunkStorageMetadata, and return where."""
        at, offsets, lengths = len(self.chunks), state["offsets"], state["sizes"]
        if type(offsets) is not tuple or type(lengths) is not tuple or len(offsets) != len(lengths):
            raise TypeError
        self.chunks.append(_dimensions(offsets))
        self.chunks.extend(offsets)
        self.chunks.extend(lengths)
        return at

    def index(self, state: Any) -> int:  # noqa: ANN401 - any data
        """Keep a MetadataIndex, and return where."""
        at, offsets, name = len(self.indexes), state.get("offset"), state["fqn"]
        if type(name) is not str:
            raise TypeError
        self.indexes.append(self.names.setdefault(name, len(self.names)))
        if offsets is None:
            self.indexes.append(_OBJECT)
        else:
            self.indexes.append(_dimensions(offsets))
            self.indexes.extend(offsets)
        return at

    def info(self, state: Any) -> int:  # noqa: ANN401 - any data
        """Keep a _StorageInfo, and return where."""
        at, path = len(self.infos), state["relative_path"]
        if state.get("transform_descriptors"):
            raise DataError(
                "TransformNotSupported",
                "storage extensions, such as compression, prevent ranged reads",
                where=self.where,
                fix="save the checkpoint without storage extensions",
            )
        if type(path) is not str or (path not in self.files and not _PATH.fullmatch(path)):
            raise DataError(
                "PathOutside",
                f"{path!r} is not a path of a file in the checkpoint",
                where=self.where,
                fix="the metadata is damaged or malicious; check the origin of the checkpoint",
            )
        self.infos.append(self.files.setdefault(path, len(self.files)))
        if state["length"] == -1 and self.entries is not None:
            entry = state.get("tensor_key") or ""
            if type(entry) is not str:
                raise TypeError
            self.infos.append(self.entries.setdefault(entry, len(self.entries)))
        else:
            self.infos.append(state["offset"])
        self.infos.append(state["length"])
        return at

    @property
    def finish(self) -> dict[str, Callable[[Any], object]]:
        """Functions that pack the records of shards, by the names of the records."""
        packages = (_METADATA, *(f"{package}metadata." for package in _HYPER_PARALLEL))
        return {
            **{f"{package}ChunkStorageMetadata": self.chunk for package in packages},
            **{f"{package}MetadataIndex": self.index for package in packages},
            **{f"{package}storage.StorageInfo": self.info for package in _HYPER_PARALLEL},
            f"{_FILES}_StorageInfo": self.info,
        }


def _dimensions(offsets: object) -> int:
    if type(offsets) is not tuple or len(offsets) > _MOST_DIMENSIONS:
        raise TypeError
    return len(offsets)


@dataclass(slots=True)
class _Found:
    """Merged content of all documents.

    Attributes:
        names: numbers of the names of tensors and objects.
        files: numbers of the paths of files.
        tensors: type and shape of each tensor, by the number of its name, in the order of the documents.
        rows: for each number of dimensions the shards of all tensors that have as many: the number of the tensor's name, offsets,
            lengths, and file, first byte, number of bytes.
        objects: places of each value other than a tensor, by the number of its name.
        version: the version that the documents state.
        entries: numbers of the names of entries of files, see `_Document`.
        keys: see `Checkpoint.keys`.
        unwanted: numbers of the names of tensors and objects that are left out.
    """

    names: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    tensors: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    rows: dict[int, list[Numbers]] = field(default_factory=dict)
    objects: dict[int, list[Place]] = field(default_factory=dict)
    version: str | None = None
    entries: dict[str, int] | None = None
    keys: dict[str, tuple[str | int, ...]] = field(default_factory=dict)
    unwanted: set[int] = field(default_factory=set)


class _Readable(Protocol):
    """A folder of a format, or a store."""

    @property
    def url(self) -> str:
        """The folder, for messages."""

    def read(self, name: str, most: int, /) -> bytes:
        """Return the content of a file of at most `most` bytes."""


def read_documents(folder: _Readable, names: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return the documents of a checkpoint as `read_metadata` requires them."""
    return [(f"{folder.url}/{name}", folder.read(name, LIMITS.nbytes)) for name in names]


def read_metadata(
    documents: Sequence[tuple[str, bytes]],
    limits: Limits = LIMITS,
    entries: dict[str, int] | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> Checkpoint:
    """Read the metadata of a distributed checkpoint.

    Args:
        documents: name and content of `.metadata`, or of each rank's `__<rank>.metadata`, see `names.metadata_files`.
        limits: how much a document may hold.
        entries: numbers of the names of entries of files, to which this function adds. A place with the length -1 has such a
            number as its offset; the entry without a name is that of the tensor's name. None: each place is a range of bytes.
        wanted: whether a tensor or object of this name is needed. The others are left out, and their types and shards are not
            checked. None: all are needed.

    Raises:
        DataError: a document is damaged or too large, refers to a global that is not allowed, or contradicts itself or another
            document; the shards of a tensor do not cover it; a type or an extension of the writer is not supported.
    """
    found = _Found(entries=entries)
    for where, data in documents:
        _read_document(found, where, data, limits, wanted)
    return Checkpoint(tuple(found.files), tuple(_tensors(found)), tuple(_objects(found)), found.version, keys=found.keys)


def _read_document(found: _Found, where: str, data: bytes, limits: Limits, wanted: Callable[[str], bool] | None) -> None:
    document = _Document(where, found.names, found.files, found.entries)
    root = load(data, ALLOWED, where, limits=limits, finish=document.finish)
    try:
        state = _state(root, "Metadata", "MCoreMetadata")
        version = state.get("version")
        found.version = found.version or (version if type(version) is str else None)
        chunks = _read_entries(found, document, state["state_dict_metadata"], wanted)
        storage = state["storage_data"]
        keys = np.fromiter(storage.keys(), np.int64, len(storage))
        values = np.fromiter(storage.values(), np.int64, len(storage))
        _match(found, document, chunks, (keys, values))
        found.keys |= _nested_keys(state.get("planner_data"))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            "MetadataInvalid",
            f"the document is damaged, or not the metadata of a distributed checkpoint ({type(error).__name__})",
            where=where,
            fix="restore the checkpoint",
        ) from None


def _nested_keys(paths: object) -> dict[str, tuple[str | int, ...]]:
    """Return the usable entries of `planner_data`, which torch needs for nothing but the nesting of values."""
    found = {}
    for name, path in paths.items() if type(paths) is dict else ():
        usable = type(path) is tuple and all(type(key) is str or (type(key) is int and 0 <= key < 1 << 31) for key in path)
        if type(name) is str and usable and path not in {(), (name,)}:
            found[name] = path
    return found


def _state(record: Any, *names: str) -> Any:  # noqa: ANN401 - any data
    """The state of a record of a class with one of these names."""
    if type(record) is not Record or record.name.rpartition(".")[2] not in names:
        raise TypeError
    return record.state


def _read_entries(
    found: _Found, document: _Document, entries: dict[str, Any], wanted: Callable[[str], bool] | None
) -> dict[int, Numbers]:
    """Note tensors and objects; return for each number of dimensions the chunks: number of the name, offsets, lengths."""
    chunks = np.frombuffer(document.chunks, np.int64) if document.chunks else np.zeros(0, np.int64)
    by_dimensions: dict[int, list[tuple[int, Numbers]]] = {}
    for name, entry in entries.items():
        if type(name) is not str:
            raise TypeError
        number = found.names.setdefault(name, len(found.names))
        if wanted is not None and not wanted(name):
            found.unwanted.add(number)
            continue
        where = f"{document.where}: tensor {name}"
        is_object = entry.name.endswith(".BytesStorageMetadata")
        if number in (found.tensors if is_object else found.objects):
            raise DataError(
                "RanksDisagree",
                "it is a tensor in the metadata of one rank, and another value in that of another rank",
                where=where,
                fix="exclude it with --exclude (spec.parameters.exclude), or save it as a tensor on all ranks",
            )
        if is_object:
            found.objects.setdefault(number, [])
            continue
        state = _state(entry, "TensorStorageMetadata")
        shape = state["size"]
        dimensions = _dimensions(shape)
        if any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
            raise ValueError
        properties = _state(state["properties"], "TensorProperties")
        dtype = properties[0] if type(properties) is tuple else properties["dtype"]
        described = (_type(dtype, where), shape)
        if found.tensors.setdefault(number, described) != described:
            raise DataError(
                "RanksDisagree",
                f"this metadata describes {_said(described)}, and that of another rank {_said(found.tensors[number])}",
                where=where,
                fix="the files belong to different checkpoints; restore the files of one",
            )
        places = np.frombuffer(array("q", [*state["chunks"], 0]), np.int64)[:-1]
        by_dimensions.setdefault(dimensions, []).append((number, places))
    return {dimensions: _chunks(chunks, dimensions, of_tensors) for dimensions, of_tensors in by_dimensions.items()}


def _type(dtype: object, where: str) -> str:
    """The type that torch names. HyperParallel has its name as text, or that of MindSpore."""
    if not isinstance(dtype, Global | str):
        raise TypeError
    name = dtype.name if isinstance(dtype, Global) else dtype
    return name if name in DTYPES else torch_type(name.removeprefix("torch."), where).name


def _chunks(chunks: Numbers, dimensions: int, of_tensors: list[tuple[int, Numbers]]) -> Numbers:
    """The chunks of tensors that have as many dimensions, one a row: number of the name, offsets, lengths."""
    at = np.concatenate([places for _, places in of_tensors])
    numbers = np.repeat([number for number, _ in of_tensors], [len(places) for _, places in of_tensors])
    if (chunks[at] != dimensions).any():
        raise ValueError
    rows = chunks[at[:, None] + np.arange(1, 2 * dimensions + 1)]
    return np.hstack([numbers[:, None], rows])


def _said(described: tuple[str, tuple[int, ...]]) -> str:
    return f"{described[0]}{list(described[1])}"


def _match(found: _Found, document: _Document, wanted: dict[int, Numbers], storage: tuple[Numbers, Numbers]) -> None:
    """Find the place of each chunk by its name and offsets, which is how torch finds it."""
    indexes = np.frombuffer(document.indexes, np.int64) if document.indexes else np.zeros(0, np.int64)
    infos = np.frombuffer(document.infos, np.int64) if document.infos else np.zeros(0, np.int64)
    keys, values = storage
    if found.unwanted:
        kept = ~np.isin(indexes[keys], list(found.unwanted))
        keys, values = keys[kept], values[kept]
    places = infos[values[:, None] + np.arange(3)] if len(values) else np.zeros((0, 3), np.int64)
    if (
        (places[:, :2] < 0).any()
        or (places[:, 2] < (0 if found.entries is None else -1)).any()
        or (places[:, 1] > (1 << 62) - places[:, 2]).any()
        or (places[:, 0] >= len(found.files)).any()
    ):
        raise ValueError
    dimensions = indexes[keys + 1]
    # HyperParallel gives an object the offset of a scalar.
    is_object = (dimensions == _OBJECT) | np.isin(indexes[keys], list(found.objects))
    for i in np.flatnonzero(is_object).tolist():
        place = Place(*places[i].tolist())
        if place.length < 0:
            raise ValueError
        found.objects[int(indexes[keys[i]])].append(place)
    for count, chunks in wanted.items():
        of_count = np.flatnonzero((dimensions == count) & ~is_object)
        at = keys[of_count]
        stored = np.hstack([indexes[at][:, None], indexes[at[:, None] + 2 + np.arange(count)]])
        names = chunks[:, : count + 1]
        # One order for both: the rows of the metadata, then of the storage, numbered by their distinct values.
        distinct, numbers = number_rows(np.concatenate([names, stored]))
        place_of = np.full(len(distinct), -1, np.int64)
        place_of[numbers[len(names) :]] = of_count
        at = place_of[numbers[: len(names)]]
        if (at < 0).any():
            row = chunks[int((at < 0).argmax())].tolist()
            name = list(found.names)[row[0]]
            raise DataError(
                "ShardMissing",
                f"the shard at {row[1 : count + 1]} has no file",
                where=f"{document.where}: tensor {name}",
                fix="restore the checkpoint's metadata, or exclude the tensor with --exclude (spec.parameters.exclude)",
            )
        found.rows.setdefault(count, []).append(np.hstack([chunks, places[at]]))


def _tensors(found: _Found) -> Iterator[TensorMeta]:
    """The tensors in the order of the documents; those that are cut alike share their tiles."""
    names = list(found.names)
    rows = {}
    for count, parts in found.rows.items():
        together = np.concatenate(parts)
        rows[count] = together[np.argsort(together[:, 0], kind="stable")]
    bounds = {count: _bounds(table[:, 0], len(names)) for count, table in rows.items()}
    divisions = Divisions()
    for number, (dtype, shape) in found.tensors.items():
        count, name = len(shape), names[number]
        low, high = bounds[count][number : number + 2]
        table = rows[count][low:high]
        tiling, tiles = divisions.divide(shape, table[:, 1 : 1 + 2 * count], name)
        yield TensorMeta(name, dtype, shape, _shards(tiling, tiles, table[:, 1 + 2 * count :], name))


def _bounds(numbers: Numbers, count: int) -> list[int]:
    found: list[int] = np.searchsorted(numbers, np.arange(count + 1)).tolist()
    return found


def _shards(tiling: Tiling, tiles: Numbers, places: Numbers, name: str) -> Shards:
    files, offsets, lengths = (np.ascontiguousarray(column) for column in places.T)
    return gather_shards(tiling, tiles, (files, offsets, lengths), name)


def _objects(found: _Found) -> Iterator[ObjectMeta]:
    names = list(found.names)
    for number, places in found.objects.items():
        if not places:
            raise DataError(
                "ShardMissing",
                "the metadata lists no file for it",
                where=f"object {names[number]}",
                fix="restore the checkpoint's metadata, or exclude the object with --exclude (spec.parameters.exclude)",
            )
        yield ObjectMeta(names[number], tuple(places))
