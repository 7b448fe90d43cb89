"""Transform individual files outside of a checkpoint directory. Nothing else is written next to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from reshard.engine.memory import budget, default_workers
from reshard.engine.rankfile import write_alone
from reshard.errors import RequestError
from reshard.progress import Silent
from reshard.source.files import Files, refuse_part
from reshard.source.finding import with_listing
from reshard.source.listing import refuse_exchanged
from reshard.source.single import refuse_more_ranks, refuse_one_of_several
from reshard.storage import open_store, root_and_path
from reshard.transform.inputs import decrypted, strategies_of
from reshard.transform.prepare import prepare_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reshard.engine.task import Task
    from reshard.spec.request import Request

_FIX = (
    "pass the files of all ranks, with the source strategy; if this rank has whole parameters, use `reshard transform` with"
    " --allow-single-rank"
)


def prepare_standalone(request: Request, files: Mapping[int, str], *, only: int | None = None) -> Task:
    """Prepare the task that creates a target from individual files in one store, which becomes the source of the request.

    Args:
        request: request of the transform.
        files: source files by rank.
        only: target rank to write, from the files that it needs. None means all.

    Raises:
        DataError, MissingInputError, RequestError: files or strategies are damaged, missing, or do not match.
        StorageError: a file cannot be read.
    """
    root, paths = _in_one_storage(files)
    request = msgspec.structs.replace(request, source=root)
    opened, strategies = open_store(root), strategies_of(request)
    if not request.options.kind.each_file:
        ranks = range(1) if strategies[0] is None else strategies[0].numbers
        refuse_exchanged(files, "list the files in the order of their ranks: rank_2 before rank_10", exact=len(ranks) > 1)
        first, any_path = next(iter(paths.items()))
        listed = with_listing(Files({first: any_path}), opened, None, ignored=False)
        refuse_part(listed._replace(by_rank=paths), len(ranks), any_path, fix=_FIX)
        if len(ranks) == 1 and len(paths) == 1:
            refuse_one_of_several(opened, any_path, fix=_FIX)
        elif len(ranks) > 1:
            refuse_more_ranks(opened, any_path, ranks)
    store = decrypted(opened, request)
    return prepare_files(request, store, Files(paths), strategies, Silent(), workers=default_workers(), only=only)


def write_standalone(task: Task, urls: Mapping[int, str], *, at_once: int = 1) -> None:
    """Write and verify the files of target ranks, one after the other.

    Args:
        task: task that creates the ranks.
        urls: target files by rank.
        at_once: number of processes that do this concurrently and share the memory.

    Raises:
        ReshardError: a file cannot be written, see `write_alone`. It was deleted, and the files before it are kept.
    """
    share = budget(at_once)
    for rank, url in urls.items():
        write_alone(task, rank, url, share=share)


def refuse_own_files(read: Iterable[str], written: Iterable[str]) -> None:
    """Refuse to overwrite source files.

    Raises:
        RequestError: a file is both read and written.
    """
    own = {open_store(path).around()[0] for path in read}
    for path in written:
        if open_store(path).around()[0] in own:
            raise RequestError(
                "TargetOverlapsSource",
                "the target file is one of the source files",
                where=path,
                fix="choose a target file that is not one of the source files",
            )


def _in_one_storage(files: Mapping[int, str]) -> tuple[str, dict[int, str]]:
    """Return the URL of the store of all files, and their paths in it.

    Raises:
        RequestError: there are no files, or they are in several stores.
    """
    found = {int(rank): root_and_path(url) for rank, url in files.items()}
    roots = {root for root, _ in found.values()}
    if len(roots) != 1:
        what = (
            f"the source files are in several storages: {', '.join(sorted(roots))}"
            if roots
            else "the list of source files is empty"
        )
        fix = "list the files of rank_list_for_transform, either all in one bucket or all on local file systems"
        raise RequestError("MixedStorage", what, where="checkpoint_files_map", fix=fix)
    return roots.pop(), {rank: path for rank, (_, path) in found.items()}
