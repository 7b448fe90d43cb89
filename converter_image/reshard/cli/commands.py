"""The commands. Each turns its arguments into one call of the library, and the outcome into what people or programs read."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import inspection, pictures, show, words
from reshard.cli.access import access_of, access_options
from reshard.cli.arguments import PATH, Word, json_option, rank_in
from reshard.cli.fetch import fetch
from reshard.cli.keys import encryption_of, key_options
from reshard.cli.logs import Handler
from reshard.cli.options import convert_options, request_of, request_options
from reshard.cli.step import step
from reshard.cli.strategies import strategy
from reshard.errors import MissingInputError, UsageError
from reshard.spec.ranks import parse_ranks
from reshard.spec.resource import parse_resource, request_here
from reshard.spec.urls import local_path
from reshard.storage import open_store, parent_and_name
from reshard.target.parts import is_whole, notes_on_rules
from reshard.transform.complete import commit_checkpoint
from reshard.transform.plan import plan_transform
from reshard.transform.run import transform_checkpoint
from reshard.transform.verify import verify_checkpoint
from reshard.version import __version__

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import Manifest
    from reshard.cli.state import Invocation
    from reshard.spec.request import Request
    from reshard.telemetry import LogFormat
    from reshard.transform.plan import PlanResult
    from reshard.transform.run import Result

_SHOWN_RANKS = 16


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="reshard")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    envvar="RESHARD_LOG_LEVEL",
    show_envvar=True,
    help="Least severe log records to write. info: one line for each phase.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="RESHARD_LOG_FORMAT",
    show_envvar=True,
    help="Format of log lines on standard error. json: progress, notes and errors are log records too.",
)
@click.pass_obj
def cli(invocation: Invocation, debug: bool, log_level: str, log_format: LogFormat) -> None:
    """Reshard a checkpoint of M ranks to N: exact, verified, in bounded memory, at the speed of a copy."""
    invocation.debug = debug
    invocation.log_handler = Handler(log_level, log_format)


@cli.command()
@request_options
@click.option(
    "--rank-from", metavar="NAME", help="Only the target rank that this environment variable says, such as OMPI_COMM_WORLD_RANK."
)
@click.option("--no-commit", is_flag=True, help="Write these ranks only; `reshard commit` completes the checkpoint.")
@click.pass_obj
def transform(invocation: Invocation, /, rank_from: str | None, **arguments: Any) -> None:
    """Reshard a checkpoint."""
    if rank_from is not None:
        if arguments["ranks"] is not None:
            raise UsageError("RanksTwice", "--ranks says it already", where="--rank-from", fix="give one of them")
        arguments["ranks"] = str(rank_in(rank_from))
    request = request_of(arguments)
    with show.progress() as progress:
        result = transform_checkpoint(
            request,
            workers=arguments["workers"],
            commit=not arguments["no_commit"],
            owner=arguments["owner"],
            progress=progress,
            cancellation=invocation.cancellation,
        )
    _show_result(request, result, as_json=arguments["as_json"])


@cli.command()
@click.argument("source", type=PATH, metavar="SOURCE")
@click.argument("target", type=PATH, metavar="TARGET")
@click.option("--format", type=Word("Ckpt", "Safetensors"), required=True, help="Of the target's files.")
@convert_options
@click.pass_obj
def convert(invocation: Invocation, /, **arguments: Any) -> None:
    """Write a checkpoint's files, or one file, in another format or with other names, each by itself.

    They keep their names but for the ending, and lie below TARGET as they do below SOURCE.
    """
    request = request_of({**arguments, "output": "Same"})
    with show.progress() as progress:
        result = transform_checkpoint(
            request, workers=arguments["workers"], progress=progress, cancellation=invocation.cancellation
        )
    _show_result(request, result, as_json=arguments["as_json"])


@cli.command()
@click.argument("resource", type=PATH, metavar="FILE.yaml")
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="CLAIM=DIR",
    help="The folder that stands for a PersistentVolumeClaim.",
)
@click.option(
    "--config-map",
    "config_maps",
    multiple=True,
    metavar="NAME=DIR",
    help="The folder that stands for a ConfigMap, with a file for each of its keys.",
)
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME=DIR",
    help="The folder that stands for a Secret, with a file for each entry. S3 credentials may be in the environment instead.",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Ranks at a time. Default: one for each processor, at most 8.")
@json_option
@click.pass_obj
def run(invocation: Invocation, /, resource: str, workers: int | None, as_json: bool, **folders: tuple[str, ...]) -> None:
    """Carry out a CheckpointTransform resource on this machine, without a cluster."""
    spec = parse_resource(_text(resource), resource)
    request = request_here(
        spec,
        claims=_folders("--volume", folders["volumes"]),
        config_maps=_folders("--config-map", folders["config_maps"]),
        secrets=_folders("--secret", folders["secrets"]),
    )
    with show.progress() as progress:
        if spec.dry_run:
            planned = plan_transform(request, workers=workers, progress=progress, cancellation=invocation.cancellation)
        else:
            result = transform_checkpoint(request, workers=workers, progress=progress, cancellation=invocation.cancellation)
    if spec.dry_run:
        _show_plan(planned, as_json=as_json)
    else:
        _show_result(request, result, as_json=as_json)


@cli.command()
@request_options
@click.option("--write", is_flag=True, help="Leave the plan at the target, for `transform --no-commit`.")
@click.option("--picture", is_flag=True, help="Draw which source ranks feed which target ranks.")
@click.option("--svg", type=PATH, metavar="FILE", help="The same as a picture in an SVG file.")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME",
    help="Draw how both sides cut this parameter, or those that match, such as '*.weight'.",
)
@click.pass_obj
def plan(
    invocation: Invocation, /, write: bool, picture: bool, svg: str | None, parameters: tuple[str, ...], **arguments: Any
) -> None:
    """Say what a transform would do: every check that can be made before a byte is moved."""
    picture = picture or (bool(parameters) and svg is None)
    if picture and arguments["as_json"]:
        raise UsageError("PictureInJson", "a picture in the terminal is no JSON", where="--json", fix="write it to --svg FILE")
    if (picture or svg is not None) and arguments["output"] == "Index":
        raise UsageError("NothingToDraw", "an index has no ranks that read", where="--output", fix="choose another output")
    with show.progress() as progress:
        planned = plan_transform(
            request_of(arguments),
            workers=arguments["workers"],
            write=write,
            owner=arguments["owner"],
            progress=progress,
            cancellation=invocation.cancellation,
        )
    drawn = pictures.in_characters(planned, parameters) if picture else ""
    if svg is not None:
        pictures.write_svg(planned, parameters, svg)
    _show_plan(planned, as_json=arguments["as_json"])
    show.draw(drawn)


@cli.command()
@click.argument("target", type=PATH, metavar="DIR")
@click.option("--ranks", metavar="LIST", help="These target ranks make it complete, such as 0,2-5. Default: all.")
@click.option("--owner", metavar="NAME", hidden=True, help="Processes of one owner share the target's lock.")
@json_option
@partial(access_options, uploads=True)
@click.pass_obj
def commit(invocation: Invocation, /, target: str, ranks: str | None, owner: str | None, as_json: bool, **reached: Any) -> None:
    """Complete a checkpoint whose ranks, or stages, were written with --no-commit."""
    with show.progress() as progress:
        manifest = commit_checkpoint(
            target, ranks=ranks, owner=owner, access=access_of(reached), cancellation=invocation.cancellation
        )
        for note in notes_on_rules(manifest):
            progress.note(note)
    if as_json:
        show.out_json(
            {
                "digest": manifest.digest,
                "ranks": manifest.ranks,
                "target_ranks": manifest.target_ranks,
                "bytes_written": manifest.nbytes,
                "complete": is_whole(manifest),
                "durations": manifest.durations,
            }
        )
    elif not is_whole(manifest):
        show.out(f"stage {manifest.stages[0].stage} is finished; {target} is complete once all stages are")
    else:
        show.out(f"complete: {_consists(manifest)}")


@cli.command()
@click.argument("target", type=PATH, metavar="DIR")
@click.option("--workers", type=click.IntRange(1, 256), help="Files at a time. Default: one for each processor, at most 8.")
@access_options
@json_option
@click.pass_obj
def verify(invocation: Invocation, /, target: str, workers: int | None, as_json: bool, **reached: Any) -> None:
    """Check a finished checkpoint against its manifest, without the source."""
    with show.progress() as progress:
        manifest = verify_checkpoint(
            target, access=access_of(reached), workers=workers, progress=progress, cancellation=invocation.cancellation
        )
    if as_json:
        found = {"digest": manifest.digest, "files": len(manifest.listed), "bytes": manifest.nbytes, "ranks": manifest.ranks}
        show.out_json(found)
    else:
        show.out(f"intact: {_consists(manifest)}")


@cli.command()
@click.argument("path", type=PATH, metavar="PATH")
@click.option(
    "--strategy",
    "how",
    type=PATH,
    metavar="PATH",
    help="How it is cut: a file, or a folder of stages. Default: its manifest says.",
)
@click.option("--step", type=click.IntRange(min=0), help="The files of this training step.")
@click.option("--files", "pattern", metavar="PATTERN", help="The files whose names match.")
@click.option("--parameter", "parameters", multiple=True, metavar="PATTERN", help="Only these, such as '*.weight'.")
@click.option("--all", "every", is_flag=True, help="Show all parameters and files, one a line.")
@access_options
@key_options("decryption")
@json_option
def inspect(
    path: str,
    how: str | None,
    step: int | None,
    pattern: str | None,
    parameters: tuple[str, ...],
    every: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what a checkpoint (or one of its files) holds."""
    inspection.inspect(
        path,
        strategy=how,
        step=step,
        pattern=pattern,
        parameters=parameters,
        every=every,
        as_json=as_json,
        access=access_of(options),
        decryption=encryption_of(options, "decryption"),
    )


