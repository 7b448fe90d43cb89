"""Find the files of a checkpoint: in its folder, in its manifest, or in its index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from reshard.checkpoint.manifest import ParameterTable
from reshard.checkpoint.unified import MAP_NAME, choose_map, files_of, is_hyper, is_map, is_part, read_map, single_file_of
from reshard.errors import MissingInputError, RequestError
from reshard.formats.registry import detect
from reshard.source.boxed import find_boxed
from reshard.source.described import (
    check_described,
    find_listing,
    listed_and_unchanged,
    paths_of,
    read_manifest,
    refuse_partial,
)
from reshard.source.files import Files
from reshard.source.listing import is_candidate, preview, rank_folders, rank_of, ranks_of_files, shards
from reshard.source.selection import Selection, select_files
from reshard.source.single import folders_with_checkpoints
from reshard.spec.outputs import output_of
from reshard.spec.ranks import format_ranks
from reshard.storage import parent_and_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from reshard.checkpoint.inventory import Kind
    from reshard.checkpoint.manifest import Manifest
    from reshard.source.boxed import Boxed
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore, Stat

_LARGEST_MAP = 128 << 20
# Number of folders that are searched for a checkpoint to suggest.
_MOST_FOLDERS = 16
_WHERE_RANKS_ARE = "specify the folder that contains rank_0, rank_1, ..."


def find_files(  # noqa: PLR0913 - independent criteria
    store: ReadStore,
    chosen: str | None = None,
    *,
    step: int | None = None,
    pattern: str | None = None,
    ranks: range | None = None,
    one_stage: bool = False,
    each: bool = False,
    storage_options: StorageOptions | None = None,
    source_format: str | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> Files:
    """Find the file of each rank, or the files of a unified checkpoint.

    Args:
        store: folder of the checkpoint.
        chosen: name of the one requested file. It holds all parameters (of the first of `ranks`), or is an index of files.
        step: requested training step.
        pattern: glob pattern that the names must match, or the paths if it contains a `/`.
        ranks: ranks that the source strategy describes. None means that there is no strategy.
        one_stage: whether these are the ranks of one pipeline stage, so that others may belong to the same checkpoint.
        each: whether each file is read separately, however the ranks share the parameters.
        storage_options: options of the object store, if the folder is in one.
        source_format: format of a checkpoint whose own metadata locates its shards. None: it is recognized by its files.
        wanted: whether a tensor of this name is needed, so that a format need not read the others. None: all are needed.

    Raises:
        DataError: an index is damaged, or files are not those that the manifest lists.
        MissingInputError: there are no files.
        RequestError: the selection is ambiguous.
    """
    anything = step is None and pattern is None
    if chosen is not None and not is_map(chosen):
        if (boxed := find_boxed(store, [chosen], source_format, one_file=True, wanted=wanted)) is not None:
            return _boxed(boxed)
        return with_listing(Files({ranks.start if ranks else 0: chosen}), store, storage_options, ignored=not anything)
    entries = store.list("")
    if each and (format_found := detect([entry.name for entry in entries if not entry.is_folder])) is not None:
        raise RequestError(
            "UnsupportedSource",
            f"the folder contains a checkpoint of the format {format_found.name}, whose files cannot be selected or converted one"
            " by one",
            where=store.url,
            fix="use the folder as the source of `reshard transform`; to inspect it, omit --step and --files",
        )
    manifest = read_manifest(store, {entry.name for entry in entries})
    whole = source_format is not None or (anything and not each and chosen is None)
    if whole and (boxes := _find_boxes(store, entries, manifest, source_format, wanted)) is not None:
        return boxes
    if manifest is not None and anything and chosen is None:
        return _described(store, manifest, entries, ranks if one_stage else None)
    found = _undescribed(store, entries, chosen, _Asked(step, pattern, ranks, one_stage=one_stage, each=each))
    if manifest is None:
        of_rank = found.kind == "Ranks" and len(found.by_rank) == 1 and rank_of(parent_and_name(store.url)[1]) is not None
        return with_listing(found, store, storage_options, ignored=not anything) if of_rank else found
    unified = found.kind != "Ranks" and output_of(manifest.options).whole
    if unified and {record.path for record in manifest.files}.issuperset(found.by_rank.values()):
        refuse_partial(manifest, store.url)
    return _with_manifest(found, store, manifest)


def _find_boxes(
    store: ReadStore,
    entries: Sequence[Stat],
    manifest: Manifest | None,
    source_format: str | None,
    wanted: Callable[[str], bool] | None,
) -> Files | None:
    """Return the files of a checkpoint in the folder whose own metadata locates its shards."""
    names = [entry.name for entry in entries if not entry.is_folder]
    if manifest is not None and (source_format is not None or detect(names) is not None):
        refuse_partial(manifest, store.url)
    boxed = find_boxed(store, names, source_format, wanted=wanted)
    if boxed is None:
        return None
    if source_format is None:
        _refuse_rank_folders(store, entries, boxed.format)
    if manifest is None:
        return _boxed(boxed)
    check_described(store, manifest, entries)
    return _boxed(boxed)._replace(notes=(), layout=manifest.layout)  # the manifest states what the format does not


def _refuse_rank_folders(store: ReadStore, entries: Sequence[Stat], format_name: str) -> None:
    """Refuse a folder that also contains checkpoint files in the folders of ranks.

    Raises:
        RequestError: it does.
    """
    folders = [entry.name for entry in entries if entry.is_folder and rank_of(entry.name) is not None]
    for folder, held in zip(folders, store.list_folders(folders), strict=True):
        if any(not entry.is_folder and is_candidate(entry.name) for entry in held):
            raise RequestError(
                "AmbiguousFiles",
                f"the folder contains both a {format_name} checkpoint and rank folders with checkpoint files, such as {folder}",
                where=store.url,
                fix=f"select the {format_name} checkpoint with --source-format {format_name} (spec.source.format), or the rank"
                " files with --files (spec.source.files.pattern)",
            )


def _boxed(found: Boxed) -> Files:
    return Files(dict(enumerate(found.paths)), found.checkpoint.notes, kind="Boxes", described=True, boxed=found)


def _undescribed(store: ReadStore, entries: Sequence[Stat], chosen: str | None, asked: _Asked) -> Files:
    """Return the files by their names or an index, without a manifest."""
    anything = asked.step is None and asked.pattern is None
    names = [entry.name for entry in entries if not entry.is_folder and not entry.name.startswith(".")]
    folders = {} if chosen is not None else rank_folders((entry.name for entry in entries if entry.is_folder), store.url)
    if any(map(is_candidate, names)) and not all(folder.startswith("rank_") for folder in folders.values()):
        folders = {}
    if map_name := chosen or (choose_map(names, store.url) if anything else None):
        return _mapped(store, map_name, names, folders=bool(folders), chosen=chosen is not None)
    if folders:
        return _of_folders(store, folders, asked)
    if not any(map(is_candidate, names)):
        raise _nothing(store, entries)
    return _of_one_folder(names, store.url, asked)


def _with_manifest(found: Files, store: ReadStore, manifest: Manifest) -> Files:
    """Add information from a manifest to files that were selected otherwise, as far as they are unchanged since."""
    wanted = [path for path in found.by_rank.values() if manifest.may_be_slices or is_hyper(path)]
    own = listed_and_unchanged(store, manifest, wanted)
    return found._replace(own=own, may_be_slices=manifest.may_be_slices if own else ())


def with_listing(found: Files, store: ReadStore, storage_options: StorageOptions | None, *, ignored: bool) -> Files:
    """Add information from the manifest that lists the one selected file, if the file has not changed since.

    Args:
        found: the file.
        store: folder of the file.
        storage_options: options of the object store, if the folder is in one.
        ignored: whether the request selects files, so that the manifest does not say which ranks belong together.
    """
    ((rank, path),) = found.by_rank.items()
    listing = find_listing(store, path, storage_options)
    if listing is None or not listed_and_unchanged(*listing[:2], [listing[2].path]):
        return found
    _, manifest, record = listing
    found = found._replace(own=frozenset((path,)), may_be_slices=manifest.may_be_slices)
    return found if ignored else found._replace(**_ranks_in(manifest), written_as={rank: record.rank})


def _ranks_in(manifest: Manifest) -> dict[str, Any]:
    """Return the fields of `Files` about the ranks of a checkpoint. Empty if its files are not those of ranks."""
    output = output_of(manifest.options)
    if output.whole:
        return {}
    parameters = ParameterTable() if output.one_stage or output.each_file else manifest.parameters
    layout = None if output.one_stage or output.each_file else manifest.layout
    return {"parameters": parameters, "total": manifest.target_ranks, "some": manifest.source.some, "layout": layout}


class _Asked(NamedTuple):
    """Criteria of the selection of files, see `find_files`."""

    step: int | None
    pattern: str | None
    ranks: range | None
    one_stage: bool
    each: bool


def _described(store: ReadStore, manifest: Manifest, entries: Sequence[Stat], ranks: range | None) -> Files:
    """Return the files that a manifest lists, or only those of `ranks`."""
    paths = paths_of(manifest, store.url)
    check_described(store, manifest, entries)
    own, slices = frozenset(paths.values()), manifest.may_be_slices
    if output_of(manifest.options).whole:
        # The names of unified files state which parameters a strategy names. Those for Hugging Face libraries do not.
        kind: Kind = "Unified" if all(map(is_part, own)) else "Sharded"
        return Files(paths, kind=kind, described=True, own=own, may_be_slices=slices)
    wanted = {rank: path for rank, path in paths.items() if ranks is None or rank in ranks}
    found = Files(wanted, ranks=_count(paths), described=True, own=own, may_be_slices=slices)._replace(**_ranks_in(manifest))
    return found._replace(manifest=manifest) if found.parameters.records and found.total > 1 else found


def _mapped(store: ReadStore, map_name: str, names: Sequence[str], *, folders: bool, chosen: bool) -> Files:
    """Return the files that an index lists."""
    if folders and not chosen:
        raise RequestError(
            "AmbiguousFiles",
            f"the folder contains both rank folders and a unified checkpoint ({map_name})",
            where=store.url,
            fix=f"use {map_name} as the source, or select rank files with --step or --files (spec.source.files)",
        )
    mapped = read_map(store.read(map_name, _LARGEST_MAP), f"{store.url}/{map_name}")
    single = next((single_file_of(name) for name in names if is_map(name) and single_file_of(name) in names), None)
    if single is not None and not chosen and single not in mapped.values():
        raise RequestError(
            "AmbiguousFiles",
            f"the folder contains both {single} and {map_name}; Hugging Face libraries read {single} and ignore the index",
            where=store.url,
            fix=f"use one of them as the source: {store.url}/{single} or {store.url}/{map_name}",
        )
    files = files_of(mapped, names, map_name, store.url)
    kind: Kind = "Unified" if map_name == MAP_NAME else "Sharded"
    return Files(dict(enumerate(files)), kind=kind, mapped=mapped, described=True)


def _of_folders(store: ReadStore, folders: Mapping[int, str], asked: _Asked) -> Files:
    """Return the files in the folders of ranks, or one level below."""
    ranks = asked.ranks
    wanted = {rank: folder for rank, folder in sorted(folders.items()) if not asked.one_stage or ranks is None or rank in ranks}
    listed = dict(zip(wanted, store.list_folders(list(wanted.values())), strict=True))
    paths = {rank: _files_in(folder, listed[rank]) for rank, folder in wanted.items()}
    notes: tuple[str, ...] = ()
    if not any(is_candidate(path) for found in paths.values() for path in found):
        paths = _below(store, wanted, listed, asked.pattern)
    if wanted and not next(iter(wanted.values())).startswith("rank_"):
        notes = (f"ranks are taken from the folder names: {next(iter(wanted.values()))} is read as rank {next(iter(wanted))}",)
    selected = select_files(paths, step=asked.step, pattern=asked.pattern, expected=ranks)
    return _selected(selected, notes, _count(folders))


def _of_one_folder(names: Sequence[str], where: str, asked: _Asked) -> Files:
    """Return the files of all ranks, the files of whole tensors, or the one file, in a folder without subfolders of ranks."""
    step, pattern, ranks = asked.step, asked.pattern, asked.ranks
    fitting = [name for name in names if is_candidate(name, pattern)]
    numbered = ranks_of_files(fitting)
    if len(numbered) > 1 and (asked.each or (ranks is not None and len(ranks) > 1)):
        if asked.one_stage and ranks is not None:
            numbered = {rank: found for rank, found in numbered.items() if rank in ranks}
        selected = select_files(numbered, step=step, pattern=pattern, expected=ranks)
        note = f"ranks are taken from the file names: {preview(selected.files.values())}"
        return _selected(selected, (note,), _count(ranks_of_files(fitting)))
    if len(numbered) > 1 and sorted(numbered) == list(range(len(numbered))):
        raise RequestError(
            "SourceStrategyMissing",
            f"the file names refer to ranks {format_ranks(tuple(numbered))} ({preview(fitting)}),"
            " but no strategy describes how these ranks shard the parameters",
            where=where,
            fix="specify the strategy that the source was trained with (--source-strategy, spec.source.strategy)",
        )
    if step is None and (found := shards(fitting, where)):
        note = f"model.safetensors.index.json does not exist; the tensors of all {len(found)} files are read"
        return Files(dict(enumerate(found)), (note,), kind="Sharded", described=True)
    if pattern is None and any(map(is_part, fitting)):
        raise MissingInputError(
            "FileMissing",
            f"the folder contains files of a unified checkpoint ({preview(fitting)}), but {MAP_NAME} is missing",
            where=where,
            fix=f"restore {MAP_NAME}",
        )
    return _selected(select_files({0: list(names)}, step=step, pattern=pattern), (), 1)


def _selected(selected: Selection, notes: tuple[str, ...], ranks: int | None) -> Files:
    return Files(selected.files, notes + selected.notes, ranks=ranks, step=selected.step, older=selected.older)


def _files_in(folder: str, entries: Iterable[Stat]) -> list[str]:
    return [f"{folder}/{entry.name}" for entry in entries if not entry.is_folder]


def _below(
    store: ReadStore, folders: Mapping[int, str], listed: Mapping[int, Sequence[Stat]], pattern: str | None
) -> dict[int, list[str]]:
    """Return the files one level below the folders of ranks, as in rank_0/ckpt/.

    Raises:
        RequestError: a rank has several folders with checkpoint files.
    """
    inner = [(rank, f"{folders[rank]}/{entry.name}") for rank in folders for entry in listed[rank] if entry.is_folder]
    paths: dict[int, list[str]] = {rank: [] for rank in folders}
    for (rank, folder), entries in zip(inner, store.list_folders([folder for _, folder in inner]), strict=True):
        paths[rank] += [path for path in _files_in(folder, entries) if is_candidate(path, pattern)]
    names = {path.split("/")[1] for found in paths.values() for path in found}
    if len(names) > 1:
        raise RequestError(
            "AmbiguousFiles",
            f"the rank folders contain several checkpoints: {preview(names)}",
            where=store.url,
            fix=f"select one with --files '*/{min(names)}/*' (spec.source.files.pattern)",
        )
    return paths


def _nothing(store: ReadStore, entries: Sequence[Stat]) -> MissingInputError:
    """Return the error for a folder without checkpoint files.

    Raises:
        RequestError: the folder contains a checkpoint whose files belong together.
    """
    if store.stat("") is None:
        return MissingInputError("SourceMissing", "no such folder", where=store.url, fix=_WHERE_RANKS_ARE)
    if (found := detect([entry.name for entry in entries if not entry.is_folder])) is not None:
        raise RequestError(
            "UnsupportedSource",
            f"the folder contains a checkpoint of the format {found.name}, of which single files cannot be selected",
            where=store.url,
            fix="use the folder as the source of `reshard transform`, without --step and --files (spec.source.files)",
        )
    inner = [entry.name for entry in entries if entry.is_folder and not entry.name.startswith(".")][:_MOST_FOLDERS]
    holding = folders_with_checkpoints(store, inner)
    what = "the folder contains no rank_<r> folder and no .ckpt or .safetensors file"
    fix = f"specify a folder that contains a checkpoint, such as {store.url}/{holding[0]}" if holding else _WHERE_RANKS_ARE
    return MissingInputError("SourceMissing", what, where=store.url, fix=fix)


def _count(ranks: Collection[int]) -> int | None:
    return len(ranks) if ranks and max(ranks) == len(ranks) - 1 else None
