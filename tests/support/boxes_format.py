"""A format for tests: `boxes.json` locates each box of each tensor in files of raw bytes. Also random divisions of tensors."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from reshard.layout.box import Box
from reshard.model import Checkpoint, TensorMeta, divide, gather_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from reshard.formats.protocol import Folder
    from reshard.model.tiling import Numbers

INDEX = "boxes.json"
SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


class RawBoxes:
    """The format, as another package would add it."""

    name = "raw-boxes"
    one_file = False

    def detect(self, names: Sequence[str]) -> bool:
        return INDEX in names

    def read(self, folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:  # noqa: ARG002 - the content is small
        index = json.loads(folder.read(INDEX, 1 << 20))
        tensors = []
        for name, (dtype, shape, shards) in index["tensors"].items():
            rows = np.array([[*start, *lengths, *place] for start, lengths, place in shards], np.int64).reshape(len(shards), -1)
            count = len(shape)
            tiling, tiles = divide(tuple(shape), rows[:, :count], rows[:, count : 2 * count], name)
            places = (rows[:, -3], rows[:, -2], rows[:, -1])
            tensors.append(TensorMeta(name, dtype, tuple(shape), gather_shards(tiling, tiles, places, name)))
        return Checkpoint(tuple(index["files"]), tuple(tensors), documents=(INDEX,))


def write(folder: Path, tensors: Mapping[str, tuple[str, np.ndarray[Any, Any], Sequence[Box]]], files: int = 2) -> None:
    """Write tensors, each as type, content and boxes, with a gap before each box, over several files in turn.

    In the files, the tensors are in another order than in the index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = [bytearray() for _ in range(files)]
    index: dict[str, Any] = {"files": [f"boxes{i}.bin" for i in range(files)], "tensors": dict.fromkeys(tensors)}
    turn = 0
    for name, (dtype, whole, boxes) in sorted(tensors.items(), key=lambda item: zlib.crc32(item[0].encode())):
        shards = []
        for box in boxes:
            content = np.ascontiguousarray(whole[box.slices()]).tobytes()
            file = contents[turn % files]
            file += b"\xee" * (turn % 5)
            shards.append([box.start, box.shape, [turn % files, len(file), len(content)]])
            file += content
            turn += 1
        index["tensors"][name] = [dtype, whole.shape, shards]
    (folder / INDEX).write_text(json.dumps(index))
    for path, content in zip(index["files"], contents, strict=True):
        (folder / path).write_bytes(content)


@st.composite
def tilings(draw: Callable[..., int], shapes: st.SearchStrategy[tuple[int, ...]] = SHAPES) -> tuple[tuple[int, ...], list[Box]]:
    """A tensor cut again and again at random places."""
    shape = draw(shapes)
    boxes = [Box.whole(shape)]
    for _ in range(draw(st.integers(0, 12)) if shape else 0):
        box = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, box.shape[axis]))
        for a, n in ((box.start[axis], at), (box.start[axis] + at, box.shape[axis] - at)):
            start, lengths = list(box.start), list(box.shape)
            start[axis], lengths[axis] = a, n
            boxes.append(Box(tuple(start), tuple(lengths)))
    return shape, draw(st.permutations(boxes))


def arrays(shape: tuple[int, ...], boxes: list[Box]) -> tuple[Numbers, Numbers]:
    """Return starts and lengths of boxes as arrays."""
    size = (len(boxes), len(shape))
    starts, lengths = ([box.start for box in boxes], [box.shape for box in boxes])
    return np.array(starts, np.int64).reshape(size), np.array(lengths, np.int64).reshape(size)


RAW = RawBoxes()
