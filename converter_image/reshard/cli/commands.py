"""The commands. Each command calls a function of the library, and reports the result.

The library is imported when a command runs, so that help, completion and `--version` do not import numpy and the storages.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from reshard.cli import console, shells
from reshard.cli.arguments import DIRECTORY, PATH, directories, encryption_of, rank_in, request_of, storage_options_of, text_of
from reshard.cli.help import OTHER, READ, WRITE, Group, Option
from reshard.cli.layouts import layout
from reshard.cli.options import options
from reshard.cli.traces import exported
from reshard.errors import UsageError
from reshard.spec.outputs import OUTPUTS
from reshard.spec.ranks import format_ranks
from reshard.version import __version__

if TYPE_CHECKING:
    from reshard.cli import Invocation
    from reshard.spec.request import Request
    from reshard.telemetry import LogFormat
    from reshard.transform.run import Result

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_GLOBAL: dict[str, Any] = {"cls": Option, "group": "Global options"}


@click.group(cls=Group, context_settings=_CONTEXT)
@click.option(
    "--log-level",
    **_GLOBAL,
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    envvar="RESHARD_LOG_LEVEL",
    show_envvar=True,
    help="Minimum severity of log records. `info` logs each phase.",
)
@click.option(
    "--log-format",
    **_GLOBAL,
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="RESHARD_LOG_FORMAT",
    show_envvar=True,
    help="Format of log lines on standard error. With `json`, progress, notes and errors are log records too.",
)
@click.option("--debug", **_GLOBAL, is_flag=True, help="Print a traceback if the command fails.")
@click.version_option(__version__, **_GLOBAL, message="%(prog)s %(version)s", prog_name="reshard")
@click.pass_obj
def cli(invocation: Invocation, debug: bool, log_level: str, log_format: LogFormat) -> None:
    """Convert sharded checkpoints from M ranks to N ranks, to another parallel layout, or to another format.

    Supported formats are MindSpore's .ckpt and safetensors, Hugging Face safetensors, PyTorch distributed checkpoints (DCP) and
    Megatron-core's torch_dist. torch.save files can be read, but not written.
    """
    invocation.debug = debug
    handler = console.LogHandler(log_level, log_format)
    invocation.telemetry.callback(handler.close)
    if invocation.is_program:
        from reshard.cli.heap import return_large_blocks

        return_large_blocks()
        invocation.telemetry.enter_context(exported(handler))


@cli.command(section=WRITE)
@options("transform")
@click.pass_obj
def transform(invocation: Invocation, /, rank_from: str | None, **arguments: Any) -> None:
    """Convert a checkpoint to other ranks, layouts or formats."""
    from reshard.cli import report

    if rank_from is not None:
        if arguments["only_ranks"] is not None:
            fix = "remove one of the two options"
            raise UsageError("RanksConflict", "--rank-from cannot be combined with --only-ranks", where="--rank-from", fix=fix)
        arguments["only_ranks"] = str(rank_in(rank_from))
    request = request_of(arguments)
    result = _transform(invocation, request, arguments, commit=not arguments["no_commit"], owner=arguments["owner"])
    report.transformed(request, result, as_json=arguments["as_json"])


@cli.command(section=WRITE)
@click.argument("source", type=PATH, metavar="SOURCE", help="Checkpoint directory or file to read.")
@click.argument("target", type=DIRECTORY, metavar="TARGET", help="Directory or file to write.")
@options("convert")
@click.pass_obj
def convert(invocation: Invocation, /, **arguments: Any) -> None:
    """Convert a checkpoint to another format, file by file.

    Files keep their relative paths. Only their extensions change.
    """
    from reshard.cli import report

    request = request_of({**arguments, "output": "Same"})
    report.transformed(request, _transform(invocation, request, arguments), as_json=arguments["as_json"])


@cli.command(section=WRITE)
@options("fetch")
@click.pass_obj
def fetch(invocation: Invocation, /, rank: int | None, rank_from: str | None, ranks_per_pod: int, **arguments: Any) -> None:
    """Write one or more target ranks to a directory or bucket.

    Each rank is written to DIR/rank_<r>/<prefix><r>.<format>, together with a manifest. Files that are up to date are kept.
    """
    from reshard.cli import report

    if rank is None and rank_from is None:
        raise UsageError("RankMissing", "no rank is specified", where="--rank", fix="add --rank or --rank-from")
    if rank is not None and rank_from is not None:
        fix = "remove one of the two options"
        raise UsageError("RanksConflict", "--rank-from cannot be combined with --rank", where="--rank-from", fix=fix)
    number = rank_in(rank_from) if rank_from is not None else rank or 0
    ranks = format_ranks(tuple(range(number * ranks_per_pod, (number + 1) * ranks_per_pod)))
    result = _transform(invocation, request_of({**arguments, "only_ranks": ranks}), arguments)
    report.fetched(ranks, result, as_json=arguments["as_json"])


@cli.command(section=WRITE)
@click.argument("resource", type=PATH, metavar="FILE.yaml", help="CheckpointTransform resource.")
@options("run")
@click.pass_obj
def run(invocation: Invocation, /, resource: str, workers: int | None, as_json: bool, **volumes: tuple[str, ...]) -> None:
    """Run a CheckpointTransform resource without a cluster."""
    from reshard.cli import report
    from reshard.spec.mounts import request_here
    from reshard.spec.resource import parse_resource
    from reshard.transform.plan import plan_transform
    from reshard.transform.pods import Pods

    spec = parse_resource(text_of(resource), resource)
    request = request_here(
        spec,
        claims=directories("--volume", volumes["volumes"]),
        config_maps=directories("--config-map", volumes["config_maps"]),
        secrets=directories("--secret", volumes["secrets"]),
    )
    if not spec.dry_run:
        report.transformed(request, _transform(invocation, request, {"workers": workers}), as_json=as_json)
        return
    execution = spec.execution
    pods = Pods(1, None) if execution.mode == "SinglePod" else Pods(execution.parallelism, execution.ranks_per_pod)
    with console.progress() as progress:
        planned = plan_transform(request, workers=workers, pods=pods, progress=progress, cancellation=invocation.cancellation)
    report.planned(planned, as_json=as_json)


@cli.command(section=READ)
@options("plan")
@click.pass_obj
def plan(
    invocation: Invocation,
    /,
    write: bool,
    parallelism: int,
    picture: bool,
    svg: str | None,
    parameters: tuple[str, ...],
    **arguments: Any,
) -> None:
    """Show what a transform would do.

    All checks that do not require writing files are run.
    """
    from reshard.cli import report
    from reshard.transform.plan import plan_transform
    from reshard.transform.pods import Pods

    picture = picture or (bool(parameters) and svg is None)
    if picture and arguments["as_json"]:
        fix = "write the picture to a file with --svg"
        raise UsageError("PictureInJson", "JSON output cannot be combined with a picture", where="--json", fix=fix)
    if (picture or svg is not None) and not OUTPUTS[arguments["output"]].writes_files:
        raise UsageError(
            "NothingToDraw", "the output index has no target ranks to draw", where="--output", fix="choose another output"
        )
    with console.progress() as progress:
        planned = plan_transform(
            request_of(arguments),
            workers=arguments["workers"],
            pods=Pods(parallelism),
            write=write,
            owner=arguments["owner"],
            progress=progress,
            cancellation=invocation.cancellation,
        )
    drawn = report.picture(planned, parameters) if picture else ""
    if svg is not None:
        report.write_svg(planned, parameters, svg)
    report.planned(planned, as_json=arguments["as_json"])
    console.draw(drawn)


@cli.command(section=WRITE)
@click.argument("target", type=DIRECTORY, metavar="DIR", help="Directory or s3://bucket/prefix of the checkpoint.")
@options("commit")
@click.pass_obj
def commit(
    invocation: Invocation, /, target: str, only_ranks: str | None, owner: str | None, as_json: bool, **storage_options: Any
) -> None:
    """Complete a checkpoint that was written with --no-commit."""
    from reshard.cli import report
    from reshard.target.parts import final_notes
    from reshard.transform.complete import commit_checkpoint

    with console.progress() as progress:
        manifest = commit_checkpoint(
            target,
            ranks=only_ranks,
            owner=owner,
            storage_options=storage_options_of(storage_options),
            cancellation=invocation.cancellation,
        )
        for note in final_notes(manifest):
            progress.note(note)
    report.committed(target, manifest, as_json=as_json)


@cli.command(section=READ)
@click.argument("target", type=DIRECTORY, metavar="DIR", help="Directory or s3://bucket/prefix of the checkpoint.")
@options("verify")
@click.pass_obj
def verify(invocation: Invocation, /, target: str, workers: int | None, as_json: bool, **storage_options: Any) -> None:
    """Compare the files of a checkpoint with its manifest."""
    from reshard.cli import report
    from reshard.transform.verify import verify_checkpoint

    with console.progress() as progress:
        result = verify_checkpoint(
            target,
            storage_options=storage_options_of(storage_options),
            workers=workers,
            progress=progress,
            cancellation=invocation.cancellation,
        )
    report.verified(result, as_json=as_json)


@cli.command(section=READ)
@click.argument("path", type=PATH, metavar="PATH", help="Checkpoint directory, file, or s3://bucket/prefix.")
@options("inspect")
@click.pass_context
def inspect(context: click.Context, /, path: str, how: str | None, step: int | None, files: str | None, **arguments: Any) -> None:
    """Show the files and parameters of a checkpoint."""
    from reshard.cli import inspection

    if arguments["check_replicas"]:
        from reshard.cli import comparison

        if comparison.check_replicas(path, context.obj.cancellation, strategy=how, step=step, files=files, **arguments):
            context.exit(1)
        return
    inspection.inspect(
        path,
        strategy=how,
        step=step,
        pattern=files,
        parameters=arguments["parameters"],
        every=arguments["every"],
        as_json=arguments["as_json"],
        storage_options=storage_options_of(arguments),
        decryption=encryption_of(arguments, "decryption"),
    )


@cli.command(section=READ)
@click.argument("a", type=PATH, metavar="A", help="Checkpoint directory, file, or s3://bucket/prefix.")
@click.argument("b", type=PATH, metavar="B", help="Checkpoint to compare it with.")
@options("diff")
@click.pass_context
def diff(context: click.Context, /, a: str, b: str, **arguments: Any) -> None:
    """Compare the parameters of two checkpoints.

    Layouts, formats and numbers of ranks may differ. The exit code is 0 if all parameters are equal, and 1 if some differ.
    """
    from reshard.cli import comparison

    invocation: Invocation = context.obj
    if comparison.compare(a, b, invocation.cancellation, **arguments):
        context.exit(1)


@cli.group(section=READ)
def strategy() -> None:
    """Show and merge MindSpore strategy files."""


@strategy.command("show")
@click.argument("path", type=PATH, metavar="PATH", help="Strategy file, or directory with one file per pipeline stage.")
@options("strategy-show")
def show_strategy(path: str, as_json: bool) -> None:
    """Show the layout of each parameter in a strategy."""
    from reshard.cli import report
    from reshard.source.strategies import read_strategy

    report.strategy(read_strategy(path), as_json=as_json)


@strategy.command("merge")
@click.argument("folder", type=DIRECTORY, metavar="DIR", help="Directory with one strategy file per pipeline stage.")
@click.argument("file", type=PATH, metavar="FILE", help="File to write: JSON if its name ends with .json, otherwise protobuf.")
def merge_strategies(folder: str, file: str) -> None:
    """Merge the strategy files of all pipeline stages into one file."""
    from reshard.source.strategies import read_strategy_files
    from reshard.storage import open_store, parent_and_name
    from reshard.strategy import dump, merge

    merged = merge(read_strategy_files(folder))
    parent, name = parent_and_name(file)
    open_store(parent).write(name, dump(merged, "json" if file.endswith(".json") else "protobuf"), mode=None)
    console.out(f"wrote {file}: {len(merged.parameters)} parameters")


cli.add_command(layout)


@cli.command(hidden=True)
@click.argument("name", type=click.Choice(["plan", "ranks", "commit", "transform"]))
@click.pass_obj
def step(invocation: Invocation, name: str) -> None:
    """Run one step of a CheckpointTransform, in a pod of the operator."""
    from reshard.cli.step import run_step

    run_step(invocation, name)


@cli.command(section=OTHER)
@options("version")
def version(as_json: bool) -> None:
    """Show the version, the build and the environment.

    The commit and the date of the build are known only in container images.
    """
    from reshard.cli import report
    from reshard.version import describe

    report.version(describe(), as_json=as_json)


@cli.command(section=OTHER)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="Shell that the script is for.")
def completion(shell: str) -> None:
    """Print a shell completion script.

    The script completes commands, options, values and paths. To load it in each new shell, add a line to its configuration file:
    `source <(reshard completion bash)` to ~/.bashrc (bash 4.4 or newer), `source <(reshard completion zsh)` to ~/.zshrc after
    compinit, or `reshard completion fish | source` to ~/.config/fish/config.fish.

    Bash completes the value of an option after a space, but not after `=`.
    """
    console.draw(shells.script(cli, shell))


def _transform(
    invocation: Invocation, request: Request, arguments: dict[str, Any], *, commit: bool = True, owner: str | None = None
) -> Result:
    from reshard.transform.run import transform_checkpoint

    with console.progress() as progress:
        return transform_checkpoint(
            request,
            workers=arguments["workers"],
            commit=commit,
            owner=owner,
            progress=progress,
            cancellation=invocation.cancellation,
        )
