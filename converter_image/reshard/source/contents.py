"""Check the contents of a source before any data is moved: CRC32s of files."""

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

# Number of bytes of each file that are prefetched over a network.
_FILE_AHEAD = 8 << 20


def check_crcs(store: ReadStore, inventory: Inventory, *, workers: int, advance: Callable[[int], None]) -> None:
    """Read all files that contain a CRC32, and compare it with their content.

    Args:
        store: store of the files.
        inventory: files of the source.
        workers: number of files read at a time.
        advance: callback with the number of bytes processed since the last call.

    Raises:
        DataError: a file is damaged. The message names it.
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
