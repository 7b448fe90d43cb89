"""The inputs of a request: its strategies, and the files of its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.errors import DataError, RequestError
from reshard.formats.registry import requested_output
from reshard.mesh.file import LayoutFile
from reshard.mesh.scale import Scale
from reshard.plan.rules import selection
from reshard.source.cuts import recorded_strategy, refuse_other_cuts, refuse_other_shapes
from reshard.source.described import refuse_partial
from reshard.source.encrypted import as_plain
from reshard.source.files import open_source, refuse_part
from reshard.source.finding import find_files
from reshard.source.reading import read_inventory
from reshard.source.single import others_of, refuse_one_of_several
from reshard.source.strategies import read_layouts
from reshard.spec.layout import LayoutDocument
from reshard.spec.request import Request, request_key
from reshard.spec.storage_options import RequestStorageOptions
from reshard.storage.cancellable import CancellableStore
from reshard.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.encryption import Known
    from reshard.plan import Model
    from reshard.progress import Cancellation
    from reshard.source.files import Files, OpenSource
    from reshard.spec.keys import Encryption
    from reshard.spec.request import Options
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore

    # Strategy or layout file of the source, and of the target.
    Strategies = tuple[Strategy | LayoutFile | None, Strategy | LayoutFile | Scale | None]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a request. Each is opened, listed or read once, when it is first needed.

    Attributes:
        request: request of the transform.
        cancellation: object that cancels the reads from another thread.
    """

    request: Request
    cancellation: Cancellation | None = None

    @cached_property
    def opened(self) -> OpenSource:
        """The source, as it is stored."""
        return open_source(self.request.source, self.request.storage_options.source)

    @cached_property
    def store(self) -> ReadStore:
        """Store of the source's files, decrypted."""
        return decrypted(self.opened.store, self.request, cancellation=self.cancellation)

    @cached_property
    def strategies(self) -> Strategies:
        """The strategies of the request.

        Raises:
            DataError, MissingInputError: a strategy is damaged or missing.
            AccessError, StorageError: a strategy cannot be read.
        """
        return strategies_of(self.request)

    @cached_property
    def files(self) -> Files:
        """The selected files of the source.

        Raises:
            ReshardError: there are no files, the selection is ambiguous, or the file of one rank would be read as a complete
                checkpoint.
        """
        return _find(cancellable(self.opened.store, self.cancellation), self.opened.chosen, self.request, self.strategies[0])


def strategies_of(request: Request) -> Strategies:
    """Read the strategies of a request.

    Raises:
        DataError, MissingInputError: a strategy is damaged or missing.
        AccessError, StorageError: a strategy cannot be read.
        RequestError: the output requires the strategy of one stage.
        UsageError: a field of a layout file is invalid.
    """
    storage_options, one_stage = request.storage_options, request.options.kind.one_stage
    before: Strategy | LayoutFile | None = None
    after: Strategy | LayoutFile | Scale | None = None
    if isinstance(request.source_strategy, LayoutDocument):
        before = LayoutFile(request.source_strategy, "layout of the source")
    elif request.source_strategy:
        before = read_layouts(
            request.source_strategy, storage_options.source_strategy or storage_options.source, one_stage=one_stage
        )
    elif one_stage:
        raise RequestError(
            "SourceStrategyMissing",
            "the output Stage writes one pipeline stage, and no strategy describes the stage of the source",
            where="source strategy",
            fix="specify the strategy of that stage (--source-strategy, spec.source.strategy)",
        )
    if request.scale is not None:
        after = Scale(request.scale)
    elif isinstance(request.target_strategy, LayoutDocument):
        after = LayoutFile(request.target_strategy, "layout of the target")
    elif request.target_strategy:
        after = read_layouts(request.target_strategy, storage_options.target_strategy or storage_options.target)
    if one_stage and (files := [each for each in (before, after) if isinstance(each, LayoutFile)]):
        raise RequestError(
            "LayoutFileNotAccepted",
            "the output Stage requires the layouts of all stages, but the source has the parameters of one",
            where=files[0].name,
            fix="write the strategy files of all stages with `reshard layout export`, and use these",
        )
    return before, after


def source_layouts(request: Request, given: Strategy | LayoutFile | None, found: Files) -> Strategy | LayoutFile | None:
    """Return the strategy or layout file of a source: that of the request or, without one, the strategy in the manifest.

    Args:
        request: request of the transform.
        given: strategy or layout file of the request.
        found: files of the source.

    Raises:
        DataError: the manifest contradicts itself, or the strategy.
        MissingInputError: only some ranks of the checkpoint were written.
        RequestError: no strategy can describe the layouts in the manifest.
    """
    if not isinstance(given, LayoutFile):
        _refuse_other_cuts(request, found, given)
    manifest = found.manifest
    if given is not None or manifest is None or request.options.kind.each_file or len(found.by_rank) == 1:
        return given
    refuse_partial(manifest, request.source)
    strategy = recorded_strategy(manifest, f"{request.source}/{MANIFEST_NAME}")
    if strategy is not None and (name := strategy.uneven) is not None:
        raise RequestError(
            "LayoutUneven",
            "the slices of ranks have different lengths, and files of ranks do not state which elements they contain",
            where=f"{request.source}: parameter {name}",
            fix="use the source that this checkpoint was created from, or create it again in a format that locates the slices,"
            " such as --format torch-dcp (spec.target.format: TorchDcp)",
        )
    return strategy


