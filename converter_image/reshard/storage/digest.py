"""Content digests: 128-bit XXH3, which detects accidental damage at memory speed. It is not a cryptographic hash."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import xxhash

from reshard.storage.ahead import prefetched

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.storage.protocol import Reader, Store

_VERSION = "etag:"
_BLOCK_BYTES = 1 << 20
_AHEAD_BYTES = 24 << 20
_SAMPLES = 5
_SAMPLE_BYTES = 4 << 10


class ContentDigest:
    """Calculates the content digest of a file, part by part."""

    def __init__(self, content: bytes | memoryview = b"") -> None:
        self._state = xxhash.xxh3_128(content)

    def update(self, data: memoryview | bytes) -> None:
        """Append bytes. Releases the GIL."""
        self._state.update(data)

    def __str__(self) -> str:
        """Return the digest in the form of records."""
        return f"xxh3-128:{self._state.hexdigest()}"


def digest_of_version(store: Store, path: str) -> str:
    """Return the digest of a file that a server has assembled: its ETag instead of a digest of its content, see docs/manifest.md.

    Raises:
        MissingInputError: the file does not exist.
    """
    with closing(store.open(path)) as reader:
        return f"{_VERSION}{reader.version}"


def is_version(digest: str) -> bool:
    """Return whether a recorded digest is the ETag of an object, which does not depend on the content alone."""
    return digest.startswith(_VERSION)


def matches(reader: Reader, digest: str, advance: Callable[[int], None] = lambda _: None, *, remote: bool = False) -> bool:
    """Return whether a file has the recorded content, or the recorded version if a server has assembled it."""
    if is_version(digest):
        advance(reader.size)
        return digest == f"{_VERSION}{reader.version}"
    return digest == digest_of(reader, advance, remote=remote)


def digest_of(reader: Reader, advance: Callable[[int], None] = lambda _: None, *, remote: bool = False) -> str:
    """Return the content digest of a whole file. Blocks of remote files are fetched concurrently."""
    blocks = [(at, min(_BLOCK_BYTES, reader.size - at)) for at in range(0, reader.size, _BLOCK_BYTES)]
    digest = ContentDigest()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with prefetched(reader, blocks, _AHEAD_BYTES, remote=remote) as ahead:
        for offset, length in blocks:
            ahead.read_into(block[:length], offset)
            digest.update(block[:length])
            advance(length)
    return str(digest)


def sample_of(reader: Reader, *, remote: bool = False) -> str:
    """Return a digest of five blocks of a file. It distinguishes files with equal length and modification time."""
    sample, length = xxhash.xxh3_64(), min(_SAMPLE_BYTES, reader.size)
    offsets = [(reader.size - length) * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
    with prefetched(reader, [(offset, length) for offset in offsets], _AHEAD_BYTES, remote=remote) as ahead:
        for offset in offsets:
            sample.update(ahead.read(offset, length))
    return sample.hexdigest()
