"""Fuzz `.ckpt` files: what protobuf refuses is refused, and the tensors are those that protobuf finds."""

from __future__ import annotations

import numpy as np
import rawfiles
from google.protobuf.message import DecodeError
from inputs import Reader

from reshard.checkpoint import check_crc, read_header
from reshard.checkpoint.dtypes import STRING

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.é": np.zeros((), np.int8), "c": np.zeros((0, 2), np.int64)}
SEEDS = [rawfiles.ckpt(TENSORS), rawfiles.ckpt(TENSORS, crc=True), rawfiles.message("s", [0], "str", bytes(8))]


def read(content: bytes) -> None:
    reader = Reader(content, "fuzz.ckpt")
    found = read_header(reader)
    entries = found.structure.tensors
    got = [(entry.name, b"".join(reader.read(*extent) for extent in entry.extents)) for entry in entries]
    message = rawfiles.Checkpoint()
    try:
        message.ParseFromString(content[: -17 if found.crc is not None else None])
    except DecodeError:
        raise AssertionError("protobuf refuses this file") from None
    expected: dict[str, bytes] = {}
    for value in message.value:
        expected[value.tag] = expected.get(value.tag, b"") + value.tensor.tensor_content
    assert got == list(expected.items()), "other contents"
    dims = {value.tag: tuple(value.tensor.dims) for value in message.value}
    for entry in entries:  # the dims of text state nothing, and [0] is also that of a scalar
        assert entry.shape == dims[entry.name] or entry.dtype == STRING or dims[entry.name] == (0,), "another shape"
    check_crc(reader, found)
