"""The files of a checkpoint that its manifest lists, and those that follow from the manifest: index files and the strategy."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.inventory import Inventory
from reshard.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, STRATEGY_NAME
from reshard.checkpoint.output import OutputFile, digest_of_tensors
from reshard.checkpoint.unified import HYPER_NAME, MAP_NAME, map_of
from reshard.engine.task import output_tensors
from reshard.errors import DataError, RequestError
from reshard.formats.registry import document_names, requested_output
from reshard.plan import Kind, Model, Parameter, Planner, Role
from reshard.source.cuts import layout_of, recorded_strategy
from reshard.source.described import files_there, refuse_missing
from reshard.spec.outputs import output_of
from reshard.storage.digest import ContentDigest
from reshard.strategy import StrategyFile, dump

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.checkpoint.manifest import KindRecord, Manifest
    from reshard.storage.protocol import ReadStore, Stat


class Expected(NamedTuple):
    """The content of an index file that a manifest determines."""

    size: int
    digest: str


def expected_documents(manifest: Manifest) -> dict[str, Expected]:
    """Return the index files of a checkpoint by path, with the files that were copied from the source.

    Raises:
        DataError: the manifest contradicts itself, or another version of Reshard wrote it.
    """
    expected = {name: Expected(len(content), str(ContentDigest(content))) for name, content in documents_of(manifest).items()}
    expected |= {file.path: Expected(file.size, file.digest) for file in manifest.carried}
    if manifest.index is not None:
        expected[INDEX_NAME] = Expected(manifest.index.size, manifest.index.digest)
    return expected


def check_exists(store: ReadStore, manifest: Manifest, documents: Mapping[str, Expected]) -> dict[str, Stat]:
    """Refuse a folder that lacks a file of its manifest, or one of these index files.

    Returns:
        The files of the folder, see `files_there`.

    Raises:
        MissingInputError: a file does not exist.
    """
    entries = store.list("")
    there = files_there(store, manifest, entries)
    refuse_missing(store, [*(record.path for record in manifest.files), *documents], {*there, *(entry.name for entry in entries)})
    return there


def changed_documents(store: ReadStore, documents: Mapping[str, Expected]) -> list[str]:
    """Return those of the index files of a checkpoint that do not exist, or have another content."""
    there = store.stats([*documents]) if documents else {}

    def is_equal(name: str, size: int, digest: str) -> bool:
        found = there.get(name)
        return found is not None and found.size == size and str(ContentDigest(store.read(name, size))) == digest

    return [name for name, (size, digest) in documents.items() if not is_equal(name, size, digest)]


def documents_of(manifest: Manifest) -> dict[str, bytes]:
    """Return the documents that complete a checkpoint, such as index files, by name. They follow from its manifest alone.

    Raises:
        DataError: the manifest contradicts itself, or another version of Reshard wrote it.
    """
    if not manifest.files:
        return {}
    return _documents_of_format(manifest) | strategy_document(manifest)


def strategy_document(manifest: Manifest) -> dict[str, bytes]:
    """Return the strategy file of a checkpoint by its name, or nothing if the request does not ask for it.

    It also describes the ranks that were not written. MindSpore reads several pipeline stages in one file.

    Raises:
        DataError: the manifest contradicts itself.
        RequestError: a strategy file cannot describe the layouts.
    """
    if STRATEGY_NAME not in document_names(manifest.options):
        return {}
    strategy = recorded_strategy(manifest, MANIFEST_NAME)
    file = StrategyFile(STRATEGY_NAME, dict(enumerate(strategy.stages)) if strategy else {0: {}})
    try:
        return {STRATEGY_NAME: dump(file, "protobuf")}
    except RequestError as error:
        fix = "correct the layout of the target, or omit --write-strategy (spec.target.writeStrategy)"
        raise RequestError(error.reason, error.what, where=error.where, fix=fix) from error


def _documents_of_format(manifest: Manifest) -> dict[str, bytes]:
    """Return the documents that the format of a checkpoint requires.

    A checkpoint with only some ranks has none: torch and Hugging Face libraries would load it without an error, and keep the
    initial values of the rest.
    """
    names = {*document_names(manifest.options)} - {STRATEGY_NAME}
    if not names:
        return {}
    if MAP_NAME in names:
        return {MAP_NAME: _map(manifest)}
    if len(manifest.files) < manifest.target_ranks:
        return {}
    planner = _planner_of(manifest)
    files = []
    for record in sorted(manifest.files, key=lambda record: record.rank):
        tensors = output_tensors(planner, record.rank)
        if digest_of_tensors(tensors) != record.tensors:
            raise DataError(
                "DocumentInvalid",
                f"the manifest does not describe the tensors of {record.path}, or another version of reshard wrote it",
                where=MANIFEST_NAME,
                fix="use the version of reshard that wrote it, or write the checkpoint again to another target",
            )
        files.append(OutputFile(record.path, record.size, tensors))
    return dict(requested_output(manifest.options, manifest.source.format).documents(files))


def _map(manifest: Manifest) -> bytes:
    """Return MindSpore's index of a unified checkpoint, without the file of parameters that no strategy names."""
    files = {record.rank: record.path for record in manifest.files if record.path != HYPER_NAME}
    _check_types(manifest)
    shown = [(record.name, kind) for record, kind in manifest.parameters if kind.target.stages[0] in files]
    nbytes = sum(prod(kind.shape) * DTYPES[kind.dtype].itemsize for _, kind in shown)
    return map_of({name: files[kind.target.stages[0]] for name, kind in shown}, nbytes)


def _check_types(manifest: Manifest) -> None:
    if unknown := next(((record, kind) for record, kind in manifest.parameters if kind.dtype not in DTYPES), None):
        raise DataError(
            "UnknownType",
            f"the type {unknown[1].dtype[:32]!r} is unknown",
            where=f"parameter {unknown[0].name}",
            fix="use the version of reshard that wrote it",
        )


def _planner_of(manifest: Manifest) -> Planner:
    """Return a planner that knows which rank holds which slices, and nothing of the source."""
    _check_types(manifest)
    unified = output_of(manifest.options).whole
    kinds = [_kind(kind) for kind in manifest.parameters.kinds]
    parameters = tuple(Parameter(p.name, p.name, kinds[p.kind]) for p in manifest.parameters.records)
    devices = 1 if unified or not parameters else parameters[0].target.devices
    stages, rest = divmod(manifest.target_ranks, devices)
    inside = all(p.target.devices == devices and max(p.target_stages) < stages for p in parameters)
    if rest or not inside or any(record.rank >= manifest.target_ranks for record in manifest.files):
        raise DataError(
            "DocumentInvalid",
            f"the layouts do not fit {manifest.target_ranks} ranks",
            where=MANIFEST_NAME,
            fix="restore the file",
        )
    keys = {record.name: record.keys for record in manifest.parameters.records if record.keys}
    model = Model(Inventory((), (), keys=keys), 1, 1, devices, stages, parameters, unified=unified)
    output = requested_output(manifest.options, manifest.source.format)
    return Planner(model, remove_redundancy=bool(manifest.options.get("removeRedundancy")), once=output.once)


def _kind(record: KindRecord) -> Kind:
    role = next((each for each in Role if each.value == record.role), Role.CUT)
    return Kind(record.dtype, record.shape, role, None, (), layout_of(record.target), record.target.stages, ())
