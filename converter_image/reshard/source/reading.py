"""Read the inventory of a source. All headers are read here, once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint import read_header
from reshard.checkpoint.inventory import Inventory, SourceFile
from reshard.checkpoint.unified import check as check_unified
from reshard.checkpoint.unified import is_hyper, possible_slices
from reshard.source.boxed import inventory_of
from reshard.source.files import Files
from reshard.source.headers import read_remote_header
from reshard.storage.ahead import files_at_once
from reshard.storage.digest import sample_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from reshard.checkpoint.inventory import Header, Structure
    from reshard.source.headers import Reads
    from reshard.storage.protocol import ReadStore


def read_inventory(store: ReadStore, found: Files, *, workers: int, advance: Callable[[int], None] = lambda _: None) -> Inventory:
    """Read the headers of a source's files.

    Args:
        store: store of the files.
        found: files of the source.
        workers: number of files read at a time.
        advance: callback with the number of files processed since the last call.

    Raises:
        DataError: a file is damaged. The message names it.
    """
    if found.boxed is not None:
        return inventory_of(store, found.boxed, workers=workers, advance=advance)
    files = found.by_rank
    ranks = sorted(files)
    read = partial(_read, store, seen={}, alike={}, advance=advance)
    numbers: dict[Hashable, int] = {}
    structures: list[Structure] = []
    by_identity: dict[int, int] = {}  # valid while `structures` keeps the objects alive
    entries = []
    with ThreadPoolExecutor(files_at_once(workers, remote=store.remote)) as pool:
        first = [read(files[rank], expected=()) for rank in ranks[:1]]
        expected = first[0].reads if first else ()
        rest = pool.map(partial(read, expected=expected), (files[rank] for rank in ranks[1:]))
        for rank, (header, size, version, changed, sample, _) in zip(ranks, chain(first, rest), strict=True):
            structure = header.structure
            number = by_identity.get(id(structure))
            if number is None:
                number = numbers.setdefault(structure.key, len(structures))
                if number == len(structures):
                    structures.append(structure)
                    by_identity[id(structure)] = number
            entries.append(SourceFile(rank, files[rank], size, version, number, header.crc, sample, changed))
    foreign = found.kind == "Unified" and bool(found.mapped)  # a manifest replaces the index
    slices = _possible_slices(found, entries, structures)
    inventory = Inventory(tuple(entries), tuple(structures), found.kind, foreign, slices)
    if inventory.unified:
        check_unified(inventory, found.mapped)
    return inventory


def has_same_header(store: ReadStore, inventory: Inventory, file: SourceFile) -> bool:
    """Return whether the header of a file is still the one in an inventory. Files whose shards metadata locates have none."""
    if inventory.kind == "Boxes":
        return True
    found = read_inventory(store, Files({file.rank: file.path}), workers=1)
    return found.structures[0].key == inventory.structures[file.structure].key


def _possible_slices(found: Files, files: Sequence[SourceFile], structures: Sequence[Structure]) -> tuple[str, ...]:
    """Return the names of parameters that may be slices, by a manifest, or by the name of a file that no manifest lists."""
    hyper = {file.structure for file in files if is_hyper(file.path) and file.path not in found.own}
    unknown = {name for number in hyper for name in possible_slices(structures[number])}
    return tuple(sorted(unknown.union(found.may_be_slices)))


class _Read(NamedTuple):
    """The header of one file, and the reads that it took."""

    header: Header
    size: int
    version: str
    changed: int
    sample: str
    reads: Reads


def _read(
    store: ReadStore,
    path: str,
    *,
    seen: dict[bytes, Structure],
    alike: dict[int, Reads],
    expected: Reads,
    advance: Callable[[int], None],
) -> _Read:
    """Read one file's header.

    Args:
        store: store of the file.
        path: path of the file in it.
        seen: structures of files read before. New ones are added.
        alike: reads of the first file of each size: files of a pipeline stage have equal sizes and structures. New ones are
            added.
        expected: probable reads of a file with another size.
        advance: callback as in `read_inventory`.
    """
    reads: Reads = ()
    with closing(store.open(path)) as reader:
        if store.remote:  # versions in an object store identify the content
            header, reads = read_remote_header(reader, seen, alike.get(reader.size, expected))
            alike.setdefault(reader.size, reads)
            sample = ""
        else:
            header, sample = read_header(reader, seen), sample_of(reader)
        advance(1)
        return _Read(header, reader.size, reader.version, reader.changed, sample, reads)
