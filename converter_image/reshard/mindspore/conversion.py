"""Convert `.ckpt` files to safetensors and back, one by one."""

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
from reshard.spec.request import Options, Request
from reshard.spec.rules import RenameRule
from reshard.transform.standalone import prepare_standalone, write_standalone

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
    """Convert `.ckpt` files to safetensors.

    Differences from MindSpore: every file is verified and appears atomically. Text is kept. Two parameters with one name are an
    error, and so is a folder in which no file matches. A file without parameters is an error, as in MindSpore. `reshard convert`
    reads the whole checkpoint, and accepts one in which some ranks hold nothing.

    Args:
        file_path: path of a file, or of a folder. All files in its subfolders whose names start with `rank` are converted.
        save_path: folder to write to, with the same subfolders. None means the folder of each file. Existing files with the same
            names are replaced.
        name_map: new names of parameters, by their old names. Names that a file does not contain are ignored.
        file_name_regex: regular expression to search in the names of files, or in the path of a single file. Other files are
            ignored.
        processes_num: number of files converted at a time.

    Raises:
        ReshardError: also a TypeError (an argument is not a path or number) or a ValueError (a file does not exist or is damaged,
            or two parameters have one name). Files that were already written remain.
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
    """Convert safetensors files to `.ckpt`. See `ckpt_to_safetensors`."""
    _convert(_tasks("Safetensors", "Ckpt", file_path, save_path, file_name_regex), "Ckpt", name_map, processes_num)


def _tasks(
    before: OutputFormat, after: OutputFormat, file_path: str, save_path: str | None, regex: str | None
) -> list[tuple[str, str]]:
    """Return the path of each file to read, and of the file to write."""
    suffix, file_path = _SUFFIX[before], path_of(file_path, "file_path")
    save_path = None if save_path is None else path_of(save_path, "save_path")
    if save_path and os.path.splitext(save_path)[1]:
        raise UsageError(
            "InvalidPath",
            "the name has a suffix, so it is not a folder name",
            where=save_path,
            fix="pass a folder, or a name without a suffix",
        )
    store, name, _ = open_source(file_path)
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
    task = prepare_standalone(request, {0: source})
    rules = tuple(RenameRule(new, old) for old, new in name_map.items() if old in task.model.source_names)
    if rules:
        options = msgspec.structs.replace(request.options, rename=rules)
        task = prepare_standalone(msgspec.structs.replace(request, options=options), {0: source})
    write_standalone(task, {0: target}, at_once=at_once)
