"""Checks before anything is read: options and format, the locations, the copy mode, and the free space of the target."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.manifest import STATE
from reshard.checkpoint.unified import is_own
from reshard.errors import OutputError, RequestError, UsageError
from reshard.formats.registry import requested_output
from reshard.plan.passes import equal_targets
from reshard.spec.request import Options, Request, request_key
from reshard.storage import open_store, without_links
from reshard.target.folder import TargetFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reshard.engine.task import Task
    from reshard.storage.protocol import Store
    from reshard.transform.inputs import Inputs


def with_output(request: Request) -> Request:
    """Return a request with the output that its format implies, after a check of its options.

    Raises:
        RequestError: the format is unknown.
        UsageError: an option does not apply to the format or to the output.
    """
    options, usual = request.options, Options()
    output = requested_output(request_key(request), "")
    if options.output == usual.output and options.output not in output.outputs:
        options = msgspec.structs.replace(options, output=output.outputs[0])
        request = msgspec.structs.replace(request, options=options)
    if options.kind.writes_files and options.output not in output.outputs:
        what = f"the output {options.output} does not apply to the format {options.format}"
        raise UsageError("InvalidOption", what, where="output", fix="omit the output, or use another format")
    if options.max_file_size_bytes is not None and not options.kind.whole:
        raise UsageError(
            "InvalidOption",
            "only unified checkpoints have a maximum file size",
            where="max_file_size_bytes",
            fix="omit it, or add --output unified (spec.target.output: Unified)",
        )
    refused = {
        "copy_settings": not output.has_settings,
        "crc": output.crc is None,
        "file_prefix": output.names_files,
        "numbered": output.names_files,
        "write_strategy": output.names_files,
    }
    for name, is_refused in refused.items():
        if is_refused and getattr(options, name) != getattr(usual, name):
            what = f"it does not apply to the format {options.format}"
            raise UsageError("InvalidOption", what, where=name, fix="omit it, or use another format")
    return request


def open_target(inputs: Inputs) -> TargetFolder:
    """Open the target of a request, after a check of the locations and of the copy mode.

    Raises:
        RequestError: source and target overlap, or the server cannot copy as requested.
    """
    request = inputs.request
    store = open_store(request.target, request.storage_options.target)
    _check_places(inputs, store)
    _check_copy_mode(inputs, store)
    return TargetFolder(store, request.options.file_mode)


def _check_places(inputs: Inputs, store: Store) -> None:
    """Refuse a target that is, contains, or is inside the source. A folder that is mounted in two places counts as one folder.

    Raises:
        RequestError: source and target overlap.
    """
    request, storage_options = inputs.request, inputs.request.storage_options
    source, target = inputs.opened.place.around(), store.around()
    if source[0] in target or target[0] in source:
        raise RequestError(
            "TargetOverlapsSource",
            f"the target and the source ({request.source}) are the same folder, or one contains the other",
            where=request.target,
            fix="choose a target outside the source",
        )
    _refuse_links(request.target)
    for strategy, reached in (
        (request.source_strategy, storage_options.source_strategy or storage_options.source),
        (request.target_strategy, storage_options.target_strategy or storage_options.target),
    ):
        if not isinstance(strategy, str) or target[0] not in (around := open_store(strategy, reached).around()):
            continue
        inside = without_links(strategy).split("/")[-around.index(target[0]) :]
        if inside[0].startswith((STATE, "rank_")):
            raise RequestError(
                "TargetOverlapsSource",
                "the strategy file is in a folder that the transform writes to",
                where=strategy,
                fix="move the strategy file, or choose another target",
            )


def _check_copy_mode(inputs: Inputs, target: Store) -> None:
    """Refuse a copy by the server if it is not possible.

    Raises:
        RequestError: source and target are not on one server with the same credentials, or the request requires values that only
            a process that reads all data can calculate.
    """
    request = inputs.request
    if request.options.copy_mode == "Client":
        return
    what = None
    if not target.copies_from(inputs.opened.store):
        what = "source and target are not in the same object store, accessed with the same endpoint and credentials"
    elif request.options.crc:
        what = "a CRC32 is requested, which requires reading every byte"
    elif request.decryption is not None or request.encryption is not None:
        what = "encryption and decryption require reading every byte"
    if what is not None:
        fix = "omit --copy-mode server (spec.target.copyMode: Server)"
        raise RequestError("CannotCopy", what, where="copy mode", fix=fix)


def _refuse_links(target: str) -> None:
    """Refuse links in a target: data written through a link ends up elsewhere, perhaps in the source."""
    with contextlib.suppress(OSError), os.scandir(target) as entries:
        for entry in entries:
            if entry.is_symlink() and (entry.name.startswith(("rank_", STATE)) or is_own(entry.name)):
                raise RequestError(
                    "TargetIsLink",
                    "the path is a symbolic link",
                    where=entry.path,
                    fix="delete the link, or choose another target",
                )


def bytes_to_write(task: Task, sizes: Mapping[int, int], ranks: Sequence[int], *, linked: bool) -> int:
    """Return the number of bytes that the files of these ranks take, where equal files count once if they are linked."""
    written = [equal[0] for equal in equal_targets(task.planner, ranks)] if linked and task.cipher is None else ranks
    return sum(sizes[rank] for rank in written)


def check_space(target: Store, nbytes: int) -> None:
    """Refuse to write more than the free space.

    Raises:
        OutputError: the target has not enough free space.
    """
    free = target.free_bytes()
    if free is not None and free < nbytes:
        raise OutputError(
            "NotEnoughSpace",
            f"the transform writes {nbytes} bytes, but only {free} bytes are free",
            where=target.url,
            fix="free or add space, or choose another target",
        )
