"""Compare the parameters of two checkpoints of any layouts and formats, in bounded memory."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.engine.execute import fill
from reshard.engine.gather import Gatherer
from reshard.engine.memory import TILE_BYTES, default_workers
from reshard.engine.moves import Content
from reshard.errors import MissingInputError, ReshardError
from reshard.layout.box import Box, strides
from reshard.parallel import parallel
from reshard.plan import prove
from reshard.progress import Cancellation, Silent
from reshard.source.described import files_there
from reshard.source.files import open_source
from reshard.source.listing import preview
from reshard.spec.request import Options
from reshard.target.documents import check_manifest
from reshard.target.folder import TargetFolder
from reshard.telemetry import operation, phase
from reshard.transform.fingerprint_check import stated_fingerprints
from reshard.transform.inputs import cancellable, inputs_to_read
from reshard.transform.prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reshard.checkpoint.manifest import Manifest
    from reshard.engine.gather import SourceFiles
    from reshard.engine.moves import Fill
    from reshard.engine.task import Task
    from reshard.plan import RankPlan
    from reshard.progress import Progress
    from reshard.spec.keys import Encryption
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import Store

# Threads that wait for object stores.
_REMOTE_WORKERS = 16


@dataclass(frozen=True, slots=True)
class Place:
    """The position of an element.

    Attributes:
        path: path of the file in the checkpoint.
        offset: first byte of the element in the file, after decryption.
    """

    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of two parameters that differ.

    Attributes:
        dtype: name of its type.
        shape: lengths of the whole tensor.
        place: position of the first element that differs, if the elements were compared.
    """

    dtype: str
    shape: tuple[int, ...]
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class ParameterDifference:
    """A parameter that differs.

    Attributes:
        name: name of the parameter.
        difference: what differs. Of a parameter that differs in several ways, the first in the order of this list.
        a: the parameter in the first checkpoint.
        b: the parameter in the second checkpoint.
        elements: number of elements that differ, if they were compared.
        index: index of the first of them.
    """

    name: str
    difference: Literal["OnlyInA", "OnlyInB", "Type", "Shape", "Content"]
    a: Side | None
    b: Side | None
    elements: int | None = None
    index: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class DiffResult:
    """The result of a comparison.

    Attributes:
        a: location of the first checkpoint.
        b: location of the second checkpoint.
        equal: number of parameters that are equal.
        by_fingerprint: number of parameters that were compared by fingerprints in manifests, without reading them.
        bytes_compared: number of bytes of each checkpoint that were read and compared.
        differences: parameters that differ, in the order of the first checkpoint.
        seconds: duration of the comparison.
    """

    a: str
    b: str
    equal: int
    by_fingerprint: int
    bytes_compared: int
    differences: tuple[ParameterDifference, ...]
    seconds: float


class _Stated(NamedTuple):
    """A parameter of a checkpoint: its type and shape, and its fingerprint if a manifest states it."""

    dtype: str
    shape: tuple[int, ...]
    fingerprint: str | None = None

    @property
    def side(self) -> Side:
        return Side(self.dtype, self.shape)


class _Compared(NamedTuple):
    """The result of comparing what is stated of parameters.

    Attributes:
        differences: parameters that differ.
        same: number of parameters that are equal.
        by_fingerprint: number of parameters whose fingerprints were compared.
        unknown: names of parameters that must be read.
    """

    differences: list[ParameterDifference]
    same: int
    by_fingerprint: int
    unknown: list[str]


class _Opened:
    """A checkpoint as one rank that holds every parameter whole."""

    def __init__(self, task: Task, files: SourceFiles) -> None:
        self.plan: RankPlan = task.planner.plan(0)
        prove(self.plan)
        self.files = files
        self.numbers = {parameter.name: number for number, parameter in enumerate(self.plan.parameters)}
        self._paths = {file.rank: file.path for file in task.model.inventory.files}

    def stated(self, known: Mapping[str, _Stated]) -> dict[str, _Stated]:
        """Return the parameters, with the fingerprints that a manifest states for equal types and shapes."""
        found = {}
        for parameter in self.plan.parameters:
            own = _Stated(parameter.dtype, parameter.shape)
            stated = known.get(parameter.name, own)
            found[parameter.name] = stated if stated[:2] == own[:2] else own
        return found

    def place(self, filled: Fill, index: tuple[int, ...]) -> Place:
        """Return the position of an element of a box that was filled."""
        element = Box(index, (1,) * len(index))
        copy = next(copy for copy in filled.copies if element.intersect(copy.here) is not None)
        source = (n - a + b for n, a, b in zip(index, copy.here.start, copy.source.start, strict=True))
        flat = sum(n * step for n, step in zip(source, strides(copy.entry.shape), strict=True))
        itemsize = DTYPES[copy.entry.dtype].itemsize
        offset, _ = next(iter(copy.entry.located(flat * itemsize, itemsize)))
        return Place(self._paths[copy.rank], offset)


