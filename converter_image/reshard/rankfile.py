"""One target rank from its plan to its record."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard import checkpoint
from reshard.checkpoint import Span
from reshard.checkpoint.crc import NamedContents
from reshard.digest import ContentDigest
from reshard.errors import ReshardError
from reshard.execute import stream
from reshard.gather import ReadCount, SourceFiles
from reshard.manifest import FileRecord
from reshard.plan import prove
from reshard.verify import check_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.checkpoint.inventory import Format
    from reshard.job import Job
    from reshard.plan import RankPlan
    from reshard.progress import Cancellation, Progress
    from reshard.storage.protocol import Writer
    from reshard.target import JobState


@dataclass(frozen=True, slots=True)
class Written:
    """A finished rank.

    Attributes:
        record: as it stands at the target.
        bytes_needed: of source tensors.
    """

    record: FileRecord
    bytes_needed: int


@dataclass(frozen=True, slots=True)
class Guard:
    """What may stop a rank from being written.

    Attributes:
        check_lock: raises when this process has lost the target to another.
        cancellation: lets the work be called off.
        writer: names this process in temporaries.
    """

    check_lock: Callable[[], None]
    cancellation: Cancellation
    writer: str


def write_rank(job: Job, state: JobState, rank: int, *, staged: bool, progress: Progress, guard: Guard) -> Written:
    """Write and verify the file of one target rank, and note it down.

    Raises:
        ReshardError: nothing of the file is left then.
    """
    plan = job.planner.plan(rank)
    path = job.path(rank)
    count, digest = ReadCount(), ContentDigest()
    writer = state.create(path, rank=rank, staged=staged, writer=guard.writer)
    try:
        size = produce(job, plan, writer, count=count, digest=digest, progress=progress, cancellation=guard.cancellation)
        guard.check_lock()
        writer.finish()
        record = FileRecord(rank, path, size, str(digest), count.nbytes, job.request.options.verification)
        _verify(job, state, plan, record, staged=staged)
        state.record(record)
    finally:
        writer.abort()
    return Written(record, sum(t.parameter.slice_nbytes for t in plan.tensors))


def produce(
    job: Job,
    plan: RankPlan,
    writer: Writer,
    *,
    count: ReadCount,
    digest: ContentDigest,
    progress: Progress,
    cancellation: Cancellation,
) -> int:
    """Write the content of one target rank's file. Returns its length in bytes.

    Raises:
        ReshardError: the source cannot be read or has changed, or the file cannot be written.
    """
    prove(plan)
    files = SourceFiles(job.source, job.model.inventory, count)
    tail = _Tail(job.format, wanted=job.request.options.crc)
    size = 0

    def emit(part: memoryview | bytes) -> None:
        nonlocal size
        cancellation.check()
        digest.update(part)
        tail.update(part)
        writer.write(part)
        size += len(part)
        progress.advance(len(part))

    try:
        crc = _crc_of_contents(plan, files, cancellation) if tail.in_header else None
        stream(plan, checkpoint.pieces(job.format, job.tensors(plan.rank), job.metadata, crc=crc), files, emit)
        if trailer := tail.content():
            emit(trailer)
        files.check_unchanged()
    finally:
        files.close()
    return size


class _Tail:
    """The CRC32 of a file where it stands at the file's end; in a safetensors file it stands in the header instead."""

    def __init__(self, output: Format, *, wanted: bool) -> None:
        self._at_end = wanted and output == "ckpt"
        self.in_header = wanted and not self._at_end
        self._crc = 0

    def update(self, part: memoryview | bytes) -> None:
        if self._at_end:
            self._crc = zlib.crc32(part, self._crc)

    def content(self) -> bytes:
        return checkpoint.crc_trailer(self._crc) if self._at_end else b""


def _crc_of_contents(plan: RankPlan, files: SourceFiles, cancellation: Cancellation) -> int:
    """The CRC32 for a safetensors header, which comes before the contents: a pass of its own over the source."""
    found = NamedContents()

    def emit(part: memoryview) -> None:
        cancellation.check()
        found.update(part)

    for number in sorted(range(len(plan.tensors)), key=lambda i: plan.tensors[i].parameter.name):
        tensor = plan.tensors[number]
        found.begin(tensor.parameter.name, tensor.parameter.dtype, tensor.shape)
        if nbytes := tensor.parameter.slice_nbytes:
            stream(plan, [Span(number, 0, nbytes)], files, emit)
    return found.crc


def _verify(job: Job, state: JobState, plan: RankPlan, record: FileRecord, *, staged: bool) -> None:
    """Compare the finished file with the source, and take it away again if they differ."""
    if job.request.options.verification == "None":
        return
    store = state.target.store
    path = state.where(record.path, staged=staged)
    files = SourceFiles(job.source, job.model.inventory)
    written = store.open(path)
    try:
        check_file(written, plan, job.model, files, job.request.options.verification)
    except ReshardError:
        store.delete(path)
        raise
    finally:
        written.close()
        files.close()
