"""Checks of a source's contents before any is moved: CRCs, and equality of copies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

from reshard.checkpoint import check_crc, crc_reads
from reshard.checkpoint.inventory import Header
from reshard.storage.ahead import prefetched

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.checkpoint.inventory import Inventory, SourceFile
    from reshard.storage.protocol import ReadStore

# Bytes of each remote file that are prefetched.
_FILE_AHEAD = 8 << 20


def check_crcs(store: ReadStore, inventory: Inventory, *, workers: int, advance: Callable[[int], None]) -> None:
    """Read all files that contain a CRC32, and compare it.

    Args:
        store: the storage that holds the files.
        inventory: what the source holds.
        workers: how many are read at a time.
        advance: called with the number of bytes that are done since the last call.

    Raises:
        DataError: one is damaged; the message names it.
    """

    def check(file: SourceFile) -> None:
        found = Header(inventory.structures[file.structure], file.crc)
        reads = crc_reads(file.size, found)
        with closing(store.open(file.path)) as reader, prefetched(reader, reads, _FILE_AHEAD, remote=store.remote) as ahead:
            check_crc(ahead, found)
        advance(file.size)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(check, inventory.checkable):
            pass
