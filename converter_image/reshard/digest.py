"""Content digests: XXH3 with 128 bits, which finds any accidental damage at the speed of memory. It is no cryptographic hash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.storage.protocol import Reader

_BLOCK_BYTES = 1 << 20


class ContentDigest:
    """The content digest of a file, built up from its parts."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: memoryview | bytes) -> None:
        """Append bytes; lets other threads run meanwhile."""
        self._state.update(data)

    def __str__(self) -> str:
        """As it stands in a record."""
        return f"xxh3-128:{self._state.hexdigest()}"


def digest_of(reader: Reader, advance: Callable[[int], None] = lambda _: None) -> str:
    """The content digest of a whole file."""
    digest = ContentDigest()
    block = memoryview(bytearray(_BLOCK_BYTES))
    for offset in range(0, reader.size, _BLOCK_BYTES):
        part = block[: min(_BLOCK_BYTES, reader.size - offset)]
        reader.read_into(part, offset)
        digest.update(part)
        advance(len(part))
    return str(digest)
