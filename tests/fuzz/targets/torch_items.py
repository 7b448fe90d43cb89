"""Fuzz the items of distributed checkpoints: one that follows an equal item is located as if it were the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inputs import DATA, Reader

from reshard.errors import ReshardError
from reshard.formats.torch.items import Item, Templates, locate_items

if TYPE_CHECKING:
    from reshard.formats.torch.strided import Content

FIRST = (DATA / "items" / "__1_0.distcp").read_bytes()
SHAPES = ((2, 6), (3, 3), ())


def locate(content: bytes, starts: list[int], shape: tuple[int, ...]) -> list[Content] | str:
    items = [Item("w", "Int64" if shape == () else "Float32", shape, start, len(content) - starts[-1]) for start in starts]
    try:
        return list(locate_items(Reader(content), items, Templates()))
    except ReshardError as error:
        return error.reason


SEEDS = DATA.glob("items/*.distcp")


def read(content: bytes) -> None:
    for shape in SHAPES:
        alone = locate(content, [0], shape)
        if len(content) != len(FIRST):
            continue
        after = locate(FIRST + content, [0, len(FIRST)], shape)
        if isinstance(alone, str) or isinstance(after, str):
            assert alone == after or isinstance(locate(FIRST, [0], shape), str), (alone, after)
        else:
            assert after[1] == alone[0]._replace(offset=len(FIRST) + alone[0].offset)
