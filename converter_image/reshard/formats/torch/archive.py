"""Archives that `torch.save` writes: a ZIP file with a pickle of the structure, and the content of each storage as it is.

Each item of a distributed checkpoint is such an archive too, so all offsets here count from where the archive begins.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.errors import DataError
from reshard.formats.torch.dtypes import BY_STORAGE, REFUSED, torch_type
from reshard.formats.torch.strided import Content
from reshard.formats.torch.unpickle import LIMITS, Global, Limits, Record, load
from reshard.formats.torch.zip import Container, Entry, read_container
from reshard.layout.box import strides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reshard.checkpoint.dtypes import DType
    from reshard.checkpoint.inventory import RangeReader
    from reshard.formats.torch.unpickle import Rule

_MOST_DIMENSIONS = 32
_MOST_VALUES = 1 << 20
_DEEPEST = 64
_LONGEST_NAME = 1 << 16  # characters

_TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_QUANTISED = "torch._utils._rebuild_qtensor"
# Around the call that makes a tensor with attributes or of a subclass. A subclass is refused, because its name is not allowed.
_TYPED = "torch._tensor._rebuild_from_type_v2"
_SUBCLASS = "torch._utils._rebuild_wrapper_subclass"
_MAKERS = frozenset({*_TENSORS, *_PARAMETERS, _QUANTISED, _TYPED, _SUBCLASS})
_NAMESPACE = "argparse.Namespace"
_UNTYPED = "torch.storage.UntypedStorage"
_ARRAYS = ("_reconstruct", "scalar")
# Types that make the missing values of a defaultdict. `set` is one too, and is called as well. Protocol 2 has Python 2's names.
_FACTORIES = ("bool", "bytes", "dict", "float", "int", "list", "long", "str", "tuple", "unicode")
ALLOWED: Mapping[str, Rule] = {
    **dict.fromkeys(_MAKERS, "record"),
    "torch.Tensor": "name",
    "torch._tensor.Tensor": "name",
    **{f"torch.{name}": "name" for name in (*BY_STORAGE, *BY_TORCH_NAME, *REFUSED)},
    "torch.QInt8Storage": "name",
    "torch.QUInt8Storage": "name",
    "torch.QInt32Storage": "name",
    "torch.per_tensor_affine": "name",
    "torch.per_channel_affine": "name",
    _UNTYPED: "name",
    "torch.Size": "argument",
    "torch.device": "argument",
    "torch.serialization._get_layout": "argument",
    "collections.OrderedDict": "pairs",
    # Values that are often saved next to tensors. They are skipped.
    "collections.defaultdict": "dict",
    **{f"{module}.{name}": "name" for module in ("builtins", "__builtin__") for name in _FACTORIES},
    "collections.Counter": "record",
    _NAMESPACE: "record",
    "_codecs.encode": "record",
    "__builtin__.set": "argument",
    "builtins.set": "argument",
    "numpy.ndarray": "record",
    "numpy.dtype": "record",
    **{f"numpy.{core}.multiarray.{name}": "record" for core in ("core", "_core") for name in _ARRAYS},
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as an archive describes it.

    Attributes:
        name: keys and positions that lead to it, joined by dots.
        dtype: its type.
        shape: lengths in elements.
        strides: elements between neighbours along each dimension, none negative. All elements are within the storage.
        storage: key of the storage. Several tensors may share one.
        first: position of the first element in the storage.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: str
    first: int

    @property
    def row_major(self) -> bool:
        """True if the elements are in row-major order without gaps, so that a range of bytes is a range of elements."""
        rows = strides(self.shape)
        return 0 in self.shape or all(
            n == 1 or a == b for n, a, b in zip(self.shape, self.strides, rows, strict=True)
        )  # fmt: skip

    def content(self, reader: RangeReader, archive: Archive) -> Content:
        """Return the location of the elements in the file.

        Raises:
            DataError: the local header of the storage is damaged.
        """
        offset, _ = locate(reader, archive, self.storage)
        itemsize = self.dtype.itemsize
        # The stride of a dimension with one element has no effect, and may be any number.
        steps = (step * itemsize if n > 1 else 0 for n, step in zip(self.shape, self.strides, strict=True))
        strides = None if self.row_major else tuple(steps)
        return Content(offset + self.first * itemsize, prod(self.shape) * itemsize, strides)


@dataclass(frozen=True, slots=True)
class Archive:
    """The content of an archive.

    Attributes:
        container: the ZIP file.
        tensors: the tensors that are needed, in the order of the structure.
        others: the number of values other than tensors.
    """

    container: Container
    tensors: tuple[StoredTensor, ...]
    others: int


def read_archive(
    reader: RangeReader,
    start: int = 0,
    length: int | None = None,
    limits: Limits = LIMITS,
    wanted: Callable[[str], bool] | None = None,
) -> Archive:
    """Read the structure of an archive, by a few small reads that do not touch the content of tensors.

    Args:
        reader: the file.
        start: first byte of the archive in the file.
        length: number of bytes of the archive. None: to the end of the file.
        limits: how much its pickle may hold.
        wanted: whether a tensor of this name is needed. The others are left out, and are not checked. None: all are needed.

    Raises:
        DataError: the archive is damaged, compressed, encrypted or big-endian, or not from `torch.save`; its pickle refers to a
            global that is not allowed; a tensor does not fit into its storage or has an unsupported type.
    """
    length = reader.size - start if length is None else length
    if start < 0 or length < 0 or start + length > reader.size:
        raise DataError(
            "Truncated",
            f"the file has {reader.size} bytes, but the archive should be at bytes {start} to {start + length}",
            where=reader.name,
            fix="the file is damaged; restore it",
        )
    container = read_container(reader, start, length)
    entries = container.entries
    order = container.content(reader, "byteorder", 16) if "byteorder" in entries else b"little"
    if order != b"little":
        raise DataError(
            "BigEndian",
            f"the content has the byte order {order[:16].decode('ascii', 'backslashreplace')!r}",
            where=reader.name,
            fix="load and save it on a little-endian machine",
        )
    if "data.pkl" not in entries or "constants.pkl" in entries:
        raise DataError(
            "NotTorchFile",
            "it is a TorchScript module" if "constants.pkl" in entries else "it is a ZIP file that torch.save did not write",
            where=reader.name,
            fix="save a state_dict with torch.save",
        )
    tree = load(container.content(reader, "data.pkl", limits.nbytes), ALLOWED, reader.name, limits=limits)
    tensors, others = [], 0
    for name, value in _leaves(tree, reader.name):
        described = _described(value) if type(value) is Record else None
        if described is None:
            others += 1
        elif wanted is None or wanted(name):
            tensors.append(_tensor(described, name, entries, reader.name))
    names = [tensor.name for tensor in tensors]
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(
            "DuplicateParameter",
            "two tensors have this name, because a key contains a dot",
            where=f"{reader.name}: tensor {twice}",
            fix="rename the key that contains a dot, or exclude the tensor with --exclude (spec.parameters.exclude)",
        )
    return Archive(container, tuple(tensors), others)


def locate(reader: RangeReader, archive: Archive, storage: str) -> tuple[int, int]:
    """Return the location of a storage's content in the file, as (offset, length).

    Raises:
        DataError: its local header is damaged.
    """
    return archive.container.place(reader, f"data/{storage}")


def _leaves(tree: object, where: str) -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested dicts, lists, tuples and namespaces, each with its keys joined by dots."""
    waiting: list[tuple[str, int, object]] = [("", 0, tree)]
    seen = 0
    while waiting:
        name, depth, value = waiting.pop()
        seen += 1
        inner: list[tuple[str, object]]
        if isinstance(value, dict):
            inner = [(str(key), each) for key, each in value.items()]
        elif type(value) is Record and value.name == _NAMESPACE and type(value.state) is dict:
            inner = [(str(key), each) for key, each in value.state.items()]
        elif isinstance(value, list | tuple):
            inner = [(str(i), each) for i, each in enumerate(value)]
        else:
            yield name, value
            continue
        # Each value gets the name of what contains it, so long names of many values would grow as a product.
        too_long = any(len(name) + len(key) > _LONGEST_NAME for key, _ in inner)
        if too_long or depth == _DEEPEST or seen + len(waiting) + len(inner) > _MOST_VALUES:
            raise DataError(
                "PickleTooLarge",
                f"the structure nests more than {_DEEPEST} levels, has more than {_MOST_VALUES} values, or has names longer than "
                f"{_LONGEST_NAME} characters",
                where=where,
                fix="save only the tensors",
            )
        waiting += [(f"{name}.{key}" if name else key, depth + 1, each) for key, each in reversed(inner)]


