"""Notes of a task: messages for the user about a source and its target that do not stop the transform."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.checkpoint.unified import HYPER_NAME
from reshard.errors import listed
from reshard.plan import Role, rounded, unapplied, unapplied_casts, unmatched_patterns
from reshard.plan.copies import equal_files
from reshard.plan.rules import NamePattern
from reshard.spec.ranks import format_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reshard.formats.protocol import OutputFormat
    from reshard.plan import Model, Planner
    from reshard.spec.request import Options, Request
    from reshard.strategy import Strategy


def notes_of(
    model: Model,
    request: Request,
    strategies: tuple[Strategy | None, Strategy | None],
    output: OutputFormat,
    planner: Planner,
    scope: Sequence[int],
) -> tuple[str, ...]:
    """Return the notes of a task.

    Args:
        model: model of the task.
        request: request of the transform.
        strategies: source strategy and target strategy.
        output: format of the target's files.
        planner: planner of all target ranks.
        scope: requested target ranks.
    """
    return (
        *_notes_on_strategies(strategies),
        *_notes_on_objects(model),
        *_notes(model, request, planner),
        *_notes_on_types(model, output),
        *_notes_on_shares(planner, scope),
    )


def _notes_on_names(model: Model, options: Options) -> list[str]:
    """Return notes about parameters that the user leaves out, and about patterns that match none."""
    notes: list[str] = []
    patterns = (*options.include, *options.exclude)
    if (patterns or options.rename) and not options.kind.one_stage:  # only the last stage knows whether they match
        names = model.source_names
        unused = unmatched_patterns(names, patterns)
        notes += [f"the rename rule for {r.pattern} applies to no parameter" for r in unapplied(names, options.rename)]
        notes += [f"the pattern {pattern} matches no parameter" for pattern in unused]
    if model.excluded:
        notes.append(f"--include and --exclude omit {_counted(model.excluded)}")
    if model.excluded_by_rename:
        notes.append(f"rename rules omit {_counted(model.excluded_by_rename)}")
    return notes


def _notes_on_casts(model: Model, options: Options) -> list[str]:
    lossy = rounded(model)
    notes = [f"casts round the values of {_counted(lossy)}"] if lossy else []
    unused = () if options.kind.one_stage else unapplied_casts(model, options.cast)
    return notes + [f"the cast of {rule.pattern} applies to no floating-point parameter" for rule in unused]


def _notes(model: Model, request: Request, planner: Planner) -> tuple[str, ...]:
    notes = _notes_on_names(model, request.options)
    if model.source_only:
        notes.append(f"skipped parameters that only the source strategy, or a part file, names: {listed(model.source_only)}")
    if model.target_only:
        notes.append(f"skipped parameters that are only in the target strategy: {listed(model.target_only)}")
    if model.not_in_files:
        notes.append(f"no source file contains these parameters of the source strategy: {listed(model.not_in_files)}")
    if model.zero_size:
        notes.append(
            "skipped tensors of shape [0], which MindSpore would load from a .ckpt file as scalars without a value:"
            f" {listed(model.zero_size)}"
        )
    notes += _notes_on_casts(model, request.options)
    notes += _notes_on_foreign_files(model, request)
    if empty := model.inventory.empty_files:
        ranks = format_ranks(tuple(file.rank for file in empty))
        paths = listed([file.path for file in empty])
        notes.append(
            f"the files of source ranks {ranks} contain no parameters; unless redundancy was removed, restore them: {paths}"
        )
    if alike := equal_files(model):
        notes.append(
            f"the files of source ranks {format_ranks(tuple(sorted(alike)))} look like files of lower ranks, although the"
            " strategy assigns them different slices; check that no file was overwritten with another rank's"
        )
    return (*notes, *_notes_on_copies(model, request, planner))


def _notes_on_copies(model: Model, request: Request, planner: Planner) -> list[str]:
    """Return notes about accepted differences between copies, and about patterns that match no parameter."""
    notes = []
    if accepted := sorted(model.inconsistent_replicas & model.per_rank):
        taken = (
            "the copy of the first rank is used"
            if planner.each_once
            else f"each target rank uses the copy of source rank {_nth(model)}"
        )
        notes.append(f"copies of these parameters differ between source ranks; {taken}: {listed(accepted)}")
    if accepted := sorted(model.inconsistent_replicas - model.per_rank):
        notes.append(f"replicas of these parameters differ; those of the lowest ranks are used: {listed(accepted)}")
    patterns = () if request.options.kind.one_stage else request.options.allow_inconsistent
    suspect = model.may_be_slices if patterns else ()
    unnamed = [p.source_name for p in model.parameters if p.role is Role.REPLICATED or p.name in suspect] if patterns else []
    unused = [pattern for pattern in patterns if not any(map(NamePattern(pattern).matches, unnamed))]
    return notes + [f"the pattern {pattern} matches no parameter outside the strategies" for pattern in unused]


def _notes_on_foreign_files(model: Model, request: Request) -> Iterator[str]:
    """Warn of slices and CRCs in MindSpore's unified files."""
    inventory = model.inventory
    if slices := model.may_be_slices:
        yield (
            f"these parameters of MindSpore's {HYPER_NAME} are copied unchanged and may be rank 0's slices, because"
            f" MindSpore also writes parameters to this file that its choice_func rejects: {listed(slices)}"
        )
    if inventory.foreign and request.options.verification == "Full":
        marked = [file.path for file in inventory.files if file.crc is not None]
        if marked:
            yield f"the CRC32 in these files was not checked, as MindSpore copied it from a source rank's file: {listed(marked)}"


def _notes_on_types(model: Model, output: OutputFormat) -> tuple[str, ...]:
    """Warn of types that MindSpore writes into a file and cannot load from it."""
    found = model.of_kinds(lambda kind: kind.target_dtype in output.not_loaded)
    if not found:
        return ()
    types, names = sorted({p.target_dtype for p in found}), listed([p.name for p in found])
    return (f"MindSpore 2.10 cannot load these parameters of type {', '.join(types)} from a .{output.name} file: {names}",)


def _notes_on_objects(model: Model) -> tuple[str, ...]:
    """List the values that the target omits because its format supports only tensors."""
    if not model.objects:
        return ()
    return (f"the target's format supports only tensors and omits {_counted(model.objects, 'other value')}",)


def _notes_on_strategies(strategies: tuple[Strategy | None, Strategy | None]) -> tuple[str, ...]:
    return tuple(note for strategy in strategies if strategy is not None for note in strategy.notes)


def _notes_on_shares(planner: Planner, scope: Sequence[int]) -> tuple[str, ...]:
    """Warn of files without parameters. MindSpore saves such files, but cannot load them."""
    if not planner.remove_redundancy:
        return ()
    ranks = tuple(rank for rank in scope if not planner.parameters(rank))
    if not ranks:
        return ()
    return (f"target ranks {format_ranks(ranks)} hold no parameters; MindSpore's load_checkpoint rejects their files",)


def _counted(names: tuple[str, ...], what: str = "parameter") -> str:
    return f"{len(names)} {what}{'s' * (len(names) > 1)}: {listed(names)}"


def _nth(model: Model) -> str:
    first = f"{model.first_rank} + " if model.first_rank else ""
    return f"{first}target rank modulo {model.source_ranks}"
