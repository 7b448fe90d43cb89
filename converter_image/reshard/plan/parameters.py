"""Build the model from the source's files and both strategies."""

from __future__ import annotations

from itertools import chain, product
from typing import TYPE_CHECKING, NoReturn

from reshard.checkpoint.dtypes import OBJECT
from reshard.checkpoint.inventory import TensorEntry
from reshard.checkpoint.unified import refuse_slices, stages_of_parts
from reshard.errors import DataError, MissingInputError, RequestError, listed
from reshard.plan.kinds import Kinds, names_in
from reshard.plan.model import Model, Parameter, Role
from reshard.plan.pad import lengths_by_name
from reshard.plan.rules import excluded_by, matching, new_names, refuse_nothing, renamed

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from reshard.checkpoint.inventory import Inventory, Kind
    from reshard.model import Shards
    from reshard.plan.model import Kind as ParameterKind
    from reshard.spec.rules import PadRule, RenameRule
    from reshard.strategy import Strategy


def build_model(  # noqa: PLR0913 - each is a choice by itself
    inventory: Inventory,
    source: Strategy | None,
    target: Strategy | None,
    *,
    keep_source_only: bool = False,
    allow_missing: bool = False,
    one_stage: bool = False,
    only: int | None = None,
    incomplete: bool = False,
    target_ranks: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[RenameRule] = (),
    pad: Sequence[PadRule] = (),
    allow_inconsistent: Sequence[str] = (),
    lowest_replica: bool = False,
) -> Model:
    """Return the model of a transform.

    Args:
        inventory: files of the source.
        source: source strategy, with the names in the source's files. None means one rank with whole parameters.
        target: target strategy, with the names in the target's files. None means one rank with whole parameters.
        keep_source_only: whether parameters that only the source strategy names are copied whole to every target rank. Otherwise,
            they are omitted.
        allow_missing: whether parameters that only the target strategy names are omitted. Otherwise, they are an error, except
            for `accu_grads*`, which are always omitted.
        one_stage: whether the source is one of several pipeline stages, so that its files need not contain all parameters.
        only: target rank to write, from files that were selected for it. None means all ranks, from all files.
        incomplete: whether files of source ranks may be missing. A missing slice is then an error only if a target rank needs it.
        target_ranks: number of target ranks that each get a chunk of dimension 0, without a target strategy.
        include: patterns of source names of parameters to write. Empty means all.
        exclude: patterns of source names of parameters to omit, among those. The target strategy may name them.
        rename: rules that rename parameters.
        pad: rules that pad or trim parameters.
        allow_inconsistent: patterns of source parameters that no strategy names and whose copies may differ.
        lowest_replica: whether each slice is read from the lowest rank that holds it.

    Raises:
        DataError: files and strategies contradict each other, or a layout does not divide a parameter evenly.
        MissingInputError: a rank or a parameter is missing.
        RequestError: a source with several ranks has no strategy, two parameters would have the same name, or all parameters are
            excluded.
    """
    all_there = only is None and not incomplete
    _check_files(inventory, source, all_there=all_there)
    in_source, in_target = names_in(source), names_in(target)
    in_parts = stages_of_parts(inventory) if inventory.kind == "Unified" else {}
    entries, structures = _found(inventory, {name for name, stages in in_source.items() if len(stages) > 1})
    excluded = dict.fromkeys(inventory.unread) | excluded_by(entries, include, exclude)
    names = renamed(entries, rename, excluded=excluded, all_there=not one_stage)
    held = names.keys() if not rename else frozenset(names.values())
    refuse_slices(inventory, names, in_target)
    devices = target.devices if target else target_ranks or 1
    source_devices = source.devices if source else len(inventory.files) - inventory.documents if inventory.unified else 1
    lengths = lengths_by_name(entries, pad, all_there=not one_stage)
    shards, may_differ = _shards(inventory, names), matching(names, allow_inconsistent)
    kinds = Kinds(inventory, (source, target), devices, shards, lengths, may_differ)
    special = {*in_parts, *lengths, *may_differ}
    needed = _needed(target, only)
    unwanted = new_names(excluded, rename)
    not_found = [] if needed.keys() <= held else [name for name in needed if name not in held and name not in unwanted]
    parameters, source_only, missing = [], [], [] if one_stage else not_found.copy()
    either = (False, True)
    roles = {key: _role(source, target, inventory.kind, in_source=key[0], in_target=key[1]) for key in product(either, either)}
    known: dict[Hashable, tuple[ParameterKind, ...]] = {}
    for name, new in names.items():
        before, after, entry, among = in_source.get(name, ()), in_target.get(new, ()), entries[name], structures[name]
        # Most parameters are alike. The dicts hold the stages and the placements, so that their identities are unique.
        places = shards.get(name)
        key = (entry.dtype, entry.shape, among, id(before), id(after), None if places is None else id(places.placement))
        found = None if name in special else known.get(key)
        if found is None:
            role = roles[bool(before) or name in in_parts, bool(after)]
            if role is None:
                missing += [new] if new in needed else []
                continue
            if role is Role.KEPT and not keep_source_only:
                source_only.append(name)
                continue
            found, are_alike = kinds.of(name, new, entry, among, role, before, after)
            if are_alike and name not in special:
                known[key] = found
        parameters.append(Parameter(new, name, found[0], places))
        if len(found) > 1:
            parameters += [Parameter(new, name, kind, places) for kind in found[1:]]
    # Pipeline strategies name the buffers of accumulated gradients, which MindSpore's loader does not require.
    required = [name for name in missing if not name.startswith("accu_grads")]
    if required and not allow_missing:
        _refuse_missing(required, held)
    if not one_stage:  # another stage may hold something that is wanted
        refuse_nothing(names, (*inventory.unread, *entries))
    return Model(
        inventory=inventory,
        source_devices=source_devices,
        source_stages=len(source.stages) if source else 1,
        target_devices=devices,
        target_stages=len(target.stages) if target else 1,
        parameters=tuple(parameters),
        source_only=tuple(source_only),
        target_only=tuple(missing),
        not_in_files=tuple([n for n in (*in_source, *in_parts) if n not in entries and n not in needed]) if all_there else (),
        in_other_stages=tuple(not_found) if one_stage else (),
        first_stage=source.first if source else 0,
        excluded=tuple(excluded),
        excluded_by_rename=tuple([name for name in entries if name not in names and name not in excluded]),
        lowest_replica=lowest_replica,
    )


