"""Produce the contents of files: of one rank alone, or of several in one pass over the source."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zlib_ng import zlib_ng

from reshard.checkpoint.crc import NamedContents
from reshard.checkpoint.encryption import Encryptor
from reshard.checkpoint.output import Checksum, Span
from reshard.engine.bands import batches
from reshard.engine.cast import Losses
from reshard.engine.execute import carry_out
from reshard.engine.memory import PART_BYTES, Budget
from reshard.engine.moves import FileMoves, length_of, moves, reads
from reshard.engine.passes import Sink, carry_out_together
from reshard.engine.servercopy import parts, split
from reshard.plan import prove
from reshard.progress import Cancellation, Silent
from reshard.storage.ahead import requests
from reshard.storage.digest import ContentDigest
from reshard.storage.traffic import Meter, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from reshard.checkpoint.output import Piece
    from reshard.engine.bands import Batch
    from reshard.engine.file_fingerprints import FileFingerprints
    from reshard.engine.gather import SourceFiles
    from reshard.engine.memory import PassBudget
    from reshard.engine.overlap import Receiver
    from reshard.engine.task import Task
    from reshard.formats.protocol import OutputFormat
    from reshard.plan import Parameter, RankPlan
    from reshard.progress import Progress
    from reshard.storage.ahead import Read
    from reshard.storage.protocol import PartLimits, Store, Write, Writer


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions for producing a rank's file.

    Attributes:
        content: meter of what is fetched of the source's tensors, without checks.
        losses: counters of the elements that casts change.
        fingerprints: fingerprints of the tensors of the file. None: they are not calculated.
        progress: receiver of the progress.
        cancellation: object that cancels the work from another thread.
        budget: memory and threads for data on its way.
    """

    content: Meter = field(default_factory=Meter)
    losses: Losses = field(default_factory=Losses)
    fingerprints: FileFingerprints | None = None
    progress: Progress = field(default_factory=Silent)
    cancellation: Cancellation = field(default_factory=Cancellation)
    budget: Budget = field(default_factory=Budget)


class Content:
    """Passes the content of a file on to its writer, or to those of several equal files: encrypted, and with its CRC32.

    Args:
        task: task of the transform.
        writers: writers of the files.
        conditions: conditions for producing the content.
        call: function that carries out the writes of a part to several files, and returns after the last one.
    """

    def __init__(
        self, task: Task, writers: Sequence[Writer], conditions: Conditions, call: Callable[[Sequence[Write]], None] | None = None
    ) -> None:
        self._tail = _Tail(task.output, wanted=task.request.options.crc)
        self._writers, self._conditions, self._call = writers, conditions, call or _call_all
        self._digest = ContentDigest()
        self._encryptor = None if task.cipher is None else Encryptor(task.cipher, self._put)

    @property
    def any_order(self) -> bool:
        """Whether the functions of `emit_later` may be called in any order, see `Writer.any_order`."""
        return self._encryptor is None and all(writer.any_order for writer in self._writers)

    def room(self, nbytes: int) -> memoryview | None:
        """Return memory of the writer, see `Writer.room`. None: it has none, or what is produced is not what is written."""
        return self._writers[0].room(nbytes) if self._encryptor is None and len(self._writers) == 1 else None

    def emit(self, part: memoryview) -> None:
        """Pass on the next part."""
        if (write := self.emit_later(part)) is not None:
            write()

    def emit_later(self, part: memoryview) -> Write | None:
        """Pass on the next part. Return a function that writes it, or None if it was written, see `Writer.write_later`."""
        self._conditions.cancellation.check()
        self._tail.update(part)
        return self._put_later(part) if self._encryptor is None else partial(self._encryptor.update, part)

    def finish(self) -> str:
        """Pass on what follows the last part. Return the digest of the file."""
        if trailer := self._tail.content():
            self.emit(memoryview(trailer))
        if self._encryptor is not None:
            self._encryptor.finish()
            self._encryptor = None  # it refers to this object, and would keep its block until such cycles are collected
        return str(self._digest)

    def _put(self, part: memoryview) -> None:
        if (write := self._put_later(part)) is not None:
            write()

    def _put_later(self, part: memoryview) -> Write | None:
        self._digest.update(part)
        self._conditions.progress.advance(len(part) * len(self._writers))
        writes = [write for writer in self._writers if (write := writer.write_later(part)) is not None]
        return partial(self._call, writes) if len(writes) > 1 else next(iter(writes), None)


def _call_all(functions: Iterable[Write]) -> None:
    for function in functions:
        function()


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
        files.expect(plan.sources, reads(sent), conditions.budget)
        for part in planned:
            if part.rank is None:
                carry_out(laid_out[part.first : part.end], files, emit, conditions.losses, conditions.fingerprints)
                if part is not planned[-1]:
                    writer.cut()
            else:
                conditions.cancellation.check()
                writer.copy(files.reader(part.rank), part.offset, part.nbytes, conditions.content)
                conditions.progress.advance(part.nbytes)
    return ""


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
    content, crc = Content(task, [writer], conditions), None
    with closing(task.source_files(conditions.content)) as files:
        if _has_sum_in_header(task):
            found = _HeaderSum(plan, conditions.cancellation)
            files.expect(plan.sources, reads(moves(plan, found.spans)), conditions.budget)
            carry_out(moves(plan, found.spans), files, found.emit)
            crc = found.crc
        files.expect(plan.sources, _reads(task, plan, crc), conditions.budget)
        threads = conditions.budget.writes if content.any_order else 1
        steps = moves(plan, task.pieces(plan.rank, crc))
        threads = threads if plan.written_nbytes > PART_BYTES else 0
        carry_out(
            steps, files, content.emit_later, conditions.losses, conditions.fingerprints, threads=threads, room=content.room
        )
        digest = content.finish()
        files.check_unchanged()
    return digest


