"""Write the files of target ranks, from their plans to their records."""

from __future__ import annotations

import uuid
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from reshard.checkpoint.manifest import FileRecord, LinkRecord
from reshard.checkpoint.output import Span, digest_of_tensors
from reshard.engine.content import Conditions, assemble, produce
from reshard.engine.file_fingerprints import FileFingerprints
from reshard.engine.memory import HEADERS_AHEAD_BYTES
from reshard.engine.verify import check_file, differing_copy, unreadable
from reshard.errors import BugError, DataError, ReshardError
from reshard.progress import Cancellation
from reshard.source.encrypted import decrypting
from reshard.source.headers import Blocks, heads
from reshard.spec.storage_options import StorageOptions
from reshard.storage import open_store, parent_and_name
from reshard.storage.ahead import prefetched
from reshard.storage.cancellable import CancellableReader
from reshard.storage.digest import digest_of, digest_of_version, matches, sample_of
from reshard.storage.traffic import Traffic
from reshard.target.cast_losses import CastLosses
from reshard.telemetry import phase

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from reshard.checkpoint.manifest import Loss, Verified
    from reshard.checkpoint.output import OutputTensor
    from reshard.engine.memory import Budget
    from reshard.engine.task import Task
    from reshard.plan import RankPlan
    from reshard.progress import Progress
    from reshard.spec.storage_options import Link
    from reshard.storage.protocol import NewFile, Reader, Store, Writer
    from reshard.target.task import TaskState
    from reshard.telemetry import Phase


# Number of parameters compared at a time over a network, because each read waits.
_REMOTE_COMPARISONS = 8


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
class Run:
    """One run of a task: what all ranks that it writes have in common.

    Attributes:
        task: task of the transform.
        state: state of the task in the target.
        staged: whether files are staged until the commit.
        writer: identity of this process, for the names of temporary files.
        check_lock: function that raises if another process has taken over the target.
        cancellation: object that cancels the work from another thread.
        progress: receiver of the progress.
    """

    task: Task
    state: TaskState
    staged: bool
    writer: str
    check_lock: Callable[[], None]
    cancellation: Cancellation
    progress: Progress

    def conditions(self, plan: RankPlan, budget: Budget) -> Conditions:
        """Return new conditions for producing the file of a rank."""
        # If ranks keep their own tensors, nothing states which slices of parameters these are.
        fingerprints = None if self.task.model.same else FileFingerprints(plan)
        return Conditions(fingerprints=fingerprints, progress=self.progress, cancellation=self.cancellation, budget=budget)


