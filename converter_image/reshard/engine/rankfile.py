"""Write one target rank, from its plan to its record."""

from __future__ import annotations

import uuid
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zlib_ng import zlib_ng

from reshard.checkpoint.crc import NamedContents
from reshard.checkpoint.encryption import Encryptor
from reshard.checkpoint.manifest import FileRecord
from reshard.checkpoint.output import Checksum, Span
from reshard.engine.cast import Losses
from reshard.engine.execute import TILE_BYTES, carry_out, moves, reads, reads_of_spans
from reshard.engine.servercopy import parts, split
from reshard.engine.verify import check_file, unreadable
from reshard.errors import BugError, DataError, ReshardError
from reshard.plan import prove
from reshard.progress import Cancellation, Silent
from reshard.source.encrypted import decrypting
from reshard.source.headers import Blocks, heads
from reshard.storage import open_store, parent_and_name
from reshard.storage.ahead import prefetched, requests
from reshard.storage.cancellable import CancellableReader
from reshard.storage.digest import ContentDigest, digest_of, digest_of_version, sample_of
from reshard.storage.traffic import Meter, Traffic
from reshard.telemetry import phase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reshard.checkpoint.manifest import Verified
    from reshard.engine.execute import Move
    from reshard.engine.gather import SourceFiles
    from reshard.engine.memory import Budget
    from reshard.engine.task import Task
    from reshard.formats.protocol import OutputFormat
    from reshard.plan import RankPlan
    from reshard.progress import Progress
    from reshard.storage.protocol import PartLimits, Reader, Store, Writer
    from reshard.target.folder import TaskState


# Over a network: the number of parameters compared at a time, and the bytes of the written file's headers to prefetch.
_REMOTE_COMPARISONS = 8
_HEADERS_AHEAD = 8 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """A finished rank.

    Attributes:
        record: record of the file in the target.
        bytes_needed: number of bytes of source tensors that the file requires.
    """

    record: FileRecord
    bytes_needed: int


def content_of(records: Iterable[FileRecord]) -> Traffic:
    """Return what was fetched in total for the tensors of these files."""
    return Traffic.sum(Traffic(record.bytes_fetched, record.requests, record.bytes_copied) for record in records)