def _reads(task: Task, plan: RankPlan, crc: int | None) -> Iterator[Read]:
    """Yield the reads of a rank's file. The pieces of the file are only made if the first one is requested."""
    yield from reads(moves(plan, task.pieces(plan.rank, crc)))


class Shared(NamedTuple):
    """One of several contents that are produced in one pass.

    Attributes:
        plan: plan of the rank, or of the first of several ranks whose files are equal.
        opened: context in which the content is produced. It yields its receiver. After the last part, the context ends.
        losses: counters of the elements that casts change.
        fingerprints: fingerprints of the tensors of the file.
        fetched: callback with what will be fetched for this content. What several of them use is divided among them.
    """

    plan: RankPlan
    opened: AbstractContextManager[Receiver]
    losses: Losses
    fingerprints: FileFingerprints | None = None
    fetched: Callable[[Traffic], None] = lambda _: None


def produce_together(
    task: Task, contents: Sequence[Shared], files: SourceFiles, cancellation: Cancellation, budget: PassBudget
) -> None:
    """Produce several contents in one pass over the source, which reads each byte that they need once.

    A CRC32 in the header of a safetensors file takes another pass before it.

    Raises:
        ReshardError: the source cannot be read or has changed, or a file cannot be written. No file is complete that was not
            complete before.
    """
    for content in contents:
        prove(content.plan)
    crcs: Sequence[int | None] = [None] * len(contents)
    if _has_sum_in_header(task):
        sums = [_HeaderSum(content.plan, cancellation) for content in contents]
        by_name = sorted(task.model.parameters, key=lambda parameter: parameter.name)
        summed = [
            content._replace(opened=nullcontext(each), losses=Losses(), fingerprints=None)
            for content, each in zip(contents, sums, strict=True)
        ]
        _carry_out(summed, [each.spans for each in sums], by_name, files, cancellation, budget)
        crcs = [each.crc for each in sums]
    pieces = [task.pieces(content.plan.rank, crc) for content, crc in zip(contents, crcs, strict=True)]
    _carry_out(contents, pieces, task.model.parameters, files, cancellation, budget)


def _carry_out(
    contents: Sequence[Shared],
    pieces: Sequence[Iterable[Piece]],
    parameters: Iterable[Parameter],
    files: SourceFiles,
    cancellation: Cancellation,
    budget: PassBudget,
) -> None:
    """Produce these pieces of the contents, which contain the parameters in this order."""
    steps = [FileMoves(content.plan, each, budget.tile) for content, each in zip(contents, pieces, strict=True)]
    sinks = [Sink(content.opened, content.losses, content.fingerprints) for content in contents]
    found = batches(steps, parameters, budget.batch, budget.gap)
    carry_out_together(_counted(found, contents, budget.longest), files, sinks, budget, cancellation)


def _counted(found: Iterable[Batch], contents: Sequence[Shared], longest: int) -> Iterator[Batch]:
    """Yield batches, and divide what is fetched for each of them among the contents that use it."""
    for batch in found:
        lengths = [each.end - each.start for each in batch.ranges]
        fetched = Traffic(sum(lengths), sum(-(-length // longest) for length in lengths))
        shares = fetched.divided([sum(map(length_of, moves)) for _, moves in batch.moves])
        for (number, _), share in zip(batch.moves, shares, strict=True):
            contents[number].fetched(share)
        yield batch


def _has_sum_in_header(task: Task) -> bool:
    return task.request.options.crc and task.output.crc == "Header"


class _HeaderSum:
    """The CRC32 for a safetensors header. It precedes the contents, so this takes a separate pass over the source.

    Attributes:
        spans: contents of the tensors, in the order of the sum.
    """

    def __init__(self, plan: RankPlan, cancellation: Cancellation) -> None:
        numbers = sorted(range(len(plan.parameters)), key=lambda i: plan.parameters[i].name)
        self.spans = [Span(number, 0, plan.tensors[number].written_nbytes) for number in numbers]
        self._plan, self._cancellation = plan, cancellation
        self._found = NamedContents()
        self._following = iter(self.spans)
        self._left = 0  # bytes of the current tensor

    def emit(self, part: memoryview) -> None:
        """Add the next part of the contents. No part of a scalar follows another one."""
        self._cancellation.check()
        while part:
            while not self._left:
                self._begin(next(self._following))
            n = min(self._left, len(part))
            self._found.update(part[:n])
            self._left -= n
            part = part[n:]

    def room(self, nbytes: int) -> None:
        """Return no memory."""
        del nbytes

    @property
    def crc(self) -> int:
        """The CRC32, after the last part."""
        for span in self._following:  # without content
            self._begin(span)
        return self._found.crc

    def _begin(self, span: Span) -> None:
        tensor = self._plan.tensors[span.tensor]
        self._found.begin(tensor.parameter.name, tensor.parameter.target_dtype, tensor.shape)
        self._left = span.length
