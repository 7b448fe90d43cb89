"""`reshard diff` and `reshard inspect --check-replicas`: parameters that differ, as a table or JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reshard.cli import console
from reshard.cli.arguments import encryption_of, storage_options_of
from reshard.pictures.captions import shape, size
from reshard.plan.rules import NamePattern
from reshard.transform.diff import diff_checkpoints
from reshard.transform.replicas import differing_replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.progress import Cancellation
    from reshard.transform.consistency import Mismatch
    from reshard.transform.diff import DiffResult, ParameterDifference, Side

_SHOWN = 40
_TEXTS = {"OnlyInA": "only in A", "OnlyInB": "only in B", "Type": "type", "Shape": "shape", "Content": "content"}


def compare(a: str, b: str, cancellation: Cancellation, *, as_json: bool, every: bool, **arguments: Any) -> bool:
    """Compare two checkpoints, and print the result. Return whether they differ."""
    with console.progress() as progress:
        result = diff_checkpoints(
            a,
            b,
            strategy_a=arguments["strategy_a"],
            strategy_b=arguments["strategy_b"],
            wanted=_wanted(arguments["parameters"]),
            read=arguments["read"],
            storage_options=storage_options_of(arguments),
            decryption=encryption_of(arguments, "decryption"),
            workers=arguments["workers"],
            progress=progress,
            cancellation=cancellation,
        )
    if as_json:
        console.out_json(asdict(result))
    else:
        _show(result, every=every)
    return bool(result.differences)


def check_replicas(
    path: str, cancellation: Cancellation, *, strategy: str | None, step: int | None, files: str | None, **arguments: Any
) -> bool:
    """Compare the replicas in a checkpoint, and print the parameters that differ. Return whether there are any."""
    with console.progress() as progress:
        found = differing_replicas(
            path,
            parameters=arguments["parameters"],
            strategy=strategy,
            step=step,
            files=files,
            storage_options=storage_options_of(arguments),
            decryption=encryption_of(arguments, "decryption"),
            progress=progress,
            cancellation=cancellation,
        )
    if arguments["as_json"]:
        console.out_json({"differing": [asdict(each) for each in found]})
    elif found:
        console.out(f"different: copies of {_count(len(found))}")
        console.out()
        console.table([("parameter", "left"), ("first", "left"), ("values", "left")], (_mismatch(each) for each in found))
    else:
        console.out("equal: all copies of each parameter")
    return bool(found)


def _wanted(given: Sequence[str]) -> Callable[[str], bool]:
    """Return whether to compare a parameter, by its name. Without patterns, all are compared."""
    patterns = [NamePattern(pattern) for pattern in given]
    return lambda name: not patterns or any(pattern.matches(name) for pattern in patterns)


def _count(parameters: int) -> str:
    return f"{parameters:,} parameter{'s' if parameters != 1 else ''}"


def _mismatch(found: Mismatch) -> tuple[str, str, str]:
    return found.name, str(list(found.index)), found.values


def _show(result: DiffResult, *, every: bool) -> None:
    found = result.differences
    hows = [f"{size(result.bytes_compared)} of each compared in {result.seconds:.2f} s"] if result.bytes_compared else []
    if result.by_fingerprint:
        hows.append(f"{result.by_fingerprint:,} by the fingerprints in their manifests")
    how = "".join(f"; {each}" for each in hows)
    if not found:
        console.out(f"equal: {_count(result.equal)}{how}")
        return
    console.out(f"different: {_count(len(found))}; equal: {result.equal:,}{how}")
    shown = found if every else found[:_SHOWN]
    columns = [
        ("parameter", "left"),
        ("difference", "left"),
        ("elements", "right"),
        ("first", "left"),
        ("A", "left"),
        ("B", "left"),
    ]
    console.out()
    console.table(columns, map(_cells, shown))
    if len(found) > len(shown):
        console.out(f"... and {len(found) - len(shown)} more; --all shows them, --parameter 'PATTERN' some")
    if any(each.difference == "Content" and each.elements is None for each in found):
        console.out("--read compares the elements of parameters with different fingerprints")


def _cells(found: ParameterDifference) -> tuple[str, ...]:
    return (
        found.name,
        _TEXTS[found.difference],
        "" if found.elements is None else f"{found.elements:,}",
        "" if found.index is None else str(list(found.index)),
        _side(found.a),
        _side(found.b),
    )


def _side(side: Side | None) -> str:
    if side is None:
        return ""
    if side.place is not None:
        return f"{side.place.path}:{side.place.offset}"
    return f"{side.dtype} {shape(side.shape)}"
