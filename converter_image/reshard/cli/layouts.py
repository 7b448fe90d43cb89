"""The commands for layout files. See `reshard.cli.commands` for the imports."""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from reshard.cli import console
from reshard.cli.arguments import PATH, request_of, storage_options_of
from reshard.cli.help import READ, Group
from reshard.cli.options import options
from reshard.errors import UsageError

if TYPE_CHECKING:
    from reshard.mesh.file import LayoutFile
    from reshard.mesh.infer import Inferred
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import Store
    from reshard.strategy.file import Form
    from reshard.transform.resolved import ResolvedCheckpoint

_FILE = click.argument("file", type=PATH, metavar="FILE", help="Layout file.")


@click.group(cls=Group, section=READ)
def layout() -> None:
    """Show, check, export, infer and derive layout files.

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
    from reshard.mesh.problems import raise_all

    found = _resolved(file, arguments)
    refusals = found.resolved.refusals
    if not (as_json and refusals):  # standard output then contains only the error
        layout_tables.checked(found, as_json=as_json)
    raise_all(refusals)


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


@layout.command("infer")
@click.argument("strategy", type=PATH, metavar="STRATEGY", help="Strategy file, or directory with one file per pipeline stage.")
@options("layout-infer")
def infer_layout(strategy: str, mesh: str, checkpoint: str | None, output: str, as_json: bool, **storage_options: Any) -> None:
    """Write the first draft of a layout file from a strategy.

    The file leads to the same slices as the strategy. Its comments state what is ambiguous if the mesh changes.
    """
    from reshard.mesh.infer import infer
    from reshard.source.strategies import read_strategy
    from reshard.spec.request import Request
    from reshard.spec.storage_options import RequestStorageOptions
    from reshard.transform.resolved import read_parameters

    chosen, tensors = storage_options_of(storage_options), None
    if checkpoint is not None:
        both = RequestStorageOptions(source=chosen, target=chosen)
        parameters, _ = read_parameters(Request(checkpoint, checkpoint, strategy, storage_options=both))
        tensors = parameters.tensors
    found = infer(read_strategy(strategy, chosen), mesh, strategy, tensors)
    _write_inferred(found, output, chosen, as_json=as_json)


@layout.command("derive")
@click.argument(
    "strategy",
    type=PATH,
    required=False,
    help="Strategy of the source: a file, a directory, or a layout file. Default: metadata or manifest of the checkpoint.",
)
@options("layout-derive")
def derive_layout(strategy: str | None, layout: str | None, output: str, as_json: bool, **arguments: Any) -> None:
    """Derive the layout file of a target from the sharding of its source.

    The same axes divide the same dimensions, with the sizes of the target. What the source does not show is refused, with the
    rule that answers it. Checkpoints whose metadata locates the slices, as those of PyTorch and MindFormers, need no strategy.
    """
    from reshard.mesh.infer import with_derived_rules
    from reshard.mesh.problems import raise_all
    from reshard.transform.resolved import Witness, resolve_checkpoint

    options_of_witness = ("witness", "witness_mesh", "witness_expert_mesh")
    meshes = {name: arguments.pop(name) for name in ("mesh", "source_mesh")}
    witness, mesh, expert_mesh = (arguments.pop(name) for name in options_of_witness)
    chosen = storage_options_of(arguments)
    if (witness is None) != (mesh is None) or (expert_mesh is not None and witness is None):
        raise UsageError("Usage", "--witness and --witness-mesh belong together", where="--witness", fix="specify both")
    file = _derivation(layout, meshes, chosen)
    request = request_of({**arguments, "source_strategy": strategy, "target": arguments["source"]})
    found = resolve_checkpoint(request, file, None if witness is None else Witness(witness, mesh, expert_mesh))
    raise_all(found.resolved.refusals)
    made = with_derived_rules(file.document, found.resolved, found.tensors, file.name)
    _write_inferred(replace(made, notes=(*found.notes, *made.notes)), output, chosen, as_json=as_json)


def _derivation(layout: str | None, meshes: dict[str, str | None], storage_options: StorageOptions) -> LayoutFile:
    """Return the layout file of a derivation, with the meshes of the command line.

    Raises:
        UsageError: a mesh is missing, or a field is invalid.
    """
    import msgspec

    from reshard.mesh.file import LayoutFile
    from reshard.source.strategies import read_layout_file
    from reshard.spec.layout import API_VERSION, parse_layout

    content: dict[str, Any] = {"apiVersion": API_VERSION}
    if layout is not None:
        content = msgspec.to_builtins(read_layout_file(layout, storage_options).document)
    if meshes["mesh"] is not None:
        content["mesh"] = meshes["mesh"]
    if meshes["source_mesh"] is not None:
        content["derive"] = content.get("derive", {}) | {"sourceMesh": meshes["source_mesh"]}
    for field, option in (("mesh", "--mesh"), ("derive", "--source-mesh")):
        if field not in content:
            fix = f"add {option}, or --layout with a file that has `{field}`"
            raise UsageError("Usage", f"the {option[2:].replace('-', ' ')} is not specified", where=option, fix=fix)
    name = layout or "the derived layout"
    return LayoutFile(parse_layout(content, name), name)


def _write_inferred(found: Inferred, output: str, storage_options: StorageOptions, *, as_json: bool) -> None:
    """Write a layout file that was inferred. An existing file is not replaced.

    Raises:
        UsageError: another file exists.
    """
    from reshard.mesh.render import rendered
    from reshard.storage import open_store, parent_and_name

    content = rendered(found.document, found.comments).encode()
    folder, name = parent_and_name(output)
    store = open_store(folder, storage_options)
    existing = store.stat(name)
    if existing is not None and (existing.is_folder or store.read(name, existing.size) != content):
        raise UsageError("FileExists", "the file exists", where=output, fix="choose another name, or delete the file")
    store.write(name, content, mode=None)
    if as_json:
        console.out_json({"path": output, "rules": len(found.document.rules), "notes": list(found.notes)})
        return
    for note in found.notes:
        console.out(f"note: {note}")
    count = len(found.document.rules)
    console.out(f"wrote {output}: {count} rule{'s' if count > 1 else ''}")


def _resolved(file: str, arguments: dict[str, Any]) -> ResolvedCheckpoint:
    from reshard.source.strategies import read_layout_file
    from reshard.transform.resolved import resolve_checkpoint

    request = request_of({**arguments, "target": arguments["source"]})
    return resolve_checkpoint(request, read_layout_file(file, request.storage_options.target))


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