@dataclass(frozen=True, slots=True)
class Guard:
    """Conditions that stop the writing of a rank.

    Attributes:
        check_lock: function that raises if another process has taken over the target.
        cancellation: object that cancels the work from another thread.
        writer: identity of this process, for the names of temporary files.
    """

    check_lock: Callable[[], None]
    cancellation: Cancellation
    writer: str


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions for producing a rank's file.

    Attributes:
        content: meter of what is fetched of the source's tensors, without checks.
        losses: counters of the elements that casts change.
        progress: receiver of the progress.
        cancellation: object that cancels the work from another thread.
        ahead: number of bytes of the source that may be prefetched.
    """

    content: Meter = field(default_factory=Meter)
    losses: Losses = field(default_factory=Losses)
    progress: Progress = field(default_factory=Silent)
    cancellation: Cancellation = field(default_factory=Cancellation)
    ahead: int = 0


def write_rank(
    task: Task, state: TaskState, rank: int, *, staged: bool, budget: Budget, progress: Progress, guard: Guard
) -> Written:
    """Write, verify and record the file of one target rank.

    Raises:
        BugError: the file differs from the source. It is kept for inspection.
        ReshardError: the file cannot be written or compared. It was deleted.
    """
    with phase("write_rank", rank=rank) as measured:
        plan = task.planner.plan(rank)
        path = task.path(rank)
        conditions = Conditions(progress=progress, cancellation=guard.cancellation, ahead=budget.ahead)
        size = task.file_size(rank)
        by_server = task.request.options.copy_mode == "Server"
        writer = state.create(
            path, rank=rank, staged=staged, writer=guard.writer, size=size, memory=budget.upload, copies=by_server
        )
        try:
            limits = state.target.store.part_limits if by_server else None
            digest = assemble(task, plan, writer, conditions, limits) if limits else produce(task, plan, writer, conditions)
            guard.check_lock()
            writer.finish()
            store, where = state.target.store, state.where(path, staged=staged)
            if not digest:  # some bytes were copied by the server
                digest = _recorded_digest(task, store, where, guard.cancellation)
            _verify(task, plan, store, where, lambda: state.reject(path, staged=staged), guard.cancellation)
            with closing(store.open(where)) as written:
                sample, version = sample_of(written, remote=store.remote), written.version
            fetched, level = conditions.content.traffic, task.request.options.verification
            measured.measure(bytes_fetched=fetched.nbytes, requests=fetched.requests, bytes_written=size)
            lost = conditions.losses.total
            record = FileRecord(
                rank=rank,
                path=path,
                size=size,
                digest=digest,
                bytes_fetched=fetched.nbytes,
                requests=fetched.requests,
                bytes_copied=fetched.copied,
                verified=level,
                stage=task.stage,
                sample=sample,
                version=version,
                seconds=measured.seconds,
                rounded=lost.rounded,
                overflowed=lost.overflowed,
            )
            state.record(record, conditions.losses.by_name)
        finally:
            writer.abort()
        return Written(record, plan.nbytes_needed)


def write_alone(task: Task, rank: int, url: str, *, share: Budget) -> None:
    """Write and verify the file of one target rank at any location, without other files next to it.

    Raises:
        BugError: the file differs from the source. It is kept as FILE.rejected.
        ReshardError: the file cannot be written or compared. It was deleted.
    """
    with phase("write_rank", rank=rank) as measured:
        folder, path = parent_and_name(url)
        store, plan, size = open_store(folder), task.planner.plan(rank), task.file_size(rank)
        conditions = Conditions(ahead=share.ahead)
        temporary, mode = f"{path}.{uuid.uuid4().hex}.tmp", task.request.options.file_mode
        writer = store.create(path, temporary=temporary, mode=mode, size=size, memory=share.upload)
        try:
            produce(task, plan, writer, conditions)
            writer.finish()
        finally:
            writer.abort()

        def set_aside() -> str:
            store.move(path, f"{path}.rejected")
            return f"{url}.rejected"

        _verify(task, plan, store, path, set_aside, Cancellation())
        fetched = conditions.content.traffic
        measured.measure(bytes_fetched=fetched.nbytes, requests=fetched.requests, bytes_written=size)


def assemble(task: Task, plan: RankPlan, writer: Writer, conditions: Conditions, limits: PartLimits) -> str:
    """Assemble a rank's file from parts that the server copies and parts that are sent. Return the digest, or "".

    The digest is "" if the server copied any part. `limits` are those of the writer's store. For other arguments and errors, see
    `produce`.
    """
    laid_out = list(split(moves(plan, task.pieces(plan.rank))))
    if any(isinstance(move, Checksum) for move in laid_out):  # they require the content to pass through this process
        return produce(task, plan, writer, conditions)
    planned = parts(laid_out, limits)
    if planned is None or all(part.rank is None for part in planned):
        return produce(task, plan, writer, conditions)
    prove(plan)

    def emit(content: memoryview) -> None:
        conditions.cancellation.check()
        writer.write(content)
        conditions.progress.advance(len(content))

    with closing(task.source_files(conditions.content)) as files:
        sent = (move for part in planned if part.rank is None for move in laid_out[part.first : part.end])
        files.expect(reads(sent), conditions.ahead)
        for part in planned:
            if part.rank is None:
                carry_out([*laid_out[part.first : part.end], None], files, emit, conditions.losses)
                if part is not planned[-1]:
                    writer.cut()
            else:
                conditions.cancellation.check()
                writer.copy(files.reader(part.rank), part.offset, part.nbytes, conditions.content)
                conditions.progress.advance(part.nbytes)
    return ""


def _recorded_digest(task: Task, store: Store, path: str, cancellation: Cancellation) -> str:
    """Return the digest to record for a file that the server has assembled: that of its content, if it may be read back."""
    if task.request.options.verification == "None":
        return digest_of_version(store, path)
    with closing(store.open(path)) as reader:
        return digest_of(reader, lambda _: cancellation.check(), remote=store.remote)


def requests_of(task: Task, target: Store, rank: int, budget: Budget) -> int:
    """Return the number of requests to object stores for the content of a rank's file, without its verification."""
    fetched = 0
    if task.source.remote:
        fetched = requests(reads(moves(task.planner.plan(rank), task.pieces(rank))), budget.ahead)
    return fetched + target.write_cost(task.file_size(rank), budget.upload).requests


def produce(task: Task, plan: RankPlan, writer: Writer, conditions: Conditions) -> str:
    """Write the content of one target rank's file. Return its digest.

    Args:
        task: task of the transform.
        plan: plan of the rank.
        writer: writer of the file.
        conditions: conditions for producing the file.

    Raises:
        ReshardError: the source cannot be read or has changed, or the file cannot be written.
    """
    prove(plan)
    tail = _Tail(task.output, wanted=task.request.options.crc)
    digest = ContentDigest()

    def put(part: memoryview | bytes) -> None:
        digest.update(part)
        writer.write(part)
        conditions.progress.advance(len(part))

    encryptor = None if task.cipher is None else Encryptor(task.cipher, put)
    write = put if encryptor is None else encryptor.update

    def emit(part: memoryview | bytes) -> None:
        tail.update(part)
        write(part)

    with closing(task.source_files(conditions.content)) as files:
        crc = _crc_of_contents(plan, files, conditions) if tail.in_header else None
        files.expect(reads(moves(plan, task.pieces(plan.rank, crc))), conditions.ahead)
        steps = _until_cancelled(moves(plan, task.pieces(plan.rank, crc)), conditions.cancellation)
        overlap = plan.written_nbytes > TILE_BYTES
        carry_out(steps, files, emit, conditions.losses, overlap=overlap)
        if trailer := tail.content():
            emit(trailer)
        if encryptor is not None:
            encryptor.finish()
        files.check_unchanged()
    return str(digest)