def refuse_contradictions(
    request: Request, found: Files, given: Strategy | LayoutFile | None, source: Strategy | None, model: Model
) -> None:
    """Refuse a source whose manifest contradicts the files, or the layout file of the request.

    A strategy of the request is compared with the manifest before the files are read, see `source_layouts`.

    Args:
        request: request of the transform.
        found: files of the source.
        given: strategy or layout file of the request.
        source: source strategy that follows from it, or from the manifest.
        model: parameters in the files.

    Raises:
        DataError: they contradict each other.
    """
    if isinstance(given, LayoutFile):
        _refuse_other_cuts(request, found, source)
    if found.manifest is not None and given is None and source is not None:
        refuse_other_shapes(found.manifest, model, f"{request.source}/{MANIFEST_NAME}")


def _refuse_other_cuts(request: Request, found: Files, source: Strategy | None) -> None:
    if not request.options.kind.each_file and (source is not None or len(found.by_rank) == 1):
        refuse_other_cuts(found.parameters, source, request.source, found.written_as)


def _find(store: ReadStore, chosen: str | None, request: Request, source: Strategy | LayoutFile | None) -> Files:
    options, ranks = request.options, None if source is None else source.numbers
    one_stage, each = options.kind.one_stage, options.kind.each_file
    storage_options = request.storage_options.source
    found = find_files(
        store,
        chosen,
        step=options.step,
        pattern=options.files,
        ranks=ranks,
        one_stage=one_stage,
        each=each,
        storage_options=storage_options,
        source_format=options.source_format,
        wanted=None if each else selection(options.include, options.exclude),
    )
    single = len(found.by_rank) == 1 and (ranks is None or len(ranks) == 1)
    if each:
        found = found if options.allow_single_rank else _some(store, found, storage_options)
    elif not (one_stage or (single and options.allow_single_rank)):
        refuse_part(found, 1 if ranks is None else len(ranks), request.source)
    if single and not (found.described or each or options.allow_single_rank):
        ((rank, path),) = found.by_rank.items()
        refuse_one_of_several(store, path, storage_options, rank=rank if one_stage else None)
    return found


def _some(store: ReadStore, found: Files, storage_options: StorageOptions | None) -> Files:
    """Return files that are read separately, marked if they are known to be only some of a checkpoint's."""
    some = found.some or len(found.by_rank) < found.total
    if len(found.by_rank) == 1 and not found.described:
        some = some or others_of(store, next(iter(found.by_rank.values())), storage_options) is not None
    return found._replace(some=some)


def source_names(request: Request, *, workers: int) -> dict[str, bool]:
    """Return the names of the source's parameters, and whether its strategy names them (without a strategy file: true)."""
    inputs = Inputs(request)
    source = source_layouts(request, inputs.strategies[0], inputs.files)
    inventory = read_inventory(inputs.store, inputs.files, workers=workers)
    named = {name for stage in source.stages for name in stage} if isinstance(source, Strategy) else None
    return {name: named is None or name in named for name in inventory.names}


def inputs_to_read(
    url: str,
    options: Options,
    *,
    strategy: str | None,
    storage_options: StorageOptions | None,
    decryption: Encryption | None,
    cancellation: Cancellation | None,
) -> Inputs:
    """Return the inputs of work that reads a checkpoint and writes nothing."""
    stores = RequestStorageOptions() if storage_options is None else RequestStorageOptions(source=storage_options)
    request = Request(
        source=url, target="", source_strategy=strategy, options=options, storage_options=stores, decryption=decryption
    )
    return Inputs(request, cancellation)


def listing_identifies(request: Request, store: ReadStore) -> bool:
    """Return whether a listing of the source can prove that a complete checkpoint is the result of a request.

    ETags identify the content of objects, but a file system has only times. A key is checked by decrypting. The listing does not
    include files that are carried unchanged.
    """
    kind = request.options.kind
    plain = request.index is None and request.encryption is None and request.decryption is None
    carries = request.options.copy_settings or requested_output(request_key(request), "").companions
    return plain and not carries and store.remote and kind.writes_files and not kind.one_stage


def decrypted(
    store: ReadStore, request: Request, known: Mapping[str, Known] | None = None, *, cancellation: Cancellation | None = None
) -> ReadStore:
    """Return a store with decrypted files. Files that are not known are read and checked completely when they are opened."""
    if known and request.decryption is None:
        raise DataError(
            "Encrypted",
            "the files of the source are encrypted",
            where=store.url,
            fix="specify the key with --decryption-key-file (spec.source.decryption)",
        )
    return store if request.decryption is None else as_plain(cancellable(store, cancellation), request.decryption, known)


def cancellable(store: ReadStore, cancellation: Cancellation | None) -> ReadStore:
    """Return a store whose reads end when the work is cancelled."""
    return store if cancellation is None else CancellableStore(store, cancellation.check)
