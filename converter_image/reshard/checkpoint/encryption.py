"""MindSpore's encrypted `.ckpt` format: the bytes of a plain file in blocks that are encrypted separately.

The fields of a block, with numbers as little-endian int32: magic | tag (GCM only) | length of the rest | length of the IV | IV |
length of the ciphertext | ciphertext. MindSpore writes blocks with 64 MiB of plaintext, and reads blocks of up to that size.
(mindspore/core/utils/crypto.cc)
"""

from __future__ import annotations

import os
import struct
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint import ckpt
from reshard.checkpoint.blockcipher import IV_BYTES, MAGIC, mode_of
from reshard.errors import AccessError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.checkpoint.blockcipher import BlockCipher
    from reshard.checkpoint.inventory import RangeReader
    from reshard.spec.keys import Mode

# Size of the blocks written here. The tag precedes the ciphertext, so each open file keeps a whole block in memory.
BLOCK_BYTES = 4 << 20
# More than the largest files have, and few enough not to exhaust the memory.
MAX_BLOCKS = 1 << 20
# Room that a library requires in an output buffer in addition to what it fills. Padding takes as much.
_SLACK = 32
_CHECKED_BYTES = 256 << 10
# How much is decrypted to check the key: a first message with a name of common length, then one with the longest name.
_HEADS = (512, ckpt.LONGEST_HEAD)