def diff_checkpoints(  # noqa: PLR0913 - one for each option
    a: str,
    b: str,
    *,
    strategy_a: str | None = None,
    strategy_b: str | None = None,
    wanted: Callable[[str], bool] = lambda _: True,
    read: bool = False,
    storage_options: StorageOptions | None = None,
    decryption: Encryption | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    cancellation: Cancellation | None = None,
) -> DiffResult:
    """Compare the parameters of two checkpoints. The bits of elements are compared, so that equal NaNs are equal.

    If the manifests of both checkpoints state the fingerprint of a parameter, the fingerprints are compared. The files may have
    changed since then, see `verify_checkpoint`. Other parameters are read, in boxes of at most 1 MiB for each thread.

    Args:
        a: first checkpoint: folder, file, or s3://bucket/prefix.
        b: second checkpoint.
        strategy_a: strategy file, folder of strategy files or layout file of the first checkpoint. None means the layouts in its
            manifest or its metadata or, without these, one rank with whole parameters.
        strategy_b: strategy of the second checkpoint, in the same forms.
        wanted: whether to compare a parameter of this name.
        read: whether to read all parameters, also those with fingerprints.
        storage_options: options of object stores.
        decryption: key of encrypted checkpoints.
        workers: number of threads that compare. None means the available processors, at most 8. Object stores: at least 16.
        progress: receiver of the progress.
        cancellation: object that cancels the work from another thread.

    Raises:
        DataError, MissingInputError, RequestError: files or strategies are damaged, missing, or do not match.
        AccessError, StorageError: a file cannot be read.
    """
    progress, options = progress or Silent(), storage_options
    with operation("diff_checkpoints") as measured:
        described = [_described(url, options) for url in (a, b)]
        known = [_stated(each[1]) if each is not None else {} for each in described]
        if not read and all(found and all(each.fingerprint for each in found.values()) for found in known):
            for url, each in zip((a, b), described, strict=True):
                if each is not None and (change := _changed(url, *each)) is not None:
                    progress.note(change)
            before, after = ({name: each for name, each in found.items() if wanted(name)} for found in known)
            _check_wanted(before, after, f"{a}, {b}")
            differences, same, by_fingerprint, unknown = _compare(before, after, read=False)
            assert not unknown  # noqa: S101 - all of them have fingerprints
            return DiffResult(a, b, same, by_fingerprint, 0, tuple(differences), measured.seconds)
        tasks = [
            _task(url, strategy, options, decryption, progress, cancellation)
            for url, strategy in ((a, strategy_a), (b, strategy_b))
        ]
        remote = any(task.source.remote for task in tasks)
        threads = max(workers or default_workers(), _REMOTE_WORKERS if remote else 1)
        with closing(tasks[0].source_files()) as files_a, closing(tasks[1].source_files()) as files_b:
            sides = _Opened(tasks[0], files_a), _Opened(tasks[1], files_b)
            before, after = (
                {name: each for name, each in side.stated(stated).items() if wanted(name)}
                for side, stated in zip(sides, known, strict=True)
            )
            _check_wanted(before, after, f"{a}, {b}")
            differences, same, by_fingerprint, unknown = _compare(before, after, read=read)
            total = sum(sides[0].plan.parameters[sides[0].numbers[name]].nbytes for name in unknown)
            progress.begin("Comparing", total, "bytes")
            with phase("compare", bytes_compared=total):
                found = parallel(lambda name: _content(name, *sides, progress), unknown, at_once=threads)
                contents = [each for each in found if each is not None]
            for files in (files_a, files_b):
                files.check_unchanged()
        order = {name: number for number, name in enumerate([*before, *after])}
        differences = sorted([*differences, *contents], key=lambda each: order[each.name])
        equal = same + len(unknown) - len(contents)
        return DiffResult(a, b, equal, by_fingerprint, total, tuple(differences), measured.seconds)


def _described(url: str, storage_options: StorageOptions | None) -> tuple[Store, Manifest] | None:
    """Return the store and the manifest of a checkpoint, or None if it has no manifest, or one that describes an index."""
    store, chosen, _ = open_source(url, storage_options)
    manifest = TargetFolder(store, None).manifest() if chosen is None else None
    if manifest is None or manifest.index is not None:
        return None
    check_manifest(store, fix="restore the file, or write the checkpoint again")
    return store, manifest


def _stated(manifest: Manifest) -> dict[str, _Stated]:
    """Return the parameters in a manifest."""
    fingerprints = stated_fingerprints(manifest)
    parameters = ((record.name, kind) for record, kind in manifest.parameters)
    return {name: _Stated(kind.dtype, kind.shape, fingerprints.get(name)) for name, kind in parameters}


