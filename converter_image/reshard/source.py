"""Reading what a source is: its files' headers and its strategy. All header reading happens here, once."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from reshard.ahead import reading
from reshard.checkpoint import check_crc, crc_reads, format_of, index
from reshard.checkpoint.inventory import Index, Inventory, Kind, SourceFile, Structure
from reshard.digest import sample_of
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.headers import index_remote
from reshard.manifest import MANIFEST_NAME, STATE, Manifest, decode
from reshard.selection import select_files
from reshard.storage import open_store, parent_and_name
from reshard.strategy import Strategy, parse
from reshard.strategy.groups import restore_ranks
from reshard.unified import MAP_NAME, choose_map, files_of, is_map, read_map
from reshard.unified import check as check_unified

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence

    from reshard.access import Access
    from reshard.plan.parameters import Model
    from reshard.storage.protocol import Reader, ReadStore, Stat, Store
    from reshard.strategy import StrategyFile

# Strategy files of the largest models are some megabytes.
_LARGEST_STRATEGY = 128 << 20
# Of copies larger than this, blocks at the beginning, in the middle and at the end are compared.
_COMPARED_WHOLE = 64 << 10
_READ_BYTES = 1 << 20
_LARGEST_MANIFEST = 4 << 30
# Over a network: how many files are looked at at a time, and how much of each is fetched before it is needed.
_REMOTE_FILES = 8
_FILE_AHEAD = 8 << 20
_RANK_FOLDER = re.compile(r"rank_(\d{1,9})")


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


class Files(NamedTuple):
    """The files of a checkpoint.

    Attributes:
        by_rank: for each rank its file, as a path within the store; of a unified checkpoint, for each number one of the files.
        notes: what a user should know of the choice.
        kind: what they are.
        mapped: for each parameter of a unified checkpoint its file, as far as a map says that.
        ranks: how many ranks there are, those included that were not asked for; None: some are not there.
        step: the epoch and step that they are of, where their names say so.
    """

    by_rank: dict[int, str]
    notes: tuple[str, ...] = ()
    kind: Kind = "Ranks"
    mapped: Mapping[str, str] = {}
    ranks: int | None = None
    step: tuple[int, int] | None = None


def find_files(
    store: ReadStore,
    chosen: str | None = None,
    *,
    step: int | None = None,
    pattern: str | None = None,
    ranks: range | None = None,
) -> Files:
    """The file of each rank, or those of a unified checkpoint. Another folder without `rank_<r>/` in it is one rank.

    Args:
        store: the folder.
        chosen: the one file in it that is meant: it holds all parameters (of the first of `ranks`), or says which files do.
        step: the training step that is wanted.
        pattern: a shell pattern that the names must match.
        ranks: only these are wanted; None: all.

    Raises:
        DataError: a map is damaged.
        MissingInputError: there are none.
        RequestError: it is not clear which.
    """
    if chosen is not None and not is_map(chosen):
        return Files({ranks.start if ranks else 0: chosen})
    entries = store.list("")
    manifest = _manifest(store, {entry.name for entry in entries})
    anything = step is None and pattern is None
    if manifest is not None and anything and chosen is None:
        return _described(manifest, store.url, ranks)
    folders, beside = _rank_folders(entries, store.url), [entry.name for entry in entries if not entry.is_folder]
    if map_name := chosen or (choose_map(beside, store.url) if anything else None):
        if folders and chosen is None:
            raise RequestError(
                "AmbiguousFiles",
                f"there are rank_<r> folders, and {map_name}, which says that the parameters are in the files beside it",
                where=store.url,
                fix=f"give {map_name} as the source, or choose files of the ranks with --step or --files (spec.source.files)",
            )
        mapped = read_map(store.read(map_name, _LARGEST_STRATEGY), f"{store.url}/{map_name}")
        files = files_of(mapped, beside, map_name, store.url)
        return Files(dict(enumerate(files)), kind="Unified" if map_name == MAP_NAME else "Sharded", mapped=mapped)
    if folders:
        count = _count(folders)
        folders = {rank: folder for rank, folder in folders.items() if ranks is None or rank in ranks}
        names = {rank: [e.name for e in store.list(folder) if not e.is_folder] for rank, folder in sorted(folders.items())}
        selected = select_files(names, step=step, pattern=pattern)
        by_rank = {rank: f"{folders[rank]}/{name}" for rank, name in selected.files.items()}
        return Files(by_rank, selected.notes, ranks=count, step=selected.step)
    if store.stat("") is None:
        raise MissingInputError("SourceMissing", "there is no such folder", where=store.url)
    if not any(format_of(name) for name in beside):
        raise MissingInputError(
            "SourceMissing",
            "there is neither a rank_<r> folder nor a .ckpt or .safetensors file",
            where=store.url,
            fix="give the folder that holds rank_0, rank_1, ...",
        )
    selected = select_files({0: beside}, step=step, pattern=pattern)
    return Files(selected.files, selected.notes, ranks=1, step=selected.step)


def _rank_folders(entries: Iterable[Stat], where: str) -> dict[int, str]:
    """From rank to the name of its folder.

    Raises:
        DataError: two are of one rank.
    """
    folders: dict[int, str] = {}
    for entry in entries:
        match = _RANK_FOLDER.fullmatch(entry.name)
        if match and entry.is_folder:
            other = folders.setdefault(int(match[1]), entry.name)
            if other != entry.name:
                raise DataError("DuplicateRank", f"{other} and {entry.name} are the same rank", where=where)
    return folders


def _count(ranks: Collection[int]) -> int | None:
    return len(ranks) if ranks and max(ranks) == len(ranks) - 1 else None


def _described(manifest: Manifest, where: str, ranks: range | None) -> Files:
    """The files of a checkpoint that this program has written.

    Raises:
        MissingInputError: not all files of a unified one were asked for when it was written.
        RequestError: it was made stage by stage.
    """
    if manifest.parts:
        raise RequestError(
            "SourceInParts",
            f"each rank's parameters are in {len(manifest.parts)} parts, which cannot be read as one",
            where=where,
            fix="reshard the checkpoint that the parts were made from, or name one part's files, as in --files '*_part0.*'",
        )
    known = {record.rank: record.path for record in manifest.files}
    if manifest.options.get("layout") != "Unified":
        wanted = {rank: path for rank, path in known.items() if ranks is None or rank in ranks}
        return Files(wanted, ranks=_count(known))
    if len(known) < manifest.target_ranks:
        raise MissingInputError(
            "PartMissing",
            f"it was completed with {len(known)} of its {manifest.target_ranks} parts",
            where=where,
            fix="run its transform again without --ranks (spec.target.ranks)",
        )
    return Files(known, kind="Unified")


def _manifest(store: ReadStore, names: set[str]) -> Manifest | None:
    """Of a source that this program has written: its manifest says which files belong to it.

    Raises:
        MissingInputError: it was never completed, or is being replaced.
        RequestError: it is an index.
    """
    if MANIFEST_NAME in names:
        found = decode(store.read(MANIFEST_NAME, _LARGEST_MANIFEST), Manifest, f"{store.url}/{MANIFEST_NAME}")
        if found.index is not None:
            raise RequestError(
                "SourceIsIndex",
                "it is the index of a checkpoint, and none itself",
                where=store.url,
                fix=f"give the checkpoint ({found.source.url}), and this as its index (--index)",
            )
        return found
    if STATE in names and any(store.stat(f"{STATE}/{entry.name}/job.json") is not None for entry in store.list(STATE)):
        raise MissingInputError(
            "SourceUnfinished",
            "a transform has begun to write this checkpoint and has not completed it",
            where=store.url,
            fix="run that transform to its end first",
        )
    return None


def read_inventory(store: ReadStore, found: Files, *, workers: int, advance: Callable[[int], None] = lambda _: None) -> Inventory:
    """Index the files of a source.

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

    def read(path: str) -> tuple[Index, int, str, str]:
        reader = store.open(path)
        try:
            if store.remote:  # a version there identifies the content
                found, like_the_first[:] = index_remote(reader, seen, like_the_first.copy())
                sample = ""
            else:
                found, sample = index(reader, seen), sample_of(reader)
            advance(1)
            return found, reader.size, reader.version, sample
        finally:
            reader.close()

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
        reader = store.open(file.path)
        try:
            found = Index(inventory.structures[file.structure], file.crc)
            if store.remote:
                with reading(reader, crc_reads(file.size, found), _FILE_AHEAD) as ahead:
                    check_crc(ahead, found)
            else:
                check_crc(reader, found)
        finally:
            reader.close()
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
        reader = store.open(file.path)
        try:
            if store.remote:
                with reading(reader, chain.from_iterable(blocks.values()), _FILE_AHEAD) as ahead:
                    return {name: _fingerprint(ahead, found) for name, found in blocks.items()}
            return {name: _fingerprint(reader, found) for name, found in blocks.items()}
        finally:
            reader.close()

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
