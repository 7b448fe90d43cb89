"""Prepare the task of a request from strategies and headers, or from an index or a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.engine.task import Task, key_of, task_of
from reshard.errors import DataError, MissingInputError, RequestError, ReshardError
from reshard.plan import Planner
from reshard.source.changed import refuse_changed
from reshard.source.contents import check_crcs
from reshard.source.encrypted import DecryptingStore
from reshard.source.files import Files, listing_digest
from reshard.source.index import CheckpointIndex, Selected, decode_index, read_index
from reshard.source.keys import read_key
from reshard.source.reading import read_inventory
from reshard.source.selection import option_for
from reshard.spec.ranks import parse_ranks
from reshard.spec.request import SETTLED_BY_INDEX, STRICTNESS, Options, Request
from reshard.strategy.packed import pack
from reshard.telemetry import phase
from reshard.transform.carried import read_carried
from reshard.transform.consistency import check_copies, refuse_possible_slices
from reshard.transform.inputs import cancellable, decrypted, listing_identifies, refuse_contradictions, source_layouts
from reshard.transform.layouts import Placed, known_target, place, scaled_target
from reshard.transform.shards import check_shards
from reshard.transform.trimmed import check_trimmed

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.checkpoint.inventory import Inventory
    from reshard.mesh.file import LayoutFile
    from reshard.plan import Model
    from reshard.progress import Cancellation, Progress
    from reshard.source.selection import Selection
    from reshard.storage.protocol import ReadStore
    from reshard.strategy import Strategy
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot
    from reshard.transform.inputs import Inputs, Strategies


def encode_index(task: Task) -> bytes:
    """Return the index of a task. `resume` reads it, and a target with `output: Index` contains it."""
    options = task.request.options
    source, target = task.strategies
    index = CheckpointIndex(
        digest=task.digest,
        inventory=task.model.inventory,
        inconsistent_replicas=tuple(sorted(task.model.inconsistent_replicas)),
        checked=options.verification,
        source_strategy=pack(source),
        target_strategy=pack(target),
        layout=task.layout,
        selected=task.selected,
        encrypted=dict(sorted(task.source.known.items())) if isinstance(task.source, DecryptingStore) else {},
        **{name: getattr(options, name) for name in SETTLED_BY_INDEX},
    )
    return msgspec.json.encode(index)


def prepare(inputs: Inputs, progress: Progress, *, workers: int, single: bool = False) -> Task:
    """Read strategies and headers, or the index that contains them, and plan the target.

    Args:
        inputs: inputs of the request.
        progress: receiver of the progress.
        workers: number of files read at a time.
        single: whether only one target rank is written, instead of those in the request. Fewer blocks of replicas are compared
            then.

    Raises:
        DataError, MissingInputError, RequestError: files or strategies are damaged, missing, or do not match.
        AccessError, StorageError: a file cannot be read.
    """
    request = inputs.request
    if request.index is not None:
        return _indexed(inputs, request.index)
    strategies, found = inputs.strategies, inputs.files
    return prepare_files(
        request, inputs.store, found, strategies, progress, workers=workers, single=single, cancellation=inputs.cancellation
    )


def prepare_files(  # noqa: PLR0913 - the source, and how to read it
    request: Request,
    store: ReadStore,
    found: Files,
    strategies: Strategies,
    progress: Progress,
    *,
    workers: int,
    only: int | None = None,
    single: bool = False,
    cancellation: Cancellation | None = None,
) -> Task:
    """Prepare a request whose source consists of these files.

    Args:
        request: request of the transform.
        store: store of the files.
        found: selected files.
        strategies: source strategy and target strategy.
        progress: receiver of the progress.
        workers: number of files read at a time.
        only: target rank to write, from the files that it needs. None means all ranks, from all files.
        single: whether only one target rank is written, instead of those in the request. Fewer blocks of replicas are compared
            then.
        cancellation: object that cancels the reads from another thread.
    """
    plain, store = store, cancellable(store, cancellation)
    layouts = source_layouts(request, strategies[0], found), scaled_target(request, strategies, found)
    progress.begin("Reading headers", len(found.by_rank), "files")
    with phase("read_headers", files=len(found.by_rank)):
        placed = _read(request, store, found, layouts, workers=workers, only=only, advance=progress.advance)
    model, source, target = placed.model, *placed.strategies
    refuse_contradictions(request, found, strategies[0], source, model)
    inventory, kind = model.inventory, request.options.kind
    if not (kind.writes_files or single):  # a load needs only the slices of its rank
        Planner(model).check_slices()
    refuse_possible_slices(model, found.may_be_slices, request.options)
    fully = request.options.verification == "Full"
    try:
        if fully and (marked := sum(file.size for file in inventory.checkable)):
            progress.begin("Checking CRCs", marked, "bytes")
            with phase("check_crcs", bytes_checked=marked):
                check_crcs(store, inventory, workers=workers, advance=progress.advance)
        with phase("compare_replicas"):
            inconsistent = check_copies(
                store, model, request.options, progress, workers=workers, single=single or only is not None
            )
            inconsistent |= check_shards(store, model, request.options, workers=workers)
        check_trimmed(store, model)
    except (DataError, MissingInputError):
        refuse_changed(store, inventory)
        raise
    model = replace(model, inconsistent_replicas=inconsistent)
    stages = _stages(request, source, target, found) if source is not None and kind.one_stage else None
    selected = Selected(found.step, stages, found.some and kind.each_file)
    carried = read_carried(store, request, inventory)
    model = replace(model, inventory=msgspec.structs.replace(inventory, carried=carried.records))
    notes = (*found.notes, *placed.notes)
    task = task_of(
        request,
        plain,
        model,
        (source, target),
        described=strategies,
        key=_key(request),
        selected=selected,
        notes=notes,
        layout=placed.layout,
    )
    task = replace(task, carried=carried.contents)
    if listing_identifies(request, store):
        versions = {file.path: (file.size, file.version) for file in inventory.files}
        task = replace(task, listing=listing_digest(task.key, found, versions))
    return task


def _read(
    request: Request,
    store: ReadStore,
    found: Files,
    strategies: tuple[Strategy | LayoutFile | None, Strategy | LayoutFile | None],
    *,
    advance: Callable[[int], None],
    workers: int,
    only: int | None,
) -> Placed:
    """Read the headers of a source's files, and match the parameters with the strategies.

    Raises:
        DataError: a file is damaged, or files and strategies contradict each other. If a file of the newest step is damaged, the
            error names the newest older step that is intact.
    """
    inventory: Inventory | None = None
    try:
        inventory = read_inventory(store, found, workers=workers, advance=advance)
        placed = place(inventory, *strategies, request, only=only)
        _check_shards(placed.model, request.options, only)
    except (DataError, MissingInputError) as error:
        if inventory is not None and not inventory.empty_files:
            raise
        for older in found.older:
            try:
                inventory = read_inventory(store, Files(older.files), workers=workers)
                _check_shards(place(inventory, *strategies, request, only=only).model, request.options, only)
            except (DataError, MissingInputError, RequestError):
                continue
            raise _with_older(error, older, found) from error
        raise
    return placed


def _check_shards(model: Model, options: Options, only: int | None) -> None:
    """Refuse files that lack a parameter, unless other files hold everything that the target ranks need.

    Raises:
        MissingInputError: no file holds a slice.
    """
    if not model.inventory.empty_files or options.kind.each_file or not options.kind.writes_files:
        return
    ranks = range(model.target_ranks) if only is None else (only,)
    planner = Planner(model)
    for rank in ranks if options.only_ranks is None else parse_ranks(options.only_ranks, model.target_ranks):
        planner.sources(rank)


def _with_older(error: DataError | MissingInputError, older: Selection, found: Files) -> ReshardError:
    """Return the same error with the option that selects an older step."""
    steps = [step for step in (found.step, *(each.step for each in found.older)) if step is not None]
    if older.step is None:
        return error
    epoch, step = older.step
    choice = f"read step {step} of epoch {epoch}, which is complete on every rank: {option_for(older.step, steps)}"
    return type(error)(error.reason, error.what, where=error.where, fix=f"{error.fix}, or {choice}" if error.fix else choice)


def _stages(request: Request, source: Strategy, target: Strategy | None, found: Files) -> int | None:
    """Return the number of pipeline stages of which the source is one, or None if it is unknown.

    Raises:
        RequestError: this number is impossible, or is required to determine when all stages are finished.
    """
    stages = request.options.stages
    if stages is None and found.ranks is not None and found.ranks > source.devices and found.ranks % source.devices == 0:
        stages = found.ranks // source.devices
    if stages is not None and source.first >= stages:
        raise RequestError(
            "NoSuchStage",
            f"the source strategy describes pipeline stage {source.first}, but the number of stages is {stages}",
            where="stages",
            fix="use the strategy that the source was trained with, or correct --stages (spec.source.stages)",
        )
    if stages is None and target is None:
        raise RequestError(
            "StagesUnknown",
            "the number of pipeline stages of the source is unknown, so no run can detect that it is the last",
            where="stages",
            fix="specify it with --stages (spec.source.stages), or use the folder that contains the ranks of all stages",
        )
    return stages


def _indexed(inputs: Inputs, url: str) -> Task:
    """Prepare a task from an index.

    Raises:
        DataError: the index is damaged.
        RequestError: the source was checked at a lower level, see `CheckpointIndex.check_level`.
    """
    request, storage_options = inputs.request, inputs.request.storage_options
    index = read_index(url, storage_options.index or storage_options.source)
    index.check_level(request.options.verification, url)
    settled: dict[str, Any] = {name: getattr(index, name) for name in SETTLED_BY_INDEX}
    request = msgspec.structs.replace(request, index=None, options=msgspec.structs.replace(request.options, **settled))
    source, target = index.strategies()
    store = inputs.opened.store
    model = place(index.inventory, source, target, request).model
    model = replace(model, inconsistent_replicas=frozenset(index.inconsistent_replicas))
    unwritten = msgspec.structs.replace(request, options=Options(output="Index", **settled), encryption=None)
    original = task_of(unwritten, store, model, (source, target), layout=index.layout)
    if original.digest != index.digest:
        raise DataError("IndexDamaged", "the content does not match its digest", where=url, fix="create the index again")
    plain = decrypted(store, request, index.encrypted, cancellation=inputs.cancellation)
    carried = read_carried(store, request, model.inventory, indexed=True)
    model = replace(model, inventory=msgspec.structs.replace(model.inventory, carried=carried.records))
    task = task_of(request, plain, model, (source, target), key=_key(request), layout=index.layout)
    return replace(task, indexed=True, carried=carried.contents)


def resume(inputs: Inputs, target: TargetFolder, snapshot: TargetSnapshot) -> Task | None:
    """Return the task that an earlier plan of the same request stored in the target, without reading headers again.

    None: there is no such plan, it checked less than the request requires, or the request uses an index.
    """
    request = inputs.request
    if request.index is not None:
        return None  # reading the index costs as little
    source, wanted = inputs.strategies
    key = key_of(request, source, wanted)
    for document in snapshot.tasks:
        if document.request == key:
            state = target.task(document.digest)
            stored = decode_index(state.index(), f"{target.store.url}/{state.folder}/inventory.json")
            if STRICTNESS[request.options.verification] > STRICTNESS[stored.checked]:
                return None  # the plan was created for fewer ranks or checks
            before = stored.strategies()[0] if source is None else source  # a manifest of the source may have stated it
            placed = place(stored.inventory, before, known_target(wanted, stored.layout), request)
            model = replace(placed.model, inconsistent_replicas=frozenset(stored.inconsistent_replicas))
            plain = decrypted(inputs.opened.store, request, stored.encrypted, cancellation=inputs.cancellation)
            task = task_of(
                request,
                plain,
                model,
                placed.strategies,
                described=(source, wanted),
                key=_key(request),
                selected=stored.selected,
                layout=placed.layout,
            )
            for known in task.namesakes:
                if known.digest == document.digest:
                    return replace(known, planned=True)
    return None


def _key(request: Request) -> bytes | None:
    return None if request.encryption is None else read_key(request.encryption)
