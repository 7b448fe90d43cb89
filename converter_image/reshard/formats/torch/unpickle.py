"""A parser of the data in pickles that executes nothing: globals are names on a list, and instances are records."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# How a global is represented: by its name only; calls and instances by records; a call by its argument; a call by a dict of the
# pairs in its argument; a call by an empty dict.
Rule = Literal["name", "record", "argument", "pairs", "dict"]

# What helps if a pickle refers to a global whose name begins like this. The first that fits applies.
_ONLY_TENSORS = "save only tensors in dicts and lists, such as a state dict, or save them as safetensors"
_DISTRIBUTED = "save the state dict with torch.distributed.checkpoint, or save local tensors, such as `tensor.full_tensor()`"
_REMEDIES = {
    **dict.fromkeys(
        (
            *("torch.distributed.tensor.", "torch.distributed._tensor.", "torch.distributed._shard."),
            *("torch.distributed.device_mesh.", "torch.distributed._functional_collectives."),
        ),
        _DISTRIBUTED,
    ),
    "torch.distributed.checkpoint.": "use the folder with `.metadata` and `.distcp` files as the source",
    "torch.nn.": "save `module.state_dict()` instead of the module",
    "torch.optim.": "save the state dicts of optimizers and schedulers instead of the objects",
    "torch._utils._rebuild_sparse": "save `tensor.to_dense()`",
    **dict.fromkeys(("torch._utils._rebuild_nested", "torch.nested."), "save the tensors in the nested tensor"),
    "torch._utils._rebuild_meta_tensor": "save tensors with content instead of tensors on the device meta",
    "torch._utils._rebuild_device_tensor": "save `tensor.cpu()`",
    "torchao.": "save `tensor.dequantize()`",
}

_KEYS = frozenset({str, int, bool, bytes, type(None)})  # hash in constant time, however the document nests
_TEXT = {str}
_LARGEST_KEY = 1 << 60  # integers from 2 ** 61 - 1 on can be chosen to have one hash
_BLOCK = 1 << 16
_MOST_KEYS = 64
_SMALL = tuple(range(1 << 16))  # shared, since two bytes of a document would otherwise make an object of 28


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the content of a pickle. Memory is at most about ten times its length, and 10 MB.

    Attributes:
        nbytes: length in bytes.
        opcodes: number of opcodes.
        depth: open marks, which is how deeply lists and dicts may nest.
        stack: entries of the stack.
        objects: lists, dicts, tuples, records, strings and entries of dicts, as far as they are more than one for each 8 bytes.
    """

    nbytes: int = 1 << 30
    opcodes: int = 1 << 29
    depth: int = 256
    stack: int = 1 << 18
    objects: int = 1 << 17


class Global:
    """A name that a pickle refers to, such as a class. Nothing is imported."""

    __slots__ = ("name", "rule")

    def __init__(self, name: str, rule: Rule) -> None:
        self.name, self.rule = name, rule


class Record:
    """A call or an instance of a global, as data.

    Attributes:
        name: the global, as `module.name`.
        args: the arguments; of a persistent reference to something outside the pickle (`name` is empty) its identity.
        state: what the pickle would set on it; None: nothing.
    """

    __slots__ = ("args", "keys", "name", "state")

    def __init__(self, name: str, args: Any) -> None:  # noqa: ANN401 - any data
        self.name, self.args = name, args
        self.state: Any = None
        self.keys: tuple[int, ...] = ()  # of the memo


LIMITS = Limits()