def _changed(url: str, store: Store, manifest: Manifest) -> str | None:
    """Return which files of a manifest are missing or have other sizes, or None if all are there. No file is read."""
    there = files_there(store, manifest, store.list(""))
    changed = [each.path for each in manifest.files if each.path not in there or there[each.path].size != each.size]
    what = f"only the manifest was compared: files of {url} are missing, or have other sizes: "
    return what + preview(changed) if changed else None


@contextmanager
def _own_remedies(url: str) -> Iterator[None]:
    """Replace remedies that are options of a transform."""
    try:
        yield
    except ReshardError as error:
        fix = error.fix or ""
        if "--source-strategy" in fix:
            fix = "use the files of all ranks, and specify their strategy (--strategy-a, --strategy-b)"
        elif error.reason == "SourceChanged":
            fix = "restore the file; to compare the files as they are, move the manifest to another folder"
        elif "--files" in fix or "--step" in fix:
            fix = "move the files that do not belong to the checkpoint to another folder"
        else:
            raise
        raise type(error)(error.reason, error.what, where=url, fix=fix) from error


def _task(
    url: str,
    strategy: str | None,
    storage_options: StorageOptions | None,
    decryption: Encryption | None,
    progress: Progress,
    cancellation: Cancellation | None,
) -> Task:
    inputs = inputs_to_read(
        url,
        Options(output="Index", source_only="Keep", verification="None", allow_inconsistent=("*",)),
        strategy=strategy,
        storage_options=storage_options,
        decryption=decryption,
        cancellation=cancellation,
    )
    with _own_remedies(url):
        task = prepare(inputs, progress, workers=default_workers(), single=True)
    return replace(task, source=cancellable(task.source, cancellation))


def _check_wanted(before: Mapping[str, _Stated], after: Mapping[str, _Stated], where: str) -> None:
    """Check that there is something to compare.

    Raises:
        MissingInputError: neither checkpoint has a wanted parameter.
    """
    if not before and not after:
        raise MissingInputError(
            "ParameterMissing",
            "no parameter of these names is in either checkpoint",
            where=where,
            fix="use names that `reshard inspect` lists",
        )


def _compare(before: Mapping[str, _Stated], after: Mapping[str, _Stated], *, read: bool) -> _Compared:
    """Compare what is stated of parameters, without reading them if `read` is false and both have a fingerprint."""
    differences, same, by_fingerprint, unknown = list[ParameterDifference](), 0, 0, list[str]()
    for name, one in before.items():
        other = after.get(name)
        if other is None:
            differences.append(ParameterDifference(name, "OnlyInA", one.side, None))
        elif one.dtype != other.dtype:
            differences.append(ParameterDifference(name, "Type", one.side, other.side))
        elif one.shape != other.shape:
            differences.append(ParameterDifference(name, "Shape", one.side, other.side))
        elif read or one.fingerprint is None or other.fingerprint is None:
            unknown.append(name)
        else:
            by_fingerprint += 1
            if one.fingerprint == other.fingerprint:
                same += 1
            else:
                differences.append(ParameterDifference(name, "Content", one.side, other.side))
    only = (ParameterDifference(name, "OnlyInB", None, other.side) for name, other in after.items() if name not in before)
    return _Compared([*differences, *only], same, by_fingerprint, unknown)


def _content(name: str, a: _Opened, b: _Opened, progress: Progress) -> ParameterDifference | None:
    """Compare the elements of a parameter. Return the difference, or None if they are equal."""
    tensors = [side.plan.tensors[side.numbers[name]] for side in (a, b)]
    contents = [Content(tensor) for tensor in tensors]
    gatherers = [Gatherer(side.files, TILE_BYTES) for side in (a, b)]
    nbytes, itemsize = tensors[0].written_nbytes, DTYPES[tensors[0].parameter.dtype].itemsize
    memory = [memoryview(bytearray(min(nbytes, TILE_BYTES))) for _ in contents]
    count, at = 0, 0
    first: tuple[tuple[int, ...], Place, Place] | None = None
    while at < nbytes:
        fills = [content.next(at, TILE_BYTES) for content in contents]
        length = fills[0].nbytes
        for filled, gatherer, into in zip(fills, gatherers, memory, strict=True):
            fill([filled], gatherer, into[:length])
        one, other = (np.frombuffer(into[:length], np.uint8) for into in memory)
        if not np.array_equal(one, other):
            differing = (one != other).reshape(-1, itemsize).any(axis=1)
            count += int(np.count_nonzero(differing))
            if first is None:
                here = tuple(int(n) for n in np.unravel_index(int(differing.argmax()), fills[0].box.shape))
                index = tuple(n + start for n, start in zip(here, fills[0].box.start, strict=True))
                first = index, a.place(fills[0], here), b.place(fills[1], here)
        at += length
        progress.advance(length)
    if first is None:
        return None
    parameter = tensors[0].parameter
    index, *places = first
    of_a, of_b = (Side(parameter.dtype, parameter.shape, place) for place in places)
    return ParameterDifference(name, "Content", of_a, of_b, count, index)
