"""Select the file of each rank, by the same rule for both formats."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reshard.checkpoint import format_of
from reshard.errors import DataError, MissingInputError, RequestError
from reshard.source.listing import is_candidate, preview, refuse_exchanged
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_STEP = re.compile(r"-([0-9]{1,18})_([0-9]{1,18})\.[a-z]+$")
_BREAKPOINT = re.compile(r"_breakpoint\.[a-z]+$")  # MindSpore also saves this file when training fails
_NUMBERS = re.compile(r"[0-9]+")
_START = re.compile(r"_([0-9]{1,18})$")  # number of the start of training in a folder, from the second one on
# Number of older steps that are remembered, in case that the newest one is damaged.
_MOST_OLDER = 16

Step = tuple[int, int]  # epoch and step


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected files.

    Attributes:
        files: paths by rank.
        notes: messages for the user about the selection, one sentence each.
        step: epoch and step of the files, if their names contain them.
        older: selections of older steps that every rank has, newest first.
    """

    files: dict[int, str]
    notes: tuple[str, ...] = ()
    step: Step | None = None
    older: tuple[Selection, ...] = ()


def select_files(
    paths: Mapping[int, list[str]], *, step: int | None = None, pattern: str | None = None, expected: range | None = None
) -> Selection:
    """Select one file for each rank, by default of the newest step that every rank has.

    If the strategy describes only some of the ranks, a step is selected that these ranks have and no other rank has: the files of
    the other ranks were written by a run on another number of ranks.

    Args:
        paths: paths of each rank's files.
        step: requested training step.
        pattern: glob pattern that the names must match, or the paths if it contains a `/`.
        expected: ranks that the source strategy describes. None means all.

    Raises:
        MissingInputError: a rank has no matching file.
        DataError: the files have several formats, the name of a selected file is not valid UTF-8, there are more ranks than
            expected, or names contain the ranks of others.
        RequestError: a rank has several files that match equally well, or the files of ranks have different names.
    """
    selected = _select(paths, step, pattern, expected)
    refuse_exchanged(selected.files, "move each file to the folder of its rank; if the folders are correct, rename the files")
    several, restarted = _names(selected.files), _restarted(selected.files)
    said = [f"the ranks have files with different names, such as {preview(several)}"] if len(several) > 1 else []
    if restarted:
        said.append(
            f"the files of rank {format_ranks(restarted)} are from another training run than those of other ranks, such as"
            f" {selected.files[restarted[0]]}"
        )
    if len(several) > 1 and pattern is None:
        raise RequestError(
            "AmbiguousFiles",
            "; ".join(said),
            where="source",
            fix="move the files of other runs to another folder; if all files belong to one run, add --files '*'"
            " (spec.source.files.pattern)",
        )
    return replace(selected, notes=(*selected.notes, *said))


def _select(paths: Mapping[int, list[str]], step: int | None, pattern: str | None, expected: range | None) -> Selection:
    fitting = {rank: [path for path in found if is_candidate(path, pattern)] for rank, found in paths.items()}
    candidates = {rank: [path for path in found if not _BREAKPOINT.search(path)] for rank, found in fitting.items()}
    if pattern and not any(candidates.values()):  # the pattern matches only breakpoint files
        candidates = fitting
    mine = {rank: found for rank, found in candidates.items() if expected is None or rank in expected}
    others = {rank: found for rank, found in candidates.items() if rank not in mine and found}
    if empty := tuple(rank for rank, found in mine.items() if not found):
        matching = f" that matches {pattern!r}" if pattern else ""
        raise MissingInputError(
            "SourceRankMissing",
            f"no .ckpt or .safetensors file{matching} exists for rank {format_ranks(empty)}",
            where="source",
            fix=f"{'select files that every rank has' if pattern else 'restore the missing files, or select others'} with --files"
            " (spec.source.files.pattern)",
        )
    if len({format_of(path) for found in mine.values() for path in found}) > 1:
        raise DataError(
            "MixedFormats",
            "the source contains both .ckpt and .safetensors files",
            where="source",
            fix="select one format with --files, such as --files '*.ckpt' (spec.source.files.pattern)",
        )
    saved = {rank: _by_step(found) for rank, found in mine.items()}
    foreign = _ranks_by_step(others)
    if mine and (step is not None or any(key is not None for found in saved.values() for key in found)):
        return _of_step(saved, foreign, step, expected)
    if None in foreign:
        raise _too_many_ranks(foreign[None], "", expected)
    return Selection({rank: _only(found) for rank, found in mine.items()}, _notes_on_others(foreign, expected))