def _described(record: Record) -> Record | None:
    """The call that makes a tensor, without those around it; None: the record is another value."""
    for _ in range(_DEEPEST):
        if type(record.args) is not tuple or not record.args:
            break
        first, *rest = record.args
        if record.name in _PARAMETERS and type(first) is Record:
            record = first
        elif record.name == _TYPED and type(first) is Global and len(rest) > 1 and type(rest[1]) is tuple:
            record = Record(first.name, rest[1])
        else:
            break
    return record if record.name in _MAKERS else None


def _tensor(record: Record, name: str, entries: Mapping[str, Entry], where: str) -> StoredTensor:
    """The tensor that a call makes.

    Raises:
        DataError: it is not within its storage, or of a kind that cannot be copied.
    """
    where = f"{where}: tensor {name}" if name else where
    if record.name == _QUANTISED:
        torch_type("qint8", where)
    try:
        return _checked(record, name, entries, where)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "TensorInvalid",
            f"the description of the tensor is damaged ({type(error).__name__})",
            where=where,
            fix="the file is damaged; restore it, or exclude the tensor with --exclude (spec.parameters.exclude)",
        ) from None


def _checked(record: Record, name: str, entries: Mapping[str, Entry], where: str) -> StoredTensor:
    if record.name not in _TENSORS:
        raise TypeError
    storage, first, shape, steps, *rest = record.args
    kind, of, key, _, count = storage.args
    if storage.name or kind != "storage" or type(of) is not Global or type(key) is not str:
        raise TypeError
    _, _, *extra = rest  # requires_grad and hooks
    named = extra.pop(0) if record.name.endswith("v3") else None
    dtype = BY_STORAGE[of.name.removeprefix("torch.")] if named is None else torch_type(named.name.removeprefix("torch."), where)
    if extra and extra[0]:
        if type(extra[0]) is not dict:
            raise TypeError
        raise DataError(
            "UnresolvedTensor",
            f"the tensor is conjugated or negated lazily ({', '.join(map(str, extra[0]))[:100]})",
            where=where,
            fix="save `tensor.resolve_conj().resolve_neg()`, or exclude the tensor with --exclude (spec.parameters.exclude)",
        )
    if len(shape) != len(steps) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (first, count, *shape, *steps)):
        raise ValueError
    nbytes = count * (1 if of.name == _UNTYPED else dtype.itemsize)
    end = first + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1 if prod(shape) else first
    held = entries[f"data/{key}"].size
    if held != nbytes or end * dtype.itemsize > held:
        raise DataError(
            "TensorOutside",
            f"shape {list(shape)} with strides {list(steps)} from element {first} does not fit into its storage of {held} bytes",
            where=where,
            fix="the file is damaged; restore it, or exclude the tensor with --exclude (spec.parameters.exclude)",
        )
    return StoredTensor(name, dtype, shape, steps, key, first)