def load(
    data: bytes,
    allowed: Mapping[str, Rule],
    where: str,
    *,
    limits: Limits = LIMITS,
    finish: Mapping[str, Callable[[Any], object]] | None = None,
) -> Any:  # noqa: ANN401 - any data
    """Return the data that a pickle of protocol 2 to 5 describes: numbers, text, containers, `Global` and `Record`.

    Args:
        data: the pickle. Bytes after its end are ignored.
        allowed: the globals that it may name, as `module.name`.
        where: what it is, for messages.
        limits: how much it may hold.
        finish: for names of records a function of their state. Its result replaces the record, so that not all records are in
            memory at the same time.

    Raises:
        DataError: it is damaged or too large, or names a global or an opcode that is not allowed.
    """
    if len(data) > limits.nbytes:
        raise _too_large(where, f"the pickle has {len(data)} bytes, more than {limits.nbytes}")
    try:
        return _run(data, allowed, where, limits, finish or {})
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error) as error:
        raise DataError(
            "PickleInvalid",
            f"the pickle is damaged, or does not contain the expected data ({type(error).__name__})",
            where=where,
            fix="restore the checkpoint",
        ) from None


def _run(  # noqa: C901, PLR0912, PLR0915 - a step must not cost a call: there are 60 for each shard
    data: bytes, allowed: Mapping[str, Rule], where: str, limits: Limits, finish: Mapping[str, Callable[[Any], object]]
) -> Any:  # noqa: ANN401 - any data
    recalled = _recalled(data)
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    at = count = objects = steps = 0
    most = limits.objects + len(data) // 8
    push, pop = stack.append, stack.pop
    # An operand that is cut off moves `at` past the end, where the next opcode is none.

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def named(module: object, name: object) -> Global:
        full = f"{module}.{name}"
        if type(module) is not str or type(name) is not str:
            raise TypeError
        if (rule := allowed.get(full)) is None:
            remedy = next((text for start, text in _REMEDIES.items() if full.startswith(start)), _ONLY_TENSORS)
            raise _not_allowed(where, f"the pickle refers to {full[:200]}", remedy)
        return Global(full, rule)

    def called(function: object, args: object) -> object:
        if type(function) is not Global or type(args) is not tuple or function.rule == "name":
            raise _not_allowed(where, f"the pickle calls {getattr(function, 'name', 'a value')}")
        if function.rule == "record":
            return Record(function.name, args)
        if function.rule == "argument":
            return args[0] if args else ()
        return _pairs(args[0]) if args and function.rule == "pairs" else {}

    while True:
        if len(stack) > limits.stack or len(memo) > most:
            raise _too_large(where, f"the pickle has more than {limits.stack} values on its stack, or too many in its memo")
        if steps > limits.opcodes:
            raise _too_large(where, f"the pickle has more than {limits.opcodes} opcodes")
        steps += 1 << 12
        for _ in range(1 << 12):
            op = data[at]
            at += 1
            # In three ranges, and in each by their frequency in the metadata of distributed checkpoints.
            if op == 0x94:  # MEMOIZE
                if recalled[count]:
                    memo[count] = value = stack[-1]
                    if type(value) is Record:
                        _add_key(value, count)
                count += 1
            elif op < 0x60:
                if op == 0x4B:  # BININT1
                    push(data[at])
                    at += 1
                elif op == 0x4D:  # BININT2
                    push(_SMALL[data[at] | data[at + 1] << 8])
                    at += 2
                elif op == 0x52:  # REDUCE
                    value = pop()
                    function = stack[-1]
                    if type(function) is Global and function.rule == "argument" and type(value) is tuple and value:
                        stack[-1] = value[0]
                    else:
                        stack[-1] = called(function, value)
                        objects += 1
                elif op == 0x28:  # MARK
                    marks.append(len(stack))
                    if len(marks) > limits.depth:
                        raise _too_large(where, f"the pickle nests more than {limits.depth} levels")
                elif op == 0x29:  # EMPTY_TUPLE
                    push(())
                elif op == 0x4A:  # BININT
                    push(int.from_bytes(data[at : at + 4], "little", signed=True))
                    at += 4
                elif op == 0x5D:  # EMPTY_LIST
                    push([])
                    objects += 1
                elif op == 0x4E:  # NONE
                    push(None)
                elif op == 0x47:  # BINFLOAT
                    push(struct.unpack(">d", data[at : at + 8])[0])
                    at += 8
                elif op == 0x58:  # BINUNICODE
                    length = int.from_bytes(data[at : at + 4], "little")
                    push(data[at + 4 : at + 4 + length].decode())
                    at += 4 + length
                    objects += 1
                elif op == 0x51:  # BINPERSID
                    stack[-1] = Record("", stack[-1])
                    objects += 1
                elif op == 0x43:  # SHORT_BINBYTES
                    push(data[at + 1 : at + 1 + data[at]])
                    at += 1 + data[at]
                    objects += 1
                elif op == 0x42:  # BINBYTES
                    length = int.from_bytes(data[at : at + 4], "little")
                    push(data[at + 4 : at + 4 + length])
                    at += 4 + length
                    objects += 1
                elif op == 0x30:  # POP
                    pop()
                elif op == 0x31:  # POP_MARK
                    since_mark()
                elif op == 0x2E:  # STOP
                    return pop()
                else:
                    raise _not_allowed(where, f"the pickle has the opcode {op:#04x}")
            elif op < 0x80:
                if op == 0x68:  # BINGET
                    push(memo[data[at]])
                    at += 1
                elif op == 0x6A:  # LONG_BINGET
                    push(memo[data[at] | data[at + 1] << 8 | data[at + 2] << 16 | data[at + 3] << 24])
                    at += 4
                elif op == 0x7D:  # EMPTY_DICT
                    push({})
                    objects += 1
                elif op == 0x75:  # SETITEMS
                    start = marks.pop()
                    items = stack[start:]
                    del stack[start:]
                    value = stack[-1]
                    objects -= len(value)
                    _set(value, items)
                    objects += len(value)
                    if objects > most:
                        raise _too_large(where, "the pickle creates too many objects for its length")
                elif op == 0x62:  # BUILD
                    value = pop()
                    record = stack[-1]
                    if type(record) is not Record:
                        if type(record) is not dict:  # one with attributes, which no one needs
                            raise TypeError
                    elif (made := finish.get(record.name)) is None:
                        record.state = value
                    else:
                        stack[-1] = finished = made(value)
                        for key in record.keys:
                            memo[key] = finished
                        objects -= 1
                        if type(value) is dict:
                            objects -= 1 + len(value)
                            value.clear()
                elif op == 0x71:  # BINPUT
                    if recalled[data[at]]:
                        _remember(memo, data[at], stack[-1])
                    at += 1
                elif op == 0x72:  # LONG_BINPUT
                    key = int.from_bytes(data[at : at + 4], "little")
                    if key < len(recalled) and recalled[key]:
                        _remember(memo, key, stack[-1])
                    at += 4
                elif op == 0x74:  # TUPLE
                    value = tuple(since_mark())
                    push(value)
                    objects += 1
                elif op == 0x61:  # APPEND
                    value = pop()
                    stack[-1].append(value)
                elif op == 0x65:  # APPENDS
                    items = since_mark()
                    stack[-1].extend(items)
                elif op == 0x73:  # SETITEM
                    value, key = pop(), pop()
                    _set(stack[-1], [key, value])
                    objects += 1
                elif op == 0x63:  # GLOBAL
                    end = data.index(b"\n", at)
                    last = data.index(b"\n", end + 1)
                    push(named(data[at:end].decode(), data[end + 1 : last].decode()))
                    at = last + 1
                    objects += 1
                else:
                    raise _not_allowed(where, f"the pickle has the opcode {op:#04x}")
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
                objects += 1
            elif op == 0x86:  # TUPLE2
                value = pop()
                stack[-1] = (stack[-1], value)
                objects += 1
            elif op == 0x81:  # NEWOBJ
                value = pop()
                function = stack[-1]
                if type(function) is not Global or function.rule != "record":
                    raise _not_allowed(where, f"the pickle creates an instance of {getattr(function, 'name', 'a value')}")
                stack[-1] = Record(function.name, value)
                objects += 1
            elif op == 0x8C:  # SHORT_BINUNICODE
                push(data[at + 1 : at + 1 + data[at]].decode())
                at += 1 + data[at]
                objects += 1
            elif op == 0x8A:  # LONG1
                push(int.from_bytes(data[at + 1 : at + 1 + data[at]], "little", signed=True))
                at += 1 + data[at]
            elif op == 0x87:  # TUPLE3
                last, value = pop(), pop()
                stack[-1] = (stack[-1], value, last)
                objects += 1
            elif op == 0x88:  # NEWTRUE
                push(True)  # noqa: FBT003 - a value
            elif op == 0x89:  # NEWFALSE
                push(False)  # noqa: FBT003 - a value
            elif op == 0x93:  # STACK_GLOBAL
                value = pop()
                stack[-1] = named(stack[-1], value)
                objects += 1
            elif op in {0x8E, 0x8D}:  # BINBYTES8, BINUNICODE8
                length = int.from_bytes(data[at : at + 8], "little")
                value = data[at + 8 : at + 8 + length]
                push(value.decode() if op == 0x8D else value)
                at += 8 + length
                objects += 1
            elif op == 0x80:  # PROTO
                if data[at] > 5:
                    raise _not_allowed(where, f"the pickle has protocol {data[at]}")
                at += 1
            elif op == 0x95:  # FRAME
                at += 8
            else:
                raise _not_allowed(where, f"the pickle has the opcode {op:#04x}")
        if objects > most:
            raise _too_large(where, "the pickle creates too many objects for its length")