class BlockTable(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The blocks of one file, in order.

    Attributes:
        lengths: bytes of each block's plaintext.
        ivs: concatenated initialization vectors of the blocks.
    """

    lengths: tuple[int, ...]
    ivs: bytes

    def __post_init__(self) -> None:
        """Reject values that no file can have, because tables are also read from documents."""
        if len(self.ivs) != len(self.lengths) * IV_BYTES or min(self.lengths, default=0) < 0:
            raise ValueError("Expected an IV and a length for each block")

    def iv(self, number: int) -> bytes:
        """Return the IV of one block."""
        return self.ivs[number * IV_BYTES : (number + 1) * IV_BYTES]

    def contents(self, cipher: BlockCipher) -> list[int]:
        """Return the position of each block's ciphertext in the file."""
        head = _head_of(cipher).size
        ends = accumulate(head + cipher.sealed(length) for length in self.lengths)
        return [end - cipher.sealed(length) for end, length in zip(ends, self.lengths, strict=True)]


# Version and blocks of one file.
Known = tuple[str, BlockTable]


def sealed_size(cipher: BlockCipher, size: int) -> int:
    """Return the length of the encrypted form of a plain file with this length."""
    full, rest = divmod(size, BLOCK_BYTES)
    head = _head_of(cipher).size
    return full * (head + cipher.sealed(BLOCK_BYTES)) + (head + cipher.sealed(rest) if rest else 0)


def read_table(reader: RangeReader, cipher: BlockCipher) -> BlockTable:
    """Find the blocks of a file and check their padding. See `table_reads`.

    The encrypted form of an empty file is empty.

    Raises:
        AccessError: the key is wrong.
        DataError: the file is not encrypted in this mode, or is damaged.
    """
    head, tail = _head_of(cipher), cipher.tail_bytes
    if not reader.size:
        return BlockTable((), b"")
    found = reader.read(0, min(head.size, reader.size))
    _check_mode(reader, mode_of(found), cipher)
    lengths: list[int] = []
    ivs, position = bytearray(), 0
    while position < reader.size:
        number = len(lengths)
        if number == MAX_BLOCKS:
            raise _damaged(reader, f"the file has more than {MAX_BLOCKS} blocks", reason="TooManyBlocks")
        iv, length = _parse(reader, cipher, found, number, position)
        if not number:
            check_key(reader, cipher, BlockTable((length,), iv))
        position += head.size + length
        found = reader.read(position - tail, min(tail + head.size, reader.size - position + tail))
        plain = cipher.plain(iv, length, found[:tail])
        if plain is None:
            raise _damaged(reader, f"block {number}, which ends at byte {position}, has invalid padding")
        lengths.append(plain)
        ivs += iv
        found = found[tail:]
    return BlockTable(tuple(lengths), bytes(ivs))


def table_reads(reader: RangeReader, cipher: BlockCipher) -> Iterator[tuple[int, int]]:
    """Yield the ranges that `read_table` reads, as (offset, length), provided that all blocks except the last have equal length.

    Reads the head of the file.
    """
    if not reader.size:
        return
    head, tail = _head_of(cipher).size, cipher.tail_bytes
    found = reader.read(0, min(head, reader.size))
    _check_mode(reader, mode_of(found), cipher)
    block = head + _parse(reader, cipher, found, 0, 0)[1]
    yield 0, head
    for end in range(block, reader.size, block)[:MAX_BLOCKS]:
        yield end - tail, min(tail + head, reader.size - end + tail)


def check_key(reader: RangeReader, cipher: BlockCipher, blocks: BlockTable) -> None:
    """Check that the first decrypted block starts with a parameter. In CBC mode, nothing else detects a wrong key.

    Raises:
        AccessError: the key is wrong.
    """
    if not blocks.lengths:
        return
    begin = _head_of(cipher).size
    for most in _HEADS:
        content = bytearray(min(blocks.lengths[0], most))
        first, end = cipher.needed(0, len(content))
        cipher.decrypt(blocks.iv(0), 0, [memoryview(reader.read(begin + first, end - first))], memoryview(content))
        if ckpt.begins(reader, bytes(content)):
            return
    raise AccessError(
        "WrongKey",
        f"the {cipher.mode} key does not decrypt the file",
        where=reader.name,
        fix="use the key that the file was encrypted with; if the key is correct, restore the file, because it is damaged",
    )


def check_tags(reader: RangeReader, cipher: BlockCipher, blocks: BlockTable) -> None:
    """Check that every block is authentic, in one pass over the file. Read nothing if the mode has no tags.

    Raises:
        DataError: a block was modified.
    """
    if not cipher.tag_bytes:
        return
    head = _head_of(cipher)
    for number, (length, begin) in enumerate(zip(blocks.lengths, blocks.contents(cipher), strict=True)):
        tag = head.unpack(reader.read(begin - head.size, head.size))[1]
        pieces = (reader.read(at, n) for at, n in _pieces(begin, length))
        if not cipher.is_authentic(blocks.iv(number), tag, pieces):
            raise _damaged(
                reader, f"block {number}, at byte {begin - head.size}, was changed after it was encrypted", reason="NotAuthentic"
            )


def tag_reads(cipher: BlockCipher, blocks: BlockTable) -> Iterator[tuple[int, int]]:
    """Yield the ranges that `check_tags` reads, as (offset, length)."""
    head = _head_of(cipher).size
    if cipher.tag_bytes:
        for length, begin in zip(blocks.lengths, blocks.contents(cipher), strict=True):
            yield begin - head, head
            yield from _pieces(begin, length)


class Encryptor:
    """Encrypts a plain file piece by piece, with the memory of one block."""

    def __init__(self, cipher: BlockCipher, emit: Callable[[memoryview], None]) -> None:
        """Pass each part of the encrypted file to `emit`. The buffer is reused after `emit` returns."""
        self._cipher, self._emit, self._head = cipher, emit, _head_of(cipher)
        self._block = memoryview(bytearray(self._head.size + BLOCK_BYTES + _SLACK))
        self._begin()

    def _begin(self) -> None:
        self._iv = os.urandom(IV_BYTES)
        self._context = self._cipher.begin(self._iv)
        self._plain, self._end = 0, self._head.size

    def update(self, part: memoryview | bytes) -> None:
        """Add bytes of the plain file."""
        view = memoryview(part)
        while view:
            taken = view[: BLOCK_BYTES - self._plain]
            self._end += self._context.update_into(taken, self._block[self._end :])
            self._plain += len(taken)
            view = view[len(taken) :]
            if self._plain == BLOCK_BYTES:
                self._seal()

    def finish(self) -> None:
        """Encrypt the last block."""
        if self._plain:
            self._seal()

    def _seal(self) -> None:
        rest, tag = self._cipher.finish(self._context, self._plain)
        self._block[self._end : self._end + len(rest)] = rest
        self._end += len(rest)
        length = self._end - self._head.size
        magic = next(number for number, mode in MAGIC.items() if mode == self._cipher.mode)
        self._head.pack_into(self._block, 0, magic, tag, 4 + IV_BYTES + 4 + length, IV_BYTES, self._iv, length)
        self._emit(self._block[: self._end])
        self._begin()


def _head_of(cipher: BlockCipher) -> struct.Struct:
    """Return the struct of a head: magic, tag, length of the rest, length of the IV, IV, length of the ciphertext."""
    return struct.Struct(f"<I{cipher.tag_bytes}sii{IV_BYTES}si")


def _check_mode(reader: RangeReader, mode: Mode | None, cipher: BlockCipher) -> None:
    """Reject files of another mode and plain files, because some modes are weaker than others."""
    if mode is None:
        raise DataError(
            "NotEncrypted",
            "a decryption key was given, but the file is not encrypted",
            where=reader.name,
            fix="if the file should not be encrypted, remove the key (spec.source.decryption)",
        )
    if mode != cipher.mode:
        raise DataError(
            "WrongMode",
            f"the file is encrypted with {mode}, not {cipher.mode}",
            where=reader.name,
            fix=f"if that mode is expected, use --decryption-mode {mode} (spec.source.decryption.mode)",
        )


def _parse(reader: RangeReader, cipher: BlockCipher, content: bytes, number: int, position: int) -> tuple[bytes, int]:
    """Return the IV and the length of the ciphertext of the block at `position`."""
    head = _head_of(cipher)
    where = f"block {number}, at byte {position},"
    if len(content) < head.size:
        raise _damaged(reader, f"{where} is truncated", reason="Truncated")
    magic, _, rest, iv_length, iv, length = head.unpack(content)
    if MAGIC.get(magic) != cipher.mode or iv_length != IV_BYTES or length <= 0 or rest != 4 + IV_BYTES + 4 + length:
        raise _damaged(reader, f"{where} is not valid")
    if position + head.size + length > reader.size:
        raise _damaged(reader, f"{where} has a length of {length} bytes, but the file ends before that", reason="Truncated")
    return iv, length


def _pieces(begin: int, length: int) -> Iterator[tuple[int, int]]:
    return ((begin + at, min(_CHECKED_BYTES, length - at)) for at in range(0, length, _CHECKED_BYTES))


def _damaged(reader: RangeReader, what: str, *, reason: str = "Damaged") -> DataError:
    return DataError(reason, what, where=reader.name, fix="the file is damaged; restore it")
