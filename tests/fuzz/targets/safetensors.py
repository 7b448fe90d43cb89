"""Fuzz safetensors headers: what the library refuses is refused, and both readers of headers find the tensors that it finds."""

from __future__ import annotations

import numpy as np
import rawfiles
import safetensors as library
from inputs import Reader, outcome

from reshard.checkpoint import read_header
from reshard.checkpoint import safetensors as ours
from reshard.checkpoint.dtypes import DTYPES, INT4, STRING

FILE = rawfiles.safetensors({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.é": np.zeros((), np.int8)}, {"format": "pt"})
SEEDS = (FILE, rawfiles.safetensors({"step": np.ones((3,), np.int64), "empty": np.zeros((0, 2), np.uint8)}))


def tensors(content: bytes) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Return the shape and the bytes of each tensor, as the library reads them."""
    return {name: (tuple(found["shape"]), bytes(found["data"])) for name, found in library.deserialize(content)}


def read(content: bytes) -> None:
    compare(content)
    reader = Reader(content, "fuzz.safetensors")
    found = read_header(reader)
    expected = tensors(content)
    got = {e.name: (e.shape, b"".join(reader.read(*extent) for extent in e.extents)) for e in found.structure.tensors}
    assert got.keys() == expected.keys(), "other names"
    for entry in found.structure.tensors:
        if entry.dtype not in (STRING, INT4) and DTYPES[entry.dtype].values == 1:  # others count other elements than the library
            assert got[entry.name] == expected[entry.name], entry


def compare(content: bytes) -> None:
    """Compare the quick reader of headers with the one that reads any."""
    header = content[8:]
    try:
        metadata, found = ours._usual(header)
        quick = list(found)
    except ours.OtherFormError:
        return
    if len({name for name, _ in quick}) == len(quick):  # the other reader refuses names that occur twice
        assert outcome(lambda: ours._any(Reader(content), header)) == (metadata, quick), "the quick reader accepts something else"
