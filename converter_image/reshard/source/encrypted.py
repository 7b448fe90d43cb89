"""Random access to the plaintext of encrypted files. Only the requested bytes and a few bytes around them are read."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from reshard.checkpoint.blockcipher import cipher_of
from reshard.checkpoint.encryption import check_key, check_tags, read_table, table_reads, tag_reads
from reshard.source.changed import source_changed
from reshard.source.keys import read_key
from reshard.storage.ahead import GAP_BYTES, prefetched
from reshard.storage.bounded import BoundedReader
from reshard.storage.spans import read_spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reshard.checkpoint.blockcipher import BlockCipher
    from reshard.checkpoint.encryption import BlockTable, Known
    from reshard.spec.keys import Encryption
    from reshard.storage.protocol import Reader, ReadStore, Stat
    from reshard.storage.traffic import Meter

# Number of bytes decrypted at a time: what was read stays in the CPU cache. Reads over a network are never split.
_PIECE_BYTES = 64 << 10
# The start of a decryption takes as long as the decryption of this many bytes.
_GAP_BYTES = 16 << 10
_LONGEST_SPAN = 1 << 20
# Number of bytes of a file that are prefetched over a network while its blocks are located and checked.
_FILE_AHEAD = 8 << 20


class DecryptingReader(BoundedReader):
    """Reader of the plaintext of one file, see `Reader`. It does not check authenticity, which requires the whole file.

    Attributes:
        blocks: blocks of the file.
    """

    _what_ends = "what is encrypted"

    def __init__(self, sealed: Reader, cipher: BlockCipher, blocks: BlockTable, *, remote: bool) -> None:
        self.name, self.version, self.changed = sealed.name, sealed.version, sealed.changed
        self.size = sum(blocks.lengths)
        self.blocks = blocks
        self._sealed, self._cipher = sealed, cipher
        self._starts = list(accumulate(blocks.lengths, initial=0))
        self._contents = blocks.contents(cipher)
        self._remote = remote

    @property
    def waits(self) -> bool:
        """See `Reader.waits`."""
        return self._remote

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `Reader.read_into`."""
        self._check_inside(offset, len(view))
        done = 0
        while done < len(view):
            number = bisect_right(self._starts, offset + done) - 1
            at = offset + done - self._starts[number]
            n = min(self.blocks.lengths[number] - at, len(view) - done)
            self._cipher.decrypt(self.blocks.iv(number), at, self._pieces(number, at, n), view[done : done + n])
            done += n

    def _pieces(self, number: int, at: int, length: int) -> Iterator[memoryview]:
        """Yield the ciphertext that a range of a block's plaintext requires."""
        first, end = self._cipher.needed(at, length)
        together = end - first if self._remote else min(_PIECE_BYTES, end - first)
        memory = memoryview(bytearray(together))
        for start in range(first, end, together):
            sealed = memory[: min(together, end - start)]
            self._sealed.read_into(sealed, self._contents[number] + start)
            for piece in range(0, len(sealed), _PIECE_BYTES):
                yield sealed[piece : piece + _PIECE_BYTES]

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """See `Reader.read_runs`."""
        read_spans(self.read_into, view, length, offsets, gap=GAP_BYTES if self._remote else _GAP_BYTES, most=_LONGEST_SPAN)

    def will_read(self, offset: int, length: int) -> None:
        """See `Reader.will_read`. Does nothing."""

    def count_in(self, meter: Meter) -> None:
        """See `Reader.count_in`. Counts the ciphertext."""
        self._sealed.count_in(meter)

    def close(self) -> None:
        """See `Reader.close`."""
        self._sealed.close()


def decrypting(sealed: Reader, cipher: BlockCipher, *, remote: bool, check: bool) -> DecryptingReader:
    """Return a reader of a file whose blocks are not known yet.

    Args:
        sealed: reader of the encrypted file.
        cipher: cipher with its key.
        remote: whether a read costs a round trip.
        check: whether to read the whole file and check its authenticity.

    Raises:
        AccessError: the key is wrong.
        DataError: the file is not encrypted in this mode, or is damaged.
    """
    with prefetched(sealed, table_reads(sealed, cipher), _FILE_AHEAD, remote=remote) as ahead:
        blocks = read_table(ahead, cipher)
    if check:
        with prefetched(sealed, tag_reads(cipher, blocks), _FILE_AHEAD, remote=remote) as ahead:
            check_tags(ahead, cipher, blocks)
    return DecryptingReader(sealed, cipher, blocks, remote=remote)


def as_plain(
    store: ReadStore, encryption: Encryption | None, known: Mapping[str, Known] | None = None, *, check: bool = True
) -> ReadStore:
    """Return a store with decrypted checkpoint files, see `DecryptingStore`, or the store itself if there is no key."""
    if encryption is None:
        return store
    return DecryptingStore(store, cipher_of(encryption.mode, read_key(encryption)), known, check=check)


class DecryptingStore:
    """Store whose checkpoint files are encrypted with one key. Other files are plain.

    Attributes:
        known: version and blocks of each file that was opened so far or was known before.
    """

    def __init__(
        self, store: ReadStore, cipher: BlockCipher, known: Mapping[str, Known] | None = None, *, check: bool = True
    ) -> None:
        """Unless `check` is false, read and check a file completely when it is opened for the first time."""
        self.known = dict(known or {})
        self._store, self._cipher, self._check = store, cipher, check
        self.url, self.remote = store.url, store.remote

    def list(self, path: str) -> list[Stat]:
        """See `Store.list`."""
        return self._store.list(path)

    def stat(self, path: str) -> Stat | None:
        """See `Store.stat`. The size is that of the encrypted file."""
        return self._store.stat(path)

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        """See `Store.list_folders`."""
        return self._store.list_folders(paths)

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """See `Store.stats`. Sizes are those of the encrypted files."""
        return self._store.stats(paths)

    def read(self, path: str, limit: int) -> bytes:
        """See `Store.read`. Never called for a checkpoint file."""
        return self._store.read(path, limit)

    def open(self, path: str) -> DecryptingReader:
        """See `Store.open`."""
        sealed = self._store.open(path)
        try:
            return self._opened(path, sealed)
        except BaseException:
            sealed.close()
            raise

    def _opened(self, path: str, sealed: Reader) -> DecryptingReader:
        version, blocks = self.known.get(path, (None, None))
        if blocks is None:
            reader = decrypting(sealed, self._cipher, remote=self.remote, check=self._check)
            self.known[path] = (sealed.version, reader.blocks)
            return reader
        if version != sealed.version:
            raise source_changed(path)
        check_key(sealed, self._cipher, blocks)  # the key may differ from the one that the file was checked with
        return DecryptingReader(sealed, self._cipher, blocks, remote=self.remote)