def _names(files: Mapping[int, str]) -> list[str]:
    """Return one name of each group of files whose names differ only in numbers. Several groups may belong to several runs.

    A run that finds files with its prefix in a folder saves `net_1-1_100.ckpt` next to `net-1_100.ckpt`.
    """
    first: dict[str, str] = {}
    for path in files.values():
        first.setdefault(_NUMBERS.sub("0", _STEP.sub("", path.rpartition("/")[2])), path)
    return list(first.values())


def _restarted(files: Mapping[int, str]) -> tuple[int, ...]:
    """Return the ranks whose files belong to another training run than the files of most ranks.

    A number at the end of a prefix can also be that of the rank, or of its device in a node.
    """
    starts: dict[int, int | None] = {}
    for rank, path in files.items():
        if not _STEP.search(path):  # MindSpore numbers no other files
            return ()
        found = _START.search(_STEP.sub("", path))
        starts[rank] = int(found[1]) if found else None
    numbers = [number for number in starts.values() if number is not None]
    if not numbers or (len(numbers) == len(starts) and all(n == r % (max(numbers) + 1) for r, n in starts.items())):
        return ()
    most = Counter(starts.values()).most_common(1)[0][0]
    return tuple(sorted(rank for rank, number in starts.items() if number != most))


def epoch_and_step(name: str) -> Step | None:
    """Return the epoch and step in the name of a file, or None if the name contains none."""
    match = _STEP.search(name)
    return (int(match[1]), int(match[2])) if match else None


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that places strategy_2 before strategy_10. The first file of each stage is used."""
    return [(int(part), "") if part.isascii() and part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def option_for(step: Step, others: Iterable[Step] = ()) -> str:
    """Return the option that selects a step among others."""
    if any(other[1] == step[1] for other in others if other != step):
        pattern = f"*-{step[0]}_{step[1]}.*"
        return f"--files '{pattern}' (spec.source.files.pattern)"
    return f"--step {step[1]} (spec.source.files.step)"


def _by_step(paths: list[str]) -> dict[Step | None, list[str]]:
    found: dict[Step | None, list[str]] = defaultdict(list)
    for path in paths:
        found[epoch_and_step(path)].append(path)
    return found


def _ranks_by_step(paths: Mapping[int, list[str]]) -> dict[Step | None, tuple[int, ...]]:
    found: dict[Step | None, set[int]] = defaultdict(set)
    for rank, each in paths.items():
        for path in each:
            found[epoch_and_step(path)].add(rank)
    return {step: tuple(sorted(ranks)) for step, ranks in found.items()}


def _of_step(
    saved: Mapping[int, Mapping[Step | None, list[str]]],
    foreign: Mapping[Step | None, tuple[int, ...]],
    step: int | None,
    expected: range | None,
) -> Selection:
    every = set.intersection(*({key for key in found if key is not None} for found in saved.values()))
    common = {key for key in every if step is None or key[1] == step}
    usable = sorted(key for key in common if key not in foreign)
    if not usable and common:
        newest = max(common)
        raise _too_many_ranks(foreign[newest], f" with step {newest[1]}", expected)
    if not usable:
        raise _step_missing(saved, step, every)
    chosen = usable[-1]
    files = {}
    for rank, found in saved.items():
        unnumbered = found.get(None, []) if step is None else []
        files[rank] = _only([*found[chosen], *unnumbered])
    notes = _notes_on_newer(saved, foreign, chosen) if step is None else _notes_on_epochs(usable)
    older = [
        Selection({rank: found[key][0] for rank, found in saved.items()}, step=key)
        for key in usable[-2::-1][:_MOST_OLDER]
        if step is None and all(len(found[key]) == 1 for found in saved.values())
    ]
    return Selection(files, notes + _notes_on_others(foreign, expected), chosen, tuple(older))


def _notes_on_epochs(found: Sequence[Step]) -> tuple[str, ...]:
    """Return the note about several epochs that have the requested step, in ascending order."""
    if len(found) == 1:
        return ()
    *others, chosen = found
    choices = ", ".join(option_for(other, found) for other in others[-3:])
    return (f"step {chosen[1]} exists in {len(found)} epochs, and epoch {chosen[0]} is read; to read another one, use {choices}",)


def _notes_on_newer(
    saved: Mapping[int, Mapping[Step | None, list[str]]], foreign: Mapping[Step | None, tuple[int, ...]], chosen: Step
) -> tuple[str, ...]:
    """Return the note about newer steps that are not read."""
    newer: dict[Step, list[int]] = defaultdict(list)
    for rank, found in saved.items():
        for key in found:
            if key is not None and key > chosen:
                newer[key].append(rank)
    ranks = tuple(sorted({rank for key, found in newer.items() if key not in foreign for rank in found}))
    notes = []
    if ranks:
        notes.append(
            f"the newest step that every rank has is step {chosen[1]} of epoch {chosen[0]}; rank {format_ranks(ranks)} has a"
            " newer one"
        )
    notes += [
        f"step {key[1]} of epoch {key[0]} is not read, because rank {format_ranks(foreign[key])} also has it, and the strategy"
        " does not describe that rank"
        for key in sorted(key for key in newer if key in foreign)
    ]
    return tuple(notes)


def _notes_on_others(foreign: Mapping[Step | None, tuple[int, ...]], expected: range | None) -> tuple[str, ...]:
    """Return the notes about ranks that the strategy does not describe."""
    if not foreign or expected is None:
        return ()
    ranks = format_ranks(tuple({rank for found in foreign.values() for rank in found}))
    described = format_ranks(tuple(expected))
    return (f"the files of rank {ranks} are not read, because the strategy describes only rank {described}",)


def _too_many_ranks(ranks: tuple[int, ...], having: str, expected: range | None) -> DataError:
    described = len(expected) if expected is not None else 0
    return DataError(
        "SourceRanksMismatch",
        f"the source strategy describes {described} ranks, but the source contains rank {ranks[-1]}{having}",
        where="source",
        fix="use the strategy that the source was trained with, or move the ranks of other runs to another folder",
    )


def _step_missing(saved: Mapping[int, Mapping[Step | None, list[str]]], step: int | None, every: set[Step]) -> MissingInputError:
    wanted = "a common training step" if step is None else f"step {step}"
    lacking = tuple(
        rank for rank, found in saved.items() if not any(key is not None and (step is None or key[1] == step) for key in found)
    )
    which = f"it is missing for rank {format_ranks(lacking)}" if lacking else "no step exists for every rank"
    fix = "restore the missing files, or select files that every rank has (--files, spec.source.files.pattern)"
    if every:
        fix = f"select a step that every rank has, such as {option_for(max(every), every)}"
    return MissingInputError("StepMissing", f"not every rank has {wanted}: {which}", where="source", fix=fix)


def _only(paths: list[str]) -> str:
    if len(paths) == 1:
        if any("\ud800" <= character <= "\udfff" for character in paths[0]):  # a document cannot hold such a name
            raise DataError("InvalidName", "the file name is not valid UTF-8", where=paths[0], fix="rename the file")
        return paths[0]
    folder = paths[0].rpartition("/")[0]
    names = {path.removeprefix(f"{folder}/") for path in paths}
    steps = [found for path in paths if (found := epoch_and_step(path)) is not None]
    by_step = f"{option_for(steps[0])}, or " if len(steps) == 1 else ""
    raise RequestError(
        "AmbiguousFiles",
        f"the folder contains {len(paths)} checkpoint files: {preview(names)}",
        where=folder or "source",
        fix=f"select one with {by_step}a pattern that matches only that file: --files PATTERN (spec.source.files.pattern)",
    )