def _role(source: Strategy | None, target: Strategy | None, kind: Kind, *, in_source: bool, in_target: bool) -> Role | None:
    """Return the role of a parameter of the source's files.

    Args:
        source: source strategy, if there is one.
        target: target strategy, if there is one.
        kind: kind of the source's files.
        in_source: whether the source strategy names the parameter.
        in_target: whether the target strategy names the parameter.

    Returns:
        The role, or None if a source strategy exists, but only the target strategy names the parameter.
    """
    if not in_source and not in_target:
        nothing_names = source is None and target is None and kind != "Unified"
        return Role.CUT if nothing_names else Role.REPLICATED
    if not in_source and source is not None:
        return None
    if not in_target and target is not None:
        return Role.KEPT
    return Role.CUT


def _needed(target: Strategy | None, only: int | None) -> dict[str, None]:
    """Return the names in the target strategy, of all ranks or of one rank. A rank that does not exist has no names."""
    stages = target.stages if target is not None else ()
    if target is not None and only is not None:
        stages = tuple(layouts for stage, layouts in enumerate(stages) if stage == only // target.devices)
    return dict.fromkeys(chain.from_iterable(stages))


def refuse_empty(inventory: Inventory) -> None:
    """Check that at least one file contains parameters. MindSpore saves empty files on ranks without parameters of their own.

    Raises:
        DataError: all files are empty.
    """
    if inventory.names or inventory.unread:
        return
    where, what = "source", "the files contain no parameters"
    if len(inventory.files) == 1:
        where, what = inventory.files[0].path, "the file contains no parameters"
    raise DataError("Empty", what, where=where, fix="check that the source is the intended one, and restore missing files")


def refuse_strategy() -> NoReturn:
    """Refuse a source strategy for files that are not sharded by a strategy.

    Raises:
        RequestError: always.
    """
    raise RequestError(
        "SourceIsUnified",
        "the source is not sharded by a strategy, so a source strategy does not apply",
        where="source",
        fix="omit --source-strategy (spec.source.strategy), or --strategy of `reshard inspect`",
    )


def _check_files(inventory: Inventory, source: Strategy | None, *, all_there: bool) -> None:
    """Check that the files are those that the source strategy describes."""
    if inventory.unified:
        refuse_empty(inventory)
        if source is not None:
            refuse_strategy()
        return
    expected = source.numbers if source else range(1)
    ranks = [file.rank for file in inventory.files]
    if ranks or not all_there:
        refuse_empty(inventory)
    if source is None and len(ranks) > 1:
        raise RequestError(
            "SourceStrategyMissing",
            f"the source has {len(ranks)} ranks, but no strategy describes how they shard the parameters",
            where="source",
            fix="specify the strategy that the source was trained with (--source-strategy, spec.source.strategy)",
        )
    extra = [rank for rank in ranks if rank not in expected]
    if extra and source is None:
        raise RequestError(
            "SourceStrategyMissing",
            f"the source has only rank {extra[-1]}, and no strategy describes which slices that rank holds",
            where="source",
            fix="specify the source strategy and use the files of all ranks; if this file holds whole parameters, use only the"
            " file as"
            " the source",
        )
    if extra:
        raise DataError(
            "SourceRanksMismatch",
            f"the source strategy describes {len(expected)} ranks, but the source contains rank {extra[-1]}",
            where="source",
            fix="use the strategy that the source was trained with",
        )
    if len(ranks) < len(expected) and all_there:
        absent = sorted(set(expected) - set(ranks))
        raise MissingInputError(
            "SourceRankMissing",
            f"the source strategy describes {_numbered(expected)}, but the source contains no checkpoint of rank"
            f" {listed(absent)}",
            where="source",
            fix="restore the missing files, or use the strategy that the source was trained with",
        )


def _found(inventory: Inventory, in_stages: Collection[str]) -> tuple[dict[str, TensorEntry], Mapping[str, tuple[int, ...]]]:
    """Return the first entry of each parameter, and the structures that contain it. Type and shape must be equal in all of them.

    `SourceStages` compares the shapes of parameters `in_stages`, because several pipeline stages may shard them differently.
    """
    first = {entry.name: entry for structure in inventory.structures[:1] for entry in structure.tensors}
    structures: dict[str, tuple[int, ...]] = dict.fromkeys(first, (0,))
    for number, structure in enumerate(inventory.structures[1:], 1):
        longer: dict[tuple[int, ...], tuple[int, ...]] = {}
        for entry in structure.tensors:
            name = entry.name
            other = first.setdefault(name, entry)
            before = structures.get(name, ())
            if other is not entry and (entry.dtype != other.dtype or (entry.shape != other.shape and name not in in_stages)):
                raise DataError(
                    "RanksDisagree",
                    f"the parameter is {other.dtype}{list(other.shape)} in {_file_of(inventory, before[0])},"
                    f" but {entry.dtype}{list(entry.shape)} in {_file_of(inventory, number)}",
                    where=f"parameter {name}",
                    fix="restore files of all ranks from the same training step",
                )
            if (after := longer.get(before)) is None:
                after = longer[before] = (*before, number)
            structures[name] = after
    for tensor in inventory.tensors:
        first[tensor.name] = TensorEntry(tensor.name, tensor.dtype, tensor.shape, ())
        structures[tensor.name] = ()
    for each in reversed(inventory.objects):
        first[each.name] = TensorEntry(each.name, OBJECT, (each.length,), ())
        structures[each.name] = ()
    return first, structures


def _file_of(inventory: Inventory, structure: int) -> str:
    return next(file.path for file in inventory.files if file.structure == structure)


def _shards(inventory: Inventory, names: Collection[str]) -> dict[str, Shards]:
    """Return the shards of those of these parameters that metadata locates. Of copies of an object, the first is taken."""
    if not (inventory.tensors or inventory.objects):
        return {}
    from reshard.model import Divisions, Placements  # noqa: PLC0415 - as the next import
    from reshard.model.packing import unpack, unpack_object  # noqa: PLC0415 - files of ranks, which start faster, need no shards

    sizes = [file.size for file in inventory.files]
    divisions, placements = Divisions(), Placements()
    wanted = (tensor for tensor in inventory.tensors if tensor.name in names)
    found = {tensor.name: placements.share(unpack(tensor, sizes, divisions).shards) for tensor in wanted}
    for each in reversed(inventory.objects):
        if each.name in names:
            found[each.name] = unpack_object(each, sizes)
    return found


def _refuse_missing(missing: list[str], held: Collection[str]) -> NoReturn:
    unnamed = [name for name in missing if name in held]
    raise MissingInputError(
        "ParameterMissing",
        "the target strategy contains parameters that "
        + (
            f"the source strategy does not contain: {listed(unnamed)}"
            if unnamed
            else f"no source file contains: {listed(missing)}"
        ),
        where="source",
        fix="use matching strategies, or skip these parameters with --allow-missing (spec.parameters.allowMissing)",
    )


def _numbered(ranks: range) -> str:
    return f"ranks {ranks[0]}-{ranks[-1]} of one stage" if ranks[0] else f"{len(ranks)} ranks"