def _remember(memo: dict[int, Any], key: int, value: Any) -> None:  # noqa: ANN401 - any data
    memo[key] = value
    if type(value) is Record:
        _add_key(value, key)


def _add_key(record: Record, key: int) -> None:
    """Add a key of the memo to a record. Pickles that are not hostile give a record one key."""
    if len(record.keys) >= _MOST_KEYS:
        raise TypeError
    record.keys += (key,)


def _recalled(data: bytes) -> bytearray:
    """For each key of the memo, whether the pickle may ask for it again: the others are not kept.

    Bytes are looked at without a regard to what they are, so a few keys too many are found, and none too few.
    """
    found = bytearray(max(len(data), 256) + 1)
    flags = np.frombuffer(found, np.uint8)
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data[start : start + _BLOCK + 4], np.uint8)
        flags[block[np.flatnonzero(block[:-1] == 0x68) + 1]] = 1  # BINGET
        at = np.flatnonzero(block[:-4] == 0x6A)  # LONG_BINGET
        keys = block[at + 4].astype(np.uint32)
        for i in (3, 2, 1):
            keys = (keys << 8 | block[at + i]).astype(np.uint32)
        flags[keys[keys < len(found)]] = 1
    return found


def _set(target: object, items: list[Any]) -> None:
    """Add keys and values, one after the other, to a dict."""
    if type(target) is not dict or len(items) % 2:
        raise TypeError
    keys = items[::2]
    kinds = set(map(type, keys))
    if kinds == _TEXT:  # nearly always
        target.update(zip(keys, items[1::2], strict=True))
        return
    if not kinds <= _KEYS or any(type(k) is int and not -_LARGEST_KEY < k < _LARGEST_KEY for k in keys):
        raise TypeError
    target.update(zip(keys, items[1::2], strict=True))


def _pairs(items: object) -> dict[Any, Any]:
    if type(items) is dict:
        return items
    if type(items) is not list or any(type(item) not in {list, tuple} or len(item) != 2 for item in items):
        raise TypeError
    found: dict[Any, Any] = {}
    _set(found, [x for item in items for x in item])
    return found


def _too_large(where: str, what: str) -> DataError:
    return DataError("PickleTooLarge", what, where=where, fix="check the origin of the file")


def _not_allowed(where: str, what: str, fix: str = _ONLY_TENSORS) -> DataError:
    return DataError("PickleNotAllowed", f"{what}, which is not supported; nothing was executed", where=where, fix=fix)
