"""The content of a strategy file before it is checked, for both forms."""

from __future__ import annotations

from dataclasses import dataclass

# More than any model has, and fewer than would exhaust the memory of a small pod.
MAX_PARAMETERS = 1 << 20
MAX_OPERATORS = 1 << 20
MAX_NAME_LENGTH = 1 << 16
# Of one parameter's layout, or one operator's strategies, as they stand in the file. Common are a hundred bytes.
MAX_RECORD_BYTES = 1 << 16
# Of all different operator strategies of a file together; each is a number of 8 bytes in memory.
MAX_NUMBERS = 1 << 22

UINT32_MAX = (1 << 32) - 1


class MalformedError(Exception):
    """A malformed file. The caller knows its name and raises a DataError.

    Args:
        what: the problem, as a clause without a final full stop.
        where: the parameter or operator that has the problem.
    """

    def __init__(self, what: str, where: str | None = None) -> None:
        super().__init__(what, where)
        self.what = what
        self.where = where


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        name: the name of the operator.
        stage: the pipeline stage that it runs in.
        strategies: the sharding of each of its inputs.
    """

    name: str
    stage: int
    strategies: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class LayoutRecord:
    """A parameter's layout; for its fields see `reshard.layout.Layout`.

    Attributes:
        split_shape: lengths of the slices of dimension 0, if they are listed (`param_split_shape`).
        field: length of field slices; 0: none.
        tensor_shape: the whole shape, with a length for each entry of the tensor map; empty: not stated.
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
    """One file.

    Attributes:
        parameters: names, each with its layout as it stands in the file. Few of these differ, so each is read once only.
        nodes: operators.
    """

    parameters: tuple[tuple[str, bytes], ...]
    nodes: tuple[Node, ...]


class NodeReader:
    """Makes operators; equal strategies are one object, and all different ones together have a bound."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[bytes, tuple[int, tuple[tuple[int, ...], ...]]] = {}
        self._numbers = 0

    def known(self, raw: bytes) -> bool:
        """Whether strategies that stand so in the file have been read before."""
        return raw in self._known

    def learn(self, raw: bytes, stage: int, strategies: tuple[tuple[int, ...], ...]) -> None:
        """Remember what stands so in the file.

        Raises:
            MalformedError: there are too many.
        """
        self._numbers += sum(map(len, strategies)) + len(strategies)
        if self._numbers > MAX_NUMBERS:
            raise MalformedError(f"its operators' strategies are more than {MAX_NUMBERS} numbers")
        self._known[raw] = (stage, strategies)

    def add(self, name: str, raw: bytes) -> None:
        """An operator whose strategies are known.

        Raises:
            MalformedError: there are too many, or its name is too long.
        """
        if len(self.nodes) == MAX_OPERATORS:
            raise MalformedError(f"it names more than {MAX_OPERATORS} operators")
        self.nodes.append(Node(checked_name(name), *self._known[raw]))


def checked_name(name: str) -> str:
    """The same name.

    Raises:
        MalformedError: it is too long.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise MalformedError(f"a name in it has {len(name)} characters", name[:64])
    return name


def axes_of(entry: int) -> tuple[int, ...]:
    """The axes that cut a dimension, from a tensor map that names one for each: -1 is none."""
    return () if entry == -1 else (entry,)


def without_padding(entries: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that cut a dimension, from a tensor map that lists them for each: -1 is none."""
    return tuple(axis for axis in entries if axis != -1)
