"""From `.ckpt` to safetensors and back, file by file."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import MissingInputError, UsageError
from reshard.mindspore.arguments import path_of, workers_of
from reshard.mindspore.errors import documented
from reshard.source.files import open_source
from reshard.spec.request import Options, RenameRule, Request
from reshard.transform.loose import prepare_loose, write_loose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.spec.request import OutputFormat

_SUFFIX: dict[OutputFormat, str] = {"Ckpt": ".ckpt", "Safetensors": ".safetensors"}


@documented()
def ckpt_to_safetensors(
    file_path: str,
    save_path: str | None = None,
    name_map: Mapping[str, str] | None = None,
    file_name_regex: str | None = None,
    processes_num: int = 1,
) -> None:
    """Write `.ckpt` files anew as safetensors.

    Unlike MindSpore's: every file is verified and appears whole; text is kept; two parameters that would have one name are an
    error, and so is a tree in which no file matches. As with MindSpore's, a file without parameters is an error;
    `reshard convert` sees the whole checkpoint, and takes one in which some ranks hold nothing.

    Args:
        file_path: a file, or a folder whose subfolders with names that begin with `rank` hold the files, all of which are
            converted.
        save_path: the folder to write to, with such subfolders if it is a tree; None: beside each file. What is there under a
            file's name is replaced.
        name_map: what parameters are called in the new files, by their names. Names that a file does not have are skipped.
        file_name_regex: convert only files in whose names this is found; of a single file in its path.
        processes_num: files at a time.

    Raises:
        ReshardError: also a TypeError (no path or number) or a ValueError (no such file, a damaged one, two parameters of one
            name). Files that were written before stay.
    """
    _convert(_tasks("Ckpt", "Safetensors", file_path, save_path, file_name_regex), "Safetensors", name_map, processes_num)


@documented()
def safetensors_to_ckpt(
    file_path: str,
    save_path: str | None = None,
    name_map: Mapping[str, str] | None = None,
    file_name_regex: str | None = None,
    processes_num: int = 1,
) -> None:
    """Write safetensors files anew as `.ckpt`. See `ckpt_to_safetensors`."""
    _convert(_tasks("Safetensors", "Ckpt", file_path, save_path, file_name_regex), "Ckpt", name_map, processes_num)


def _tasks(
    before: OutputFormat, after: OutputFormat, file_path: str, save_path: str | None, regex: str | None
) -> list[tuple[str, str]]:
    """The files to read, each with the one to write."""
    suffix, file_path = _SUFFIX[before], path_of(file_path, "file_path")
    save_path = None if save_path is None else path_of(save_path, "save_path")
    if save_path and os.path.splitext(save_path)[1]:
        raise UsageError(
            "InvalidPath",
            "the name has a suffix, so it is not a folder name",
            where=save_path,
            fix="pass a folder, or a name without a suffix",
        )
    store, name = open_source(file_path)
    target = (save_path or store.url).rstrip("/")
    if name is not None:
        found = [(file_path, target, name)] if name.endswith(suffix) and _matches(regex, file_path) else []
    else:
        ranks = sorted(entry.name for entry in store.list("") if entry.is_folder and entry.name.startswith("rank"))
        found = [
            (f"{store.url}/{rank}/{entry.name}", f"{target}/{rank}", entry.name)
            for rank in ranks
            for entry in sorted(store.list(rank), key=lambda entry: entry.name)
            if not entry.is_folder and entry.name.endswith(suffix) and _matches(regex, entry.name)
        ]
    if not found:
        matching = "" if regex is None else f" that matches {regex!r}"
        what = f"the path is neither a {suffix} file{matching} nor a folder with such files in rank folders"
        raise MissingInputError(
            "SourceMissing", what, where=file_path, fix=f"pass a {suffix} file, or the folder that contains rank_0, rank_1, ..."
        )
    return [(path, f"{folder}/{name.replace(suffix, _SUFFIX[after])}") for path, folder, name in found]


def _matches(regex: str | None, name: str) -> bool:
    return regex is None or re.search(regex, name) is not None


def _convert(tasks: list[tuple[str, str]], output: OutputFormat, name_map: Mapping[str, str] | None, processes_num: int) -> None:
    """Convert files, some at a time."""
    processes_num = workers_of(processes_num, "processes_num")
    with ThreadPoolExecutor(processes_num, thread_name_prefix="reshard-convert") as pool:
        futures = [pool.submit(_convert_file, source, target, output, name_map or {}, processes_num) for source, target in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _convert_file(source: str, target: str, output: OutputFormat, name_map: Mapping[str, str], at_once: int) -> None:
    request = Request(source=source, target=target, options=Options(format=output, output="Same"))
    job = prepare_loose(request, {0: source})
    rules = tuple(RenameRule(new, old) for old, new in name_map.items() if old in job.model.source_names)
    if rules:
        options = msgspec.structs.replace(request.options, rename=rules)
        job = prepare_loose(msgspec.structs.replace(request, options=options), {0: source})
    write_loose(job, {0: target}, at_once=at_once)
