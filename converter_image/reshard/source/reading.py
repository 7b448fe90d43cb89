"""Reading what a source is: its files' headers and its strategy. All header reading happens here, once."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

import xxhash

from reshard.checkpoint import check_crc, crc_reads, read_header
from reshard.checkpoint.inventory import Header, Inventory, SourceFile, Structure
from reshard.checkpoint.unified import check as check_unified
from reshard.errors import MissingInputError
from reshard.source.headers import read_remote_header
from reshard.storage import open_store, parent_and_name
from reshard.storage.ahead import prefetched
from reshard.storage.digest import sample_of
from reshard.strategy import Strategy, parse
from reshard.strategy.groups import restore_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from reshard.plan.model import Model
    from reshard.source.files import Files
    from reshard.spec.access import Access
    from reshard.storage.protocol import Reader, ReadStore, Store
    from reshard.strategy import StrategyFile

# Strategy files of the largest models are some megabytes.
_LARGEST_STRATEGY = 128 << 20
# Of copies larger than this, blocks at the beginning, in the middle and at the end are compared.
_COMPARED_WHOLE = 64 << 10
_READ_BYTES = 1 << 20
# Over a network: how many files are looked at at a time, and how much of each is fetched before it is needed.
_REMOTE_FILES = 8
_FILE_AHEAD = 8 << 20


def open_source(url: str, access: Access | None = None) -> tuple[Store, str | None]:
    """A source's storage; and the file's name, when it is a single file."""
    store = open_store(url, access)
    found = store.stat("")
    if found is not None and not found.is_folder:
        folder, name = parent_and_name(store.url)
        return open_store(folder, access), name
    return store, None


def read_strategy(path: str, access: Access | None = None, *, one_stage: bool = False) -> Strategy:
    """A strategy from a file, or merged from a folder that holds one for each pipeline stage (or rank).

    Args:
        path: of the file or folder.
        access: how it is reached, if it is in an object store.
        one_stage: it is to be that of one stage, whichever.

    Raises:
        DataError: a file is damaged, or they do not belong together.
        MissingInputError: there is none.
        RequestError: one stage is wanted, and it is of several.
    """
    files = read_strategy_files(path, access)
    return Strategy.of_one_stage(files) if one_stage else Strategy.from_files(files)


def read_strategy_files(path: str, access: Access | None = None) -> list[StrategyFile]:
    """The distinct strategy files of a folder in their natural order, or the one that is named.

    Raises:
        DataError: a file is damaged.
        MissingInputError: there is none.
    """
    folder, name = parent_and_name(path)
    store = open_store(folder, access)
    found = store.stat(name)
    if found is None:
        raise MissingInputError("StrategyMissing", "there is no such strategy file or folder", where=path)
    names = [name]
    if found.is_folder:
        names = [
            "/".join(part for part in (name, e.name) if part)
            for e in store.list(name)
            if not e.is_folder and e.name.endswith((".ckpt", ".json"))
        ]
        if not names:
            raise MissingInputError("StrategyMissing", "the folder holds no strategy file (.ckpt or .json)", where=path)
    contents: dict[bytes, str] = {}  # ranks of one stage have the same file
    for each in sorted(names, key=natural):
        contents.setdefault(store.read(each, _LARGEST_STRATEGY), each)
    return [parse(content, each) for content, each in contents.items()]


def read_restore_ranks(path: str, access: Access | None = None) -> tuple[int, ...]:
    """The ranks whose checkpoints can stand in for that of the rank that wrote a file of communication groups.

    Raises:
        DataError: it is no such file.
        MissingInputError: there is none.
    """
    folder, name = parent_and_name(path)
    return restore_ranks(open_store(folder, access).read(name, _LARGEST_STRATEGY), path)


def natural(name: str) -> list[tuple[int, str]]:
    """strategy_2 before strategy_10: the first file of each stage wins."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_inventory(store: ReadStore, found: Files, *, workers: int, advance: Callable[[int], None] = lambda _: None) -> Inventory:
    """Read the headers of a source's files.

    Args:
        store: where they are.
        found: them.
        workers: how many are read at a time.
        advance: called with the number of files that are done since the last call.

    Raises:
        DataError: a file is damaged; the message names it.
    """
    seen: dict[bytes, Structure] = {}

    like_the_first: list[tuple[int, int]] = []

    def read(path: str) -> tuple[Header, int, str, str]:
        with closing(store.open(path)) as reader:
            if store.remote:  # a version there identifies the content
                found, like_the_first[:] = read_remote_header(reader, seen, like_the_first.copy())
                sample = ""
            else:
                found, sample = read_header(reader, seen), sample_of(reader)
            advance(1)
            return found, reader.size, reader.version, sample

    files = found.by_rank
    numbers: dict[Hashable, int] = {}
    structures: list[Structure] = []
    by_identity: dict[int, int] = {}  # of those in `structures` only, which live as long as this
    entries = []
    with ThreadPoolExecutor(_at_once(store, workers)) as pool:
        ranks = sorted(files)
        first = [read(files[rank]) for rank in ranks[:1]]
        rest = pool.map(read, (files[rank] for rank in ranks[1:]))
        for rank, (indexed, size, version, sample) in zip(ranks, chain(first, rest), strict=True):
            structure = indexed.structure
            number = by_identity.get(id(structure))
            if number is None:
                number = numbers.setdefault(structure.key, len(structures))
                if number == len(structures):
                    structures.append(structure)
                    by_identity[id(structure)] = number
            entries.append(SourceFile(rank, files[rank], size, version, number, indexed.crc, sample))
    inventory = Inventory(tuple(entries), tuple(structures), found.kind)
    if inventory.unified:
        check_unified(inventory, found.mapped)
    return inventory


def check_crcs(store: ReadStore, inventory: Inventory, *, workers: int, advance: Callable[[int], None]) -> None:
    """Read the files that carry a CRC32, whole, and compare.

    Args:
        store: where they are.
        inventory: of the source.
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
        for _ in pool.map(check, [file for file in inventory.files if file.crc is not None]):
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
    with ThreadPoolExecutor(_at_once(store, workers)) as pool:
        for found in pool.map(fingerprints, range(len(files))):
            for name, value in found.items():
                if first.setdefault(name, value) != value:
                    diverging.add(name)
    return frozenset(diverging)


def _at_once(store: ReadStore, workers: int) -> int:
    """How many files are looked at at a time: over a network little is read and much is waited for."""
    return max(workers, _REMOTE_FILES) if store.remote else workers


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
