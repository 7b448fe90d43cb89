"""Read the headers of a source's files into an inventory."""

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
from reshard.source.headers import read_remote_header
from reshard.storage.ahead import files_at_once
from reshard.storage.digest import sample_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from reshard.checkpoint.inventory import Header, Structure
    from reshard.source.files import Files
    from reshard.source.headers import Reads
    from reshard.storage.protocol import ReadStore


def read_inventory(store: ReadStore, found: Files, *, workers: int, advance: Callable[[int], None] = lambda _: None) -> Inventory:
    """Read the headers of a source's files.

    Args:
        store: the storage that holds them.
        found: the files.
        workers: how many are read at a time.
        advance: called with the number of files that are done since the last call.

    Raises:
        DataError: a file is damaged; the message names it.
    """
    files = found.by_rank
    ranks = sorted(files)
    read = partial(_read, store, seen={}, alike={}, advance=advance)
    numbers: dict[Hashable, int] = {}
    structures: list[Structure] = []
    by_identity: dict[int, int] = {}  # of those in `structures` only, which live as long as this
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
    foreign = found.kind == "Unified" and bool(found.mapped)  # a manifest needs no map
    slices = _possible_slices(found, entries, structures)
    inventory = Inventory(tuple(entries), tuple(structures), found.kind, foreign, slices)
    if inventory.unified:
        check_unified(inventory, found.mapped)
    return inventory


def _possible_slices(found: Files, files: Sequence[SourceFile], structures: Sequence[Structure]) -> tuple[str, ...]:
    """Return the names of parameters that may be slices, by a manifest or by the name of a file that no manifest lists."""
    hyper = {file.structure for file in files if is_hyper(file.path) and file.path not in found.own}
    unknown = {name for number in hyper for name in possible_slices(structures[number])}
    return tuple(sorted(unknown.union(found.may_be_slices)))


class _Read(NamedTuple):
    """The header of one file, and the ranges that were read."""

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
        store: the storage that holds the file.
        path: the path of the file there.
        seen: structures of files before. Added to.
        alike: what was read of the first file of each length: those of a pipeline stage have one, and one structure. Added to.
        expected: what is probably read of one of another length.
        advance: called as for `read_inventory`.
    """
    reads: Reads = ()
    with closing(store.open(path)) as reader:
        if store.remote:  # a version there identifies the content
            header, reads = read_remote_header(reader, seen, alike.get(reader.size, expected))
            alike.setdefault(reader.size, reads)
            sample = ""
        else:
            header, sample = read_header(reader, seen), sample_of(reader)
        advance(1)
        return _Read(header, reader.size, reader.version, reader.changed, sample, reads)