def _until_cancelled(steps: Iterable[Move], cancellation: Cancellation) -> Iterator[Move]:
    """Yield moves, and check after each tile whether the work was cancelled."""
    for step in steps:
        if step is None:
            cancellation.check()
        yield step


class _Tail:
    """The CRC32 of a whole file at its end, if it is requested and the format has it there."""

    def __init__(self, output: OutputFormat, *, wanted: bool) -> None:
        self._output = output
        self._at_end = wanted and output.crc == "Trailer"
        self.in_header = wanted and output.crc == "Header"
        self._crc = 0

    def update(self, part: memoryview | bytes) -> None:
        if self._at_end:
            self._crc = zlib_ng.crc32(part, self._crc)

    def content(self) -> bytes:
        return self._output.trailer(self._crc) if self._at_end else b""


def _crc_of_contents(plan: RankPlan, files: SourceFiles, conditions: Conditions) -> int:
    """Return the CRC32 for a safetensors header. It precedes the contents, so this takes a separate pass over the source."""
    found = NamedContents()

    def emit(part: memoryview) -> None:
        conditions.cancellation.check()
        found.update(part)

    numbers = sorted(range(len(plan.parameters)), key=lambda i: plan.parameters[i].name)
    spans = [Span(number, 0, plan.tensors[number].written_nbytes) for number in numbers]
    files.expect(reads_of_spans(plan, spans), conditions.ahead)
    for span in spans:
        tensor = plan.tensors[span.tensor]
        found.begin(tensor.parameter.name, tensor.parameter.target_dtype, tensor.shape)
        if span.length:
            carry_out(moves(plan, [span]), files, emit)
    return found.crc


def _verify(
    task: Task, plan: RankPlan, store: Store, path: str, set_aside: Callable[[], str], cancellation: Cancellation
) -> None:
    """Compare the finished file with the source.

    Raises:
        BugError: they differ. The file was set aside.
        ReshardError: they cannot be compared, or the source has changed. The file was deleted.
    """
    level = task.request.options.verification
    if level == "None":
        return
    try:
        with phase("verify_rank", rank=plan.rank, verification=level):
            compare(task, plan, store, path, level, cancellation)
    except ReshardError as error:
        if error.reason != "VerificationFailed":
            store.delete(path)
            raise
        fix = f"inspect the file, which is kept as {set_aside()}; {error.fix}"
        raise BugError(error.reason, error.what, where=error.where, fix=fix) from error


def compare(task: Task, plan: RankPlan, store: Store, path: str, level: Verified, cancellation: Cancellation) -> None:
    """Compare the finished file with the source, which may have changed in the meantime.

    Raises:
        BugError: the file differs from the source.
        ReshardError: the file and the source cannot be compared, or the source has changed.
    """
    at_once = _REMOTE_COMPARISONS if store.remote or task.source.remote else 1
    with closing(task.source_files()) as files, closing(store.open(path)) as opened:
        written: Reader = CancellableReader(opened, cancellation.check)
        if task.cipher is not None:
            try:
                written = decrypting(written, task.cipher, remote=store.remote, check=level == "Full")
            except DataError as error:
                raise unreadable(opened, error) from error
        headers = heads(_heads(task, plan), written.size)
        with prefetched(written, headers, _HEADERS_AHEAD, remote=store.remote) as ahead:
            try:
                described = task.output.entries(Blocks(ahead) if store.remote else written, task.tensors(plan.rank))
            except DataError as error:
                raise unreadable(written, error) from error
            try:
                check_file(written, plan, task.model, files, level, described, at_once=at_once)
            except BugError:
                files.check_unchanged()
                raise


def _heads(task: Task, plan: RankPlan) -> Iterator[int]:
    """Yield the positions of the headers in a finished file."""
    position = 0
    for piece in task.pieces(plan.rank):
        if isinstance(piece, Span):
            position += piece.length
            continue
        yield position
        position += len(piece) if isinstance(piece, bytes) else piece.length