cli.add_command(fetch)
cli.add_command(strategy)
cli.add_command(step)


def _text(path: str) -> str:
    folder, name = parent_and_name(path)
    try:
        return open_store(folder).read(name, 1 << 20).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("NotYaml", "the file is no UTF-8 text", where=path, fix="save it as UTF-8") from error


def _folders(option: str, given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for each in given:
        name, separator, folder = each.partition("=")
        if not name or not separator or not folder:
            raise UsageError("InvalidVolume", f"{each!r} is not NAME=DIR", where=option, fix="write it like checkpoints=/data")
        folder = local_path(folder)
        if not Path(folder).is_dir():
            raise MissingInputError("NotFound", "there is no such folder", where=folder, fix=f"create it, or correct {option}")
        found[name] = folder
    return found


def _show_result(request: Request, result: Result, *, as_json: bool) -> None:
    if as_json:
        document = asdict(result)
        document["skipped_ranks"] = list(result.skipped_ranks)
        show.out_json(document)
        return
    if not result.bytes_written and result.complete:
        show.out(f"nothing to do: {request.target} is complete and up to date ({result.target_ranks} ranks)")
        return
    if request.options.output == "Index":
        ranks = f"{result.source_ranks} -> {result.target_ranks} ranks"
        show.out(f"indexed: {ranks}, {result.parameters} parameters, in {show.size(result.bytes_written)}")
        return
    rate = result.bytes_written / result.seconds if result.seconds else 0.0
    show.out(
        f"{result.source_ranks} -> {result.target_ranks} ranks: {result.parameters} parameters,"
        f" {show.size(result.bytes_written)} in {result.seconds:.2f} s ({show.size(rate)}/s),"
        f" {show.size(result.peak_rss_bytes)} memory"
    )
    if result.skipped_ranks:
        show.out(f"{len(result.skipped_ranks)} ranks were finished before")
    if result.complete:
        total = len(parse_ranks(result.committed_ranks))
        part = "" if total == result.target_ranks else f" (rank {result.committed_ranks} of {result.target_ranks} only)"
        show.out(f"complete: {request.target}/{MANIFEST_NAME}{part}")
    elif result.committed_ranks:
        show.out(f"stage {result.stage} is written; {request.target} is complete once all stages are")
    else:
        show.out(f"not yet complete: when all ranks are written, run reshard commit {request.target}")


def _consists(manifest: Manifest) -> str:
    """What a checkpoint consists of, in words."""
    if manifest.index is not None:
        return f"an index for {manifest.target_ranks} ranks, {show.size(manifest.nbytes)}"
    total = f"{show.size(manifest.nbytes)} in {len(manifest.files)} files"
    return f"rank {manifest.ranks} of {manifest.target_ranks}, {total}"


def _show_plan(planned: PlanResult, *, as_json: bool) -> None:
    summary = planned.summary
    if as_json:
        show.out_json(
            {
                "source_ranks": summary.source_ranks,
                "target_ranks": summary.target_ranks,
                "parameters": summary.parameters,
                "bytes_needed": summary.bytes_needed,
                "replicated_bytes": summary.replicated_bytes,
                "copies": summary.copies,
                "memory_bytes": planned.memory_bytes,
                "workers": planned.workers,
                "rank_requests": planned.rank_requests,
                "format": planned.format,
                "digest": planned.digest,
                "notes": list(planned.notes),
                "durations": planned.durations,
                "replicated_parameters": [
                    {"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in planned.planner.model.replicated
                ],
                "sources": {str(rank): list(sources) for rank, sources in summary.sources.items()},
            }
        )
        return
    show.table(
        None,
        [("", "left"), ("", "right")],
        [
            ("source ranks", summary.source_ranks),
            ("target ranks", summary.target_ranks),
            ("parameters", summary.parameters),
            ("bytes", show.size(summary.bytes_needed)),
            ("of these on every rank, in no strategy", show.size(summary.replicated_bytes)),
            ("copies", summary.copies),
            ("memory at most", show.size(planned.memory_bytes)),
            ("ranks at a time", planned.workers),
            *([("requests for a rank's content", planned.rank_requests)] if planned.rank_requests else []),
        ],
    )
    if replicated := planned.planner.model.replicated:
        show.table(
            "in no strategy, whole on every rank; if the source's ranks hold slices of them, give a strategy that names them",
            [("parameter", "left"), ("type", "left"), ("shape", "left")],
            [(p.name, p.dtype, str(list(p.shape))) for p in replicated],
        )
    ranks = list(summary.sources)
    show.table(
        "",
        [("target rank", "right"), ("bytes", "right"), ("reads source ranks", "left")],
        [(rank, show.size(summary.rank_bytes[rank]), words.some_ranks(summary.sources[rank])) for rank in ranks[:_SHOWN_RANKS]],
    )
    if len(ranks) > _SHOWN_RANKS:
        show.out(f"... and {len(ranks) - _SHOWN_RANKS} more; --json has all")