class RankFile:
    """The file of one target rank, from its creation to its record.

    Args:
        run: run that writes the file.
        plan: plan of the rank.
        conditions: conditions for producing the content.
        fetched: function that returns what was fetched for the file, after it was produced.
        memory: number of bytes that are buffered for an upload.

    Attributes:
        digest: digest of the content, to set before the file is complete. "": a server has copied some bytes.
        compared: whether an equal file has been compared with the source. To compare every byte, the digests are then enough.
    """

    def __init__(self, run: Run, plan: RankPlan, conditions: Conditions, fetched: Callable[[], Traffic], memory: int) -> None:
        self.digest = ""
        self.compared = False
        self._run, self._plan, self._conditions, self._fetched, self._memory = run, plan, conditions, fetched, memory
        self._path = run.task.path(plan.rank)
        self._record: FileRecord | None = None

    @property
    def written(self) -> Written:
        """The finished rank."""
        assert self._record is not None  # noqa: S101 - the context has ended without an error
        return Written(self._record, self._plan.nbytes_needed)

    @contextmanager
    def opened(self, complete: Callable[[], None] = lambda: None) -> Iterator[Writer]:
        """Create the file in a context that yields its writer. At its end, complete, verify and record the file.

        Args:
            complete: callback after the file is complete, before it is verified.

        Raises:
            BugError: the file differs from the source. It is kept for inspection.
            ReshardError: the file cannot be written or compared.
        """
        run, rank = self._run, self._plan.rank
        with phase("write_rank", rank=rank) as measured:
            size = run.task.file_size(rank)
            by_server = run.task.request.options.copy_mode == "Server"
            writer = run.state.create(
                self._path, rank=rank, staged=run.staged, writer=run.writer, size=size, memory=self._memory, copies=by_server
            )
            try:
                yield writer
                with self._explained():
                    self._finish(writer, size, measured, complete)
            finally:
                writer.abort()

    def link_to(self, original: RankFile, how: Link) -> None:
        """Create the file from an equal file that is complete, verify it and record it.

        Raises:
            BugError: the file differs from the source. It is kept for inspection.
            ReshardError: the file cannot be created or compared.
        """
        run, rank = self._run, self._plan.rank
        with phase("write_rank", rank=rank) as measured:
            run.cancellation.check()
            size = run.task.file_size(rank)
            file = run.state.link(original._path, self._path, how, rank=rank, staged=run.staged, writer=run.writer)
            try:
                run.progress.advance(size)
                with self._explained():
                    self._finish(file, size, measured, link=LinkRecord(how, original._plan.rank))
            finally:
                file.abort()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Report a failure of the body as a lost lock if another run has taken over the target, and deleted temporary files."""
        try:
            yield
        except ReshardError:
            self._run.check_lock()
            raise

    def _finish(
        self,
        file: NewFile,
        size: int,
        measured: Phase,
        complete: Callable[[], None] = lambda: None,
        link: LinkRecord | None = None,
    ) -> None:
        """Verify, publish and record the complete file. Hard links are the file that was verified.

        The file is verified under its temporary name. Another run that takes the target over deletes that name, so that this
        process cannot publish the file, even if it pauses after the check of the lock. An object has no temporary name. It is
        verified after it is published, and left there if it differs: by then, it may be the object of another run.
        """
        run, path = self._run, self._path
        task, store, where = run.task, run.state.target.store, run.state.where(path, staged=run.staged)
        temporary = file.flush()
        if temporary is None:
            run.check_lock()
            file.finish()
        complete()
        readable_at = temporary or where
        digest = self.digest or _recorded_digest(task, store, readable_at, run.cancellation)
        if link is None or link.kind != "HardLink":
            known = self.digest if self.compared else ""
            keep = partial(run.state.reject, path, temporary) if temporary is not None else lambda: f"{store.url}/{where}"
            _verify(task, self._plan, store, readable_at, keep, run.cancellation, known)
        with closing(store.open(readable_at)) as written:  # by its final name, it may be the file of another run
            sample, version = sample_of(written, remote=store.remote), written.version
        if temporary is not None:
            run.check_lock()
            file.finish()
        fetched, lost = self._fetched(), self._conditions.losses.total
        self._record = FileRecord(
            rank=self._plan.rank,
            path=path,
            size=size,
            digest=digest,
            bytes_fetched=fetched.nbytes,
            requests=fetched.requests,
            bytes_copied=fetched.copied,
            verified=task.request.options.verification,
            stage=task.stage,
            sample=sample,
            version=version,
            seconds=measured.seconds,
            rounded=lost.rounded,
            overflowed=lost.overflowed,
            link=link,
            tensors=digest_of_tensors(task.tensors(self._plan.rank)) if task.output.document_names else "",
        )
        nbytes = self._record.bytes_written
        measured.measure(bytes_fetched=fetched.nbytes, requests=fetched.requests, bytes_written=nbytes)
        fingerprints = self._conditions.fingerprints
        run.state.record(
            self._record,
            _losses_of(self._plan, self._conditions.losses.by_name),
            fingerprints.records() if fingerprints is not None else (),
        )


def _losses_of(plan: RankPlan, by_name: Mapping[str, Loss]) -> CastLosses:
    """Return the changes of casts for the record of a rank. Of parameters with the same name, one has those of all."""
    numbers = zip(plan.parameters, plan.in_model.tolist(), strict=True) if by_name else ()
    number_of = {parameter.name: number for parameter, number in numbers if parameter.name in by_name}
    return CastLosses.of({number_of[name]: loss for name, loss in by_name.items()})


def write_rank(run: Run, rank: int, budget: Budget, slots: threading.Semaphore) -> Written:
    """Write, verify and record the file of one target rank.

    Args:
        run: run that writes the file.
        rank: number of the rank.
        budget: memory and threads of the rank.
        slots: one slot for each rank that is produced at the same time. A rank that is verified has none.

    Raises:
        BugError: the file differs from the source. It is kept for inspection.
        ReshardError: the file cannot be written or compared.
    """
    with ExitStack() as slot:
        slot.enter_context(slots)
        run.cancellation.check()  # another rank may have failed while this one waited
        task, plan = run.task, run.task.planner.plan(rank)
        conditions = run.conditions(plan, budget)
        file = RankFile(run, plan, conditions, lambda: conditions.content.traffic, budget.upload)
        limits = run.state.target.store.part_limits if task.request.options.copy_mode == "Server" else None
        with file.opened(slot.close) as writer:
            file.digest = assemble(task, plan, writer, conditions, limits) if limits else produce(task, plan, writer, conditions)
    return file.written


def write_alone(task: Task, rank: int, url: str, *, share: Budget) -> None:
    """Write and verify the file of one target rank at any location, without other files next to it.

    Raises:
        BugError: the file differs from the source. It is kept as FILE.rejected, an object as FILE.
        ReshardError: the file cannot be written or compared.
    """
    with phase("write_rank", rank=rank) as measured:
        folder, path = parent_and_name(url)
        store = open_store(folder, StorageOptions(io=task.request.storage_options.target.io))
        plan, size = task.planner.plan(rank), task.file_size(rank)
        conditions = Conditions(budget=share)
        named, mode = f"{path}.{uuid.uuid4().hex}.tmp", task.request.options.file_mode
        writer = store.create(path, temporary=named, mode=mode, size=size, memory=share.upload)
        try:
            produce(task, plan, writer, conditions)
            if (temporary := writer.flush()) is None:
                writer.finish()
            _verify(task, plan, store, temporary or path, lambda: _keep_aside(store, temporary, url), Cancellation())
            if temporary is not None:
                writer.finish()
        finally:
            writer.abort()
        fetched = conditions.content.traffic
        measured.measure(bytes_fetched=fetched.nbytes, requests=fetched.requests, bytes_written=size)


def _keep_aside(store: Store, temporary: str | None, url: str) -> str:
    """Keep a file that differs from the source next to its place, and return its URL. An object remains at its place."""
    if temporary is None:
        return url
    store.move(temporary, f"{parent_and_name(url)[1]}.rejected")
    return f"{url}.rejected"


def _recorded_digest(task: Task, store: Store, path: str, cancellation: Cancellation) -> str:
    """Return the digest to record for a file that the server has assembled: that of its content, if it may be read back."""
    if task.request.options.verification == "None":
        return digest_of_version(store, path)
    with closing(store.open(path)) as reader:
        return digest_of(reader, lambda _: cancellation.check(), remote=store.remote)


def _verify(
    task: Task,
    plan: RankPlan,
    store: Store,
    path: str,
    keep: Callable[[], str],
    cancellation: Cancellation,
    digest: str = "",
) -> None:
    """Compare the flushed file with the source.

    Args:
        task: task of the file.
        plan: plan of the file.
        store: store of the file.
        path: path at which it can be read.
        keep: function that keeps a file that differs for inspection, and returns its URL.
        cancellation: object that cancels the comparison from another thread.
        digest: digest of an equal file. If every byte is to be compared, only the digest is compared.

    Raises:
        BugError: they differ. The file was kept for inspection.
        ReshardError: they cannot be compared, or the source has changed.
    """
    level = task.request.options.verification
    if level == "None":
        return
    try:
        with phase("verify_rank", rank=plan.rank, verification=level):
            if digest and level == "Full":
                _compare_digest(store, path, digest, cancellation)
            else:
                compare(task, plan, store, path, level, cancellation)
    except ReshardError as error:
        if error.reason != "VerificationFailed":
            raise
        kept = keep()
        raise BugError(
            error.reason, error.what, where=kept, fix=f"inspect the file, which is kept as {kept}; {error.fix}"
        ) from error


def _compare_digest(store: Store, path: str, digest: str, cancellation: Cancellation) -> None:
    """Compare the finished file with the digest of an equal file, which was compared with the source.

    Raises:
        BugError: they differ.
        ReshardError: the file cannot be read.
    """
    with closing(CancellableReader(store.open(path), cancellation.check)) as written:
        if not matches(written, digest, remote=store.remote):
            raise differing_copy(written)


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
        with prefetched(written, headers, HEADERS_AHEAD_BYTES, remote=store.remote) as ahead:
            try:
                reader, tensors = Blocks(ahead) if store.remote else written, _tensors(task, plan.rank)
                described = task.known.read(lambda seen: task.output.entries(reader, tensors, seen), at_once=store.remote)
            except DataError as error:
                raise unreadable(written, error) from error
            try:
                check_file(written, plan, task.model, files, level, described, known=task.known, at_once=at_once)
            except BugError:
                files.check_unchanged()
                raise


def _tensors(task: Task, rank: int) -> Iterator[OutputTensor]:
    """Yield the tensors of a rank's file. They are only created if the first one is requested."""
    yield from task.tensors(rank)


def _heads(task: Task, plan: RankPlan) -> Iterator[int]:
    """Yield the positions of the headers in a finished file."""
    position = 0
    for piece in task.pieces(plan.rank):
        if isinstance(piece, Span):
            position += piece.length
            continue
        yield position
        position += len(piece) if isinstance(piece, bytes) else piece.length
