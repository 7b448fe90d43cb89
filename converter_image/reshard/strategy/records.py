"""The content of a strategy file before it is checked, in both forms."""

from __future__ import annotations

from dataclasses import dataclass

# More than any model has, and few enough not to exhaust the memory of a small pod.
MAX_PARAMETERS = 1 << 20
MAX_OPERATORS = 1 << 20
MAX_NAME_LENGTH = 1 << 16
# Limit for one parameter's layout, or one operator's strategies, as encoded in the file. About a hundred bytes are common.
MAX_RECORD_BYTES = 1 << 16
# Limit for all distinct operator strategies of a file together. Each is an integer of 8 bytes in memory.
MAX_NUMBERS = 1 << 22

UINT32_MAX = (1 << 32) - 1


class MalformedError(Exception):
    """A malformed file. The caller knows the name of the file, and raises a DataError.

    Args:
        what: problem, as a clause without a full stop.
        where: parameter or operator that has the problem.
    """

    def __init__(self, what: str, where: str | None = None) -> None:
        super().__init__(what, where)
        self.what = what
        self.where = where


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        name: name of the operator.
        stage: pipeline stage that it runs in.
        strategies: sharding of each of its inputs.
    """

    name: str
    stage: int
    strategies: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class LayoutRecord:
    """The layout of a parameter. For its fields, see `reshard.layout.Layout`.

    Attributes:
        split_shape: lengths of the slices along dimension 0, if they are listed (`param_split_shape`).
        field: length of field slices. 0 means that there are none.
        tensor_shape: whole shape, with a length for each entry of the tensor map. Empty means that it is not stated.
    """

    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    shard_step: int
    shard_size: int
    split_shape: tuple[int, ...] = ()
    field: int = 0
    tensor_shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """One strategy file.

    Attributes:
        names: names of the parameters, in the order of the file.
        layouts: layout of each, as encoded in the file. Few are distinct, so each is read only once.
        nodes: operators in the file.
    """

    names: tuple[str, ...]
    layouts: tuple[bytes, ...]
    nodes: tuple[Node, ...]


class NodeReader:
    """Reads operators. Equal strategies are one object, and the total size of distinct ones is limited."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[bytes, tuple[int, tuple[tuple[int, ...], ...]]] = {}
        self._numbers = 0

    def known(self, raw: bytes) -> bool:
        """Return whether strategies with this encoding were read before."""
        return raw in self._known

    def learn(self, raw: bytes, stage: int, strategies: tuple[tuple[int, ...], ...]) -> None:
        """Store the strategies with this encoding.

        Raises:
            MalformedError: there are too many strategies.
        """
        self._numbers += sum(map(len, strategies)) + len(strategies)
        if self._numbers > MAX_NUMBERS:
            raise MalformedError(f"the strategies of the operators contain more than {MAX_NUMBERS} numbers")
        self._known[raw] = (stage, strategies)

    def add(self, name: str, raw: bytes) -> None:
        """Add an operator whose strategies are known.

        Raises:
            MalformedError: there are too many operators, or the name is too long.
        """
        if len(self.nodes) == MAX_OPERATORS:
            raise MalformedError(f"the file contains more than {MAX_OPERATORS} operators")
        self.nodes.append(Node(checked_name(name), *self._known[raw]))


def checked_name(name: str) -> str:
    """Return the name unchanged.

    Raises:
        MalformedError: the name is too long.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise MalformedError(f"a parameter name has {len(name)} characters; at most {MAX_NAME_LENGTH} are supported", name[:64])
    return name


def axes_of(entry: int) -> tuple[int, ...]:
    """Return the axes that split a dimension, from a tensor map with one axis per dimension. -1 means no axis."""
    return () if entry == -1 else (entry,)


def without_padding(entries: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes that split a dimension, from a tensor map with a list of axes per dimension. -1 means no axis."""
    return tuple(axis for axis in entries if axis != -1)
