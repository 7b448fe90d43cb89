"""The commands for layout files. See `reshard.cli.commands` for the imports."""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cloup

from reshard.cli import console
from reshard.cli.arguments import PATH, request_of, storage_options_of
from reshard.cli.options import options
from reshard.errors import UsageError

if TYPE_CHECKING:
    from reshard.storage.protocol import Store
    from reshard.strategy.file import Form
    from reshard.transform.resolved import ResolvedCheckpoint

_FILE = cloup.argument("file", type=PATH, metavar="FILE", help="Layout file.")


@cloup.group()
def layout() -> None:
    """Show, check and export layout files.

    A layout file describes the sharding of a model in some lines. It can be used wherever a strategy is accepted.
    """


@layout.command("show")
@_FILE
@options("layout-show")
def show_layout(file: str, as_json: bool, **storage_options: Any) -> None:
    """Show the mesh, the rules and the pipeline stages of a layout file."""
    from reshard.cli import layout_tables
    from reshard.source.strategies import read_layout_file

    layout_tables.show(read_layout_file(file, storage_options_of(storage_options)).document, as_json=as_json)


@layout.command("check")
@_FILE
@options("layout-check")
def check_layout(file: str, as_json: bool, **arguments: Any) -> None:
    """Apply a layout file to the parameters of a checkpoint, and show what each rank would hold.

    Nothing is written, and only headers are read. The command fails if no rule matches a parameter.
    """
    from reshard.cli import layout_tables
    from reshard.mesh.resolve import refuse_unmatched

    found = _resolved(file, arguments)
    unmatched = found.resolved.unmatched
    if not (as_json and unmatched):  # standard output then contains only the error
        layout_tables.checked(found, as_json=as_json)
    refuse_unmatched(unmatched, found.file.name, len(unmatched))


@layout.command("export")
@_FILE
@options("layout-export")
def export_layout(file: str, output: str, form: Form, as_json: bool, **arguments: Any) -> None:
    """Write the MindSpore strategy files that a layout file describes, one for each pipeline stage.

    The files are `stage_<n>.ckpt` or `stage_<n>.json`. MindSpore reads them like those of its compiler.
    """
    from reshard.storage import open_store
    from reshard.strategy import dump
    from reshard.transform.resolved import strategy_files

    found = _resolved(file, arguments)
    extension = "json" if form == "json" else "ckpt"
    contents = {f"{made.name}.{extension}": dump(made, form) for made in strategy_files(found)}
    store = open_store(output, storage_options_of(arguments))
    _refuse_others(store, contents, output)
    for name, content in contents.items():
        store.write(name, content, mode=None)
    counts = [len(stage) for stage in found.resolved.strategy.stages]
    if as_json:
        files = [{"path": name, "stage": i, "parameters": n} for i, (name, n) in enumerate(zip(contents, counts, strict=True))]
        console.out_json({"ranks": found.file.document.ranks, "files": files})
        return
    for note in found.notes:
        console.out(f"note: {note}")
    for name, count in zip(contents, counts, strict=True):
        console.out(f"wrote {output.rstrip('/')}/{name}: {count} parameters")


def _resolved(file: str, arguments: dict[str, Any]) -> ResolvedCheckpoint:
    from reshard.transform.resolved import resolve_checkpoint

    return resolve_checkpoint(request_of({**arguments, "target": arguments["source"]}), file)


def _refuse_others(store: Store, contents: dict[str, bytes], where: str) -> None:
    """Refuse a folder that contains other strategy files, because Reshard and MindSpore would read them together.

    Raises:
        UsageError: there are such files, or a file would be replaced.
    """
    folder = store.stat("")
    for entry in store.list("") if folder is not None and folder.is_folder else []:
        same = entry.size == len(contents.get(entry.name, b"")) and store.read(entry.name, entry.size) == contents[entry.name]
        if entry.name.endswith((".ckpt", ".json")) and not same:
            raise UsageError(
                "FileExists",
                f"the folder contains another strategy file, {entry.name}",
                where=where,
                fix="choose an empty folder, or delete the file",
            )
