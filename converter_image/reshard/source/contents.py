"""What is asked of a source's contents before any is moved: are they what was saved, and are copies alike."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

import xxhash

from reshard.checkpoint import check_crc, crc_reads
from reshard.checkpoint.inventory import Header
from reshard.storage.ahead import files_at_once, prefetched

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from reshard.checkpoint.inventory import Inventory, SourceFile
    from reshard.plan.model import Model
    from reshard.storage.protocol import Reader, ReadStore

# Of copies larger than this, blocks at the beginning, in the middle and at the end are compared.
_COMPARED_WHOLE = 64 << 10
_READ_BYTES = 1 << 20
# Over a network: how much of each file is fetched before it is needed.
_FILE_AHEAD = 8 << 20


def check_crcs(store: ReadStore, inventory: Inventory, *, workers: int, advance: Callable[[int], None]) -> None:
    """Read the files that carry a CRC32, whole, and compare.

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


def find_diverging(store: ReadStore, model: Model, *, workers: int, whole: bool = False) -> frozenset[str]:
    """Names of parameters that no strategy names and whose copies differ between source ranks.

    Of large ones only some blocks are compared, unless the `whole` is asked for.
    """
    holders = Counter(file.structure for file in model.inventory.files)
    shared = {
        p.source_name: p.name
        for p in model.parameters
        if p.source is None and not model.same and sum(holders[s] for s in p.structures) > 1
    }
    found = compare_copies(store, model.inventory, shared.keys(), workers=workers, whole=whole)
    return frozenset(shared[name] for name in found)


def compare_copies(
    store: ReadStore, inventory: Inventory, shared: Collection[str], *, workers: int, whole: bool = False
) -> frozenset[str]:
    """Which of these names files hold, and not alike. See `find_diverging`."""
    files = inventory.files
    if not shared or len(files) < 2:
        return frozenset()

    def fingerprints(position: int) -> dict[str, int]:
        file = files[position]
        blocks = {
            entry.name: [(offset + at, n) for offset, length in entry.extents for at, n in _compared(length, whole=whole)]
            for entry in inventory.structures[file.structure].tensors
            if entry.name in shared
        }
        reads = chain.from_iterable(blocks.values())
        with closing(store.open(file.path)) as reader, prefetched(reader, reads, _FILE_AHEAD, remote=store.remote) as ahead:
            return {name: _fingerprint(ahead, found) for name, found in blocks.items()}

    first: dict[str, int] = {}
    diverging = set()
    with ThreadPoolExecutor(files_at_once(workers, remote=store.remote)) as pool:
        for found in pool.map(fingerprints, range(len(files))):
            for name, value in found.items():
                if first.setdefault(name, value) != value:
                    diverging.add(name)
    return frozenset(diverging)


def _fingerprint(reader: Reader, blocks: list[tuple[int, int]]) -> int:
    digest = xxhash.xxh3_64()
    for offset, length in blocks:
        digest.update(reader.read(offset, length))
    return digest.intdigest()


def _compared(length: int, *, whole: bool) -> Sequence[tuple[int, int]]:
    if whole or length <= _COMPARED_WHOLE:
        return [(at, min(_READ_BYTES, length - at)) for at in range(0, length, _READ_BYTES)]
    block = _COMPARED_WHOLE // 4
    return ((0, block), (length // 2, block), (length - block, block))
