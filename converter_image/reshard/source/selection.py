"""Which file of each rank is meant: one rule for both formats. Pure."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from reshard.checkpoint import format_of
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.spec.ranks import format_ranks

_STEP = re.compile(r"-(\d{1,18})_(\d{1,18})\.[a-z]+$")
_BREAKPOINT = re.compile(r"_breakpoint\.[a-z]+$")  # what MindSpore saves beside when training breaks off
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen files.

    Attributes:
        files: file names by rank.
        notes: what a user should know of the choice, a sentence each.
        step: the epoch and step that they are of, where their names say so.
    """

    files: dict[int, str]
    notes: tuple[str, ...] = ()
    step: tuple[int, int] | None = None


def select_files(names: dict[int, list[str]], *, step: int | None = None, pattern: str | None = None) -> Selection:
    """Choose one file for each rank.

    Args:
        names: the file names in each rank's folder.
        step: the training step that is wanted.
        pattern: a shell pattern that the names must match.

    Raises:
        MissingInputError: a rank has no file that fits.
        DataError: the files are of several formats, or a chosen one's name is not in UTF-8.
        RequestError: a rank has several that fit equally well.
    """
    fitting = {rank: [n for n in found if _is_candidate(n, pattern)] for rank, found in names.items()}
    candidates = {rank: [n for n in found if not _BREAKPOINT.search(n)] for rank, found in fitting.items()}
    if pattern and not any(candidates.values()):  # it asks for nothing but those
        candidates = fitting
    empty = [rank for rank, found in candidates.items() if not found]
    if empty:
        matching = f" that matches {pattern!r}" if pattern else ""
        raise MissingInputError(
            "SourceRankMissing",
            f"rank {format_ranks(tuple(empty))} has no .ckpt or .safetensors file{matching}",
            where="source",
            fix="restore the missing files",
        )
    formats = {format_of(name) for found in candidates.values() for name in found}
    if len(formats) > 1:
        raise DataError(
            "MixedFormats",
            "the source holds both .ckpt and .safetensors files",
            where="source",
            fix="choose one with --files '*.ckpt'",
        )
    steps = {rank: {s for n in found if (s := epoch_and_step(n))} for rank, found in candidates.items()}
    if step is not None or any(steps.values()):
        return _of_step(candidates, steps, step)
    return Selection({rank: _only(rank, found) for rank, found in candidates.items()})


def _is_candidate(name: str, pattern: str | None) -> bool:
    if format_of(name) is None or name.startswith("."):
        return False
    return pattern is None or fnmatch.fnmatchcase(name, pattern)


def epoch_and_step(name: str) -> tuple[int, int] | None:
    """What a file's name says of when it was saved."""
    match = _STEP.search(name)
    return (int(match[1]), int(match[2])) if match else None


def natural(name: str) -> list[tuple[int, str]]:
    """strategy_2 before strategy_10: the first file of each stage wins."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _of_step(candidates: dict[int, list[str]], steps: dict[int, set[tuple[int, int]]], step: int | None) -> Selection:
    common = set.intersection(*steps.values())
    if step is not None:
        common = {s for s in common if s[1] == step}
    if not common:
        wanted = "a common training step" if step is None else f"step {step}"
        lacking = [r for r, found in steps.items() if not found or (step is not None and step not in {s[1] for s in found})]
        which = f"rank {format_ranks(tuple(lacking))} does not have it" if lacking else "no step is there for every rank"
        raise MissingInputError(
            "StepMissing",
            f"not every rank has {wanted}: {which}",
            where="source",
            fix="give a step or a pattern that all ranks have",
        )
    chosen = max(common)
    files = {}
    for rank, names in candidates.items():
        unnumbered = [n for n in names if epoch_and_step(n) is None] if step is None else []
        files[rank] = _only(rank, [n for n in names if epoch_and_step(n) == chosen] + unnumbered)
    newer = tuple(rank for rank, found in steps.items() if step is None and max(found) > chosen)
    notes: tuple[str, ...] = ()
    if newer:
        notes = (
            f"epoch {chosen[0]}, step {chosen[1]} is the newest that every rank has; rank {format_ranks(newer)} has a newer one",
        )
    return Selection(files, notes, chosen)


def _only(rank: int, names: list[str]) -> str:
    if len(names) == 1:
        if any("\ud800" <= character <= "\udfff" for character in names[0]):  # no document can hold it
            raise DataError("InvalidName", "its name is not in UTF-8", where=f"rank_{rank}/{names[0]}", fix="rename the file")
        return names[0]
    shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    raise RequestError(
        "AmbiguousFiles",
        f"{len(names)} files can be meant: {shown}",
        where=f"rank_{rank}",
        fix="choose with --step or --files (spec.source.files)",
    )
