"""Print the result of a command, as text, as JSON or as a picture."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import console
from reshard.cli.arguments import matching
from reshard.engine.rankfile import content_of
from reshard.errors import UsageError
from reshard.pictures.captions import size, some_ranks
from reshard.spec.ranks import parse_ranks
from reshard.target.parts import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.checkpoint.manifest import Manifest
    from reshard.layout import Layout
    from reshard.pictures.picture import Limits, Picture
    from reshard.spec.request import Request
    from reshard.storage.protocol import Store
    from reshard.strategy import Strategy
    from reshard.transform.plan import PlanResult
    from reshard.transform.pods import PodsOption
    from reshard.transform.run import Result
    from reshard.transform.verify import VerifyResult

_SHOWN_RANKS = 16
_SVG_START = b"<svg "


def transformed(request: Request, result: Result, *, as_json: bool) -> None:
    """Print the result of a transform."""
    target = request.target
    if as_json:
        console.out_json(asdict(result))
        return
    if not result.bytes_written and result.complete:
        console.out(f"nothing to do: {target} is complete and up to date ({result.target_ranks} ranks)")
        return
    unit = "" if result.source_unit == "ranks" else f" {result.source_unit}"
    ranks = f"{result.source_ranks}{unit} -> {result.target_ranks} ranks"
    if not request.options.kind.writes_files:
        console.out(f"indexed: {ranks}, {result.parameters} parameters, {size(result.bytes_written)}")
        return
    rate = result.bytes_written / result.seconds if result.seconds else 0.0
    console.out(
        f"{ranks}: {result.parameters} parameters, {size(result.bytes_written)} in {result.seconds:.2f} s ({size(rate)}/s),"
        f" {size(result.peak_rss_bytes)} memory"
    )
    if result.bytes_fetched or result.bytes_copied:
        copied = f", {size(result.bytes_copied)} copied by the server" if result.bytes_copied else ""
        console.out(
            f"fetched {size(result.bytes_fetched)} of the source in {result.requests} requests{copied};"
            f" needed {size(result.bytes_needed)}, {size(result.bytes_distinct)} of them distinct"
        )
    if result.skipped_ranks:
        console.out(f"{len(result.skipped_ranks)} ranks had already been written")
    if result.complete:
        some = len(parse_ranks(result.committed_ranks)) < result.target_ranks
        console.out(f"complete: {target}/{MANIFEST_NAME}{f' ({_ranks(result)})' if some else ''}")
    elif result.committed_ranks:
        console.out(f"stage {result.stage} is written; {target} is complete after all stages")
    else:
        console.out(f"incomplete: run `reshard commit {target}` after all ranks are written")


def fetched(ranks: str, result: Result, *, as_json: bool) -> None:
    """Print the result of a fetch."""
    if as_json:
        console.out_json(asdict(result))
    elif result.bytes_written:
        console.out(f"rank {ranks} of {result.target_ranks}: {size(result.bytes_written)} in {result.seconds:.2f} s")
    else:
        console.out(f"nothing to do: rank {ranks} of {result.target_ranks} is up to date")


def committed(target: str, manifest: Manifest, *, as_json: bool) -> None:
    """Print the result of a commit."""
    content = content_of(manifest.files)
    if as_json:
        console.out_json(
            {
                "digest": manifest.digest,
                "ranks": manifest.ranks,
                "target_ranks": manifest.target_ranks,
                "bytes_needed": manifest.bytes_needed,
                "bytes_distinct": manifest.bytes_distinct,
                "bytes_fetched": content.nbytes,
                "requests": content.requests,
                "bytes_copied": content.copied,
                "bytes_written": manifest.nbytes,
                "complete": is_whole(manifest),
                "durations": manifest.durations,
            }
        )
    elif is_whole(manifest):
        console.out(f"complete: {_content(manifest)}")
    else:
        console.out(f"stage {manifest.stages[0].stage} is finished; {target} is complete after all stages")


def verified(result: VerifyResult, *, as_json: bool) -> None:
    """Print the result of a verification."""
    manifest = result.manifest
    if as_json:
        console.out_json(
            {
                "digest": manifest.digest,
                "committed_ranks": manifest.ranks,
                "target_ranks": manifest.target_ranks,
                "bytes_fetched": result.bytes_fetched,
                "requests": result.requests,
                "seconds": result.seconds,
                "durations": result.durations,
                "files": [asdict(file) for file in result.files],
            }
        )
    else:
        rate = f" ({size(result.bytes_fetched / result.seconds)}/s)" if result.bytes_fetched else ""
        console.out(f"intact: {_content(manifest)}, verified in {result.seconds:.2f} s{rate}")


def _ranks(result: Result) -> str:
    return f"ranks {result.committed_ranks} of {result.target_ranks}"


def _content(manifest: Manifest) -> str:
    if manifest.index is not None:
        return f"index for {manifest.target_ranks} ranks, {size(manifest.nbytes)}"
    total = f"{size(manifest.nbytes)} in {len(manifest.files)} files"
    return f"ranks {manifest.ranks} of {manifest.target_ranks}, {total}"


def planned(plan: PlanResult, *, as_json: bool) -> None:
    """Print a plan."""
    summary, replicated = plan.summary, plan.planner.model.replicated
    unit = plan.planner.model.source_unit
    if as_json:
        console.out_json(
            {
                "source_ranks": summary.source_ranks,
                "target_ranks": summary.target_ranks,
                "parameters": summary.parameters,
                "excluded_parameters": list(summary.excluded),
                "bytes_needed": summary.bytes_needed,
                "bytes_distinct": summary.bytes_distinct,
                "replicated_bytes": summary.replicated_bytes,
                "copies": summary.copies,
                "memory_bytes": plan.memory_bytes,
                "workers": plan.workers,
                "rank_requests": plan.rank_requests,
                "format": plan.format,
                "digest": plan.digest,
                "groupings": [_grouping(option) for option in plan.pods],
                "notes": list(plan.notes),
                "durations": plan.durations,
                "replicated_parameters": [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in replicated],
                "sources": {str(rank): list(sources) for rank, sources in summary.sources.items()},
            }
        )
        return
    console.table(
        [("", "left"), ("", "right")],
        [
            (f"source {unit}", summary.source_ranks),
            ("target ranks", summary.target_ranks),
            ("parameters", summary.parameters),
            *([("excluded parameters", len(summary.excluded))] if summary.excluded else []),
            ("bytes needed by all ranks", size(summary.bytes_needed)),
            ("distinct bytes of the source", size(summary.bytes_distinct)),
            ("bytes in no strategy, on every rank", size(summary.replicated_bytes)),
            ("copies", summary.copies),
            ("peak memory", size(plan.memory_bytes)),
            ("workers", plan.workers),
            *([("requests per rank", plan.rank_requests)] if plan.rank_requests else []),
        ],
    )
    if plan.pods and len(summary.sources) > 1:
        _print_pods(plan.pods, summary.bytes_distinct)
    if replicated:
        console.out()
        console.out(
            "No strategy contains these parameters, so every rank gets a whole copy. If the source ranks hold slices of them,"
            " use a"
            " strategy that contains them."
        )
        console.table(
            [("parameter", "left"), ("type", "left"), ("shape", "left")],
            [(p.name, p.dtype, str(list(p.shape))) for p in replicated],
        )
    ranks = list(summary.sources)
    console.out()
    console.table(
        [("target rank", "right"), ("bytes", "right"), (f"reads source {unit}", "left")],
        [(rank, size(summary.rank_bytes[rank]), some_ranks(summary.sources[rank])) for rank in ranks[:_SHOWN_RANKS]],
    )
    if len(ranks) > _SHOWN_RANKS:
        console.out(f"... and {len(ranks) - _SHOWN_RANKS} more; use --json to list all")


def _grouping(option: PodsOption) -> dict[str, object]:
    return {
        "pods": option.pods,
        "ranks_per_pod": option.ranks_per_pod,
        **msgspec.to_builtins(option.grouping),
        "bytes_fetched": option.bytes_fetched,
        "memory_bytes": option.memory_bytes,
        "chosen": option.chosen,
    }


def _print_pods(options: Sequence[PodsOption], distinct: int) -> None:
    """Print how ranks can be divided among pods of a cluster."""
    columns = ["", "pods", "ranks per pod", "neighbours", "distance", "fetched", "fetched / distinct", "memory per pod"]
    rows = []
    for option in options:
        run, stride = option.grouping.run, option.grouping.stride
        ratio = f"{option.bytes_fetched / distinct:.2f}" if distinct else "-"
        mark, distance = "*" if option.chosen else "", stride if option.grouping.count > 1 else "-"
        sizes = size(option.bytes_fetched), ratio, size(option.memory_bytes)
        rows.append((mark, option.pods, option.ranks_per_pod, run, distance, *sizes))
    console.out()
    console.out("Divisions of the ranks among the pods of a cluster (*: chosen):")
    console.table([(name, "right") for name in columns], rows)


def picture(plan: PlanResult, patterns: Iterable[str]) -> str:
    """Return the picture of a plan for the terminal.

    Args:
        plan: plan to draw.
        patterns: names or glob patterns of the parameters whose sharding is drawn.

    Raises:
        MissingInputError: a pattern matches no parameter.
    """
    from reshard.pictures import characters  # noqa: PLC0415 - it imports rich

    return console.rendered(*characters.draw(_picture(plan, patterns, characters.LIMITS), console.width()))


def write_svg(plan: PlanResult, patterns: Iterable[str], path: str) -> None:
    """Write the picture of a plan to an SVG file. Arguments: see `picture`.

    Raises:
        MissingInputError: a pattern matches no parameter.
        UsageError: the file exists and is not an SVG written by reshard.
    """
    from reshard.pictures import svg  # noqa: PLC0415 - few commands draw
    from reshard.storage import open_store, parent_and_name  # noqa: PLC0415 - see reshard.cli.commands

    text = svg.draw(_picture(plan, patterns, svg.LIMITS))
    folder, name = parent_and_name(path)
    store = open_store(folder)
    _refuse_other_files(store, name, path)
    store.write(name, text.encode(), mode=None)


def _picture(plan: PlanResult, patterns: Iterable[str], limits: Limits) -> Picture:
    from reshard.pictures.picture import picture_of  # noqa: PLC0415 - few commands draw

    names = matching((parameter.name for parameter in plan.planner.model.parameters), patterns)
    return picture_of(plan.planner, tuple(plan.summary.sources), names, limits)


def _refuse_other_files(store: Store, name: str, path: str) -> None:
    """Refuse to replace a file of another kind, because it may be the only copy.

    Raises:
        UsageError: the file exists and is not an SVG written by reshard.
    """
    found = store.stat(name)
    if found is None:
        return
    if not found.is_folder and found.size:
        with closing(store.open(name)) as reader:
            if reader.read(0, min(len(_SVG_START), reader.size)) == _SVG_START:
                return
    raise UsageError(
        "FileExists",
        "output file exists and is not an SVG written by reshard",
        where=path,
        fix="choose another name, or delete the file",
    )


def strategy(found: Strategy, *, as_json: bool) -> None:
    """Print the layouts of a strategy."""
    if as_json:
        layouts = [{name: _layout(layout) for name, layout in stage.items()} for stage in found.stages]
        console.out_json({"ranks": found.ranks, "devices_per_stage": found.devices, "stages": layouts})
        return
    stages = "1 pipeline stage" if len(found.stages) == 1 else f"{len(found.stages)} pipeline stages"
    console.out(f"{found.ranks} ranks: {stages} of {found.devices} ranks")
    columns = [
        ("parameter", "left"),
        ("device matrix", "left"),
        ("tensor map", "left"),
        ("slices", "left"),
        ("replicas", "right"),
    ]
    for number, stage in enumerate(found.stages):
        console.out()
        rows = [(name, *_row(layout)) for name, layout in stage.items()]
        console.out(f"stage {number}: {len(stage)} parameters")
        console.table(columns, rows)


def _layout(layout: Layout) -> dict[str, object]:
    return {
        "device_matrix": list(layout.device_matrix),
        "tensor_map": [list(axes) for axes in layout.tensor_map],
        "opt_weight_shard_step": layout.shard_step,
        "opt_weight_shard_size": layout.shard_size,
        "parts": list(layout.parts),
    }


def _row(layout: Layout) -> tuple[str, str, str, int]:
    tensor_map = [axes[0] if len(axes) == 1 else list(axes) or -1 for axes in layout.tensor_map]
    shard = f", optimizer shard {layout.shard_size}" if layout.shard_size and layout.shard_step else ""
    replicas = len(next(iter(layout.holders.values())))
    return str(list(layout.device_matrix)), f"{tensor_map}{shard}", " x ".join(map(str, layout.parts)) or "1", replicas


def version(found: dict[str, Any], *, as_json: bool) -> None:
    """Print the result of `reshard.version.describe`."""
    if as_json:
        console.out_json(found)
        return
    console.out(f"reshard {found['version']}")
    for name in ("commit", "built", "python", "platform"):
        console.out(f"{name}: {found[name]}")
    for name, installed in found["packages"].items():
        console.out(f"{name}: {installed or 'not installed'}")
