"""Run one step of a CheckpointTransform in a pod of the operator.

The operator and its pods communicate only through these environment variables, the exit code, and the termination message
(`reshard.spec.messages`) of at most 2,000 bytes.

| variable | |
|---|---|
| `RESHARD_SPEC` | the folder with the resource's spec: JSON in one or more files, which are joined in the order of their names |
| `RESHARD_SPEC_SHA256` | the SHA-256 of that JSON |
| `RESHARD_OWNER` | the resource's UID: pods of one transform share the target's lock |
| `RESHARD_TARGET_RANKS` | the number of target ranks |
| `RESHARD_PARALLELISM` | the number of pods that write ranks at the same time, for the plan step |
| `RESHARD_GROUPING` | the division of the ranks among pods that the plan step reported, as JSON (`reshard.spec.ranks.Grouping`) |
| `JOB_COMPLETION_INDEX` | the number of the pod's group; set by Kubernetes |
| `RESHARD_DIGEST` | the digest that the plan step reported, for the steps after it |
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from tenacity import Retrying, retry_if_exception, wait_random_exponential

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import console
from reshard.engine.memory import MOST_WORKERS, default_workers
from reshard.engine.rankfile import content_of
from reshard.errors import LockedError, ReshardError, UsageError, printable
from reshard.progress import CancelledError
from reshard.spec.messages import (
    CommitMessage,
    FailureMessage,
    PlanMessage,
    RankSeconds,
    RanksMessage,
    StepMessage,
    TransformMessage,
    encode_message,
)
from reshard.spec.mounts import request_of_pod
from reshard.spec.ranks import Grouping, format_ranks, ranks_to_write
from reshard.spec.resource import decode_spec
from reshard.target.lock import STALE_SECONDS
from reshard.target.parts import final_notes, is_whole
from reshard.telemetry import log
from reshard.transform.complete import commit_checkpoint, commit_if_complete
from reshard.transform.plan import plan_transform
from reshard.transform.pods import Pods
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from reshard.checkpoint.manifest import Manifest
    from reshard.cli import Invocation
    from reshard.spec.request import Request
    from reshard.spec.resource import TransformSpec
    from reshard.transform.plan import PlanResult
    from reshard.transform.run import Result

_TERMINATION_LOG = "/dev/termination-log"
# JSON can escape a character as two. The whole message stays below 2,000 bytes.
_LONGEST_MESSAGE = 900
_LONGEST_NOTE = 140
_MOST_NOTES = 4
# A pod that fails blocks its place among the parallel pods during the back-off of Kubernetes, so short failures are retried here.
_TRIES = 4
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 15.0
# The lock of a pod that was killed while it committed expires within this time.
_LOCK_SECONDS = STALE_SECONDS + _LONGEST_WAIT_SECONDS
_FOR_PODS = "let the operator run this command: it configures the pod"


def run_step(invocation: Invocation, name: str) -> None:
    """Run one step of a CheckpointTransform: "plan", "ranks", "commit", or "transform", which is all of them.

    Raises:
        ReshardError: the step failed. The termination message reports it too.
    """
    work = {"plan": _plan, "ranks": _ranks, "commit": _commit, "transform": _transform}[name]
    retrying = Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, ReshardError) and e.retryable and not isinstance(e, CancelledError)),
        stop=_is_over,
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
        before_sleep=lambda state: _log_retry(state.outcome.exception() if state.outcome else None),
        reraise=True,
    )
    try:
        spec = _spec()
        result = retrying(work, invocation, spec, request_of_pod(spec))
    except ReshardError as error:
        _leave(FailureMessage(error.reason, _short(str(error), _LONGEST_MESSAGE), error.exit_code))
        raise
    _leave(result)
    console.out_json(msgspec.to_builtins(result))


def _plan(invocation: Invocation, spec: TransformSpec, request: Request) -> PlanMessage:
    pods = Pods(_number("RESHARD_PARALLELISM"), spec.execution.ranks_per_pod)
    return _plan_message(_planned(invocation, spec, request, pods))


def _planned(invocation: Invocation, spec: TransformSpec, request: Request, pods: Pods) -> PlanResult:
    """Plan, and record the plan in the target unless this is a dry run."""
    with console.progress() as progress:
        return plan_transform(
            request,
            pods=pods,
            write=not spec.dry_run,
            owner=_variable("RESHARD_OWNER"),
            progress=progress,
            cancellation=invocation.cancellation,
        )


def _plan_message(planned: PlanResult) -> PlanMessage:
    chosen = next(option for option in planned.pods if option.chosen)
    return PlanMessage(
        source_ranks=planned.summary.source_ranks,
        target_ranks=planned.summary.target_ranks,
        parameters=planned.summary.parameters,
        bytes_needed=planned.summary.bytes_needed,
        bytes_distinct=planned.summary.bytes_distinct,
        bytes_fetched=chosen.bytes_fetched,
        grouping=chosen.grouping,
        memory_bytes=chosen.memory_bytes,
        digest=planned.digest,
        finished_ranks=len(planned.finished_ranks),
        complete=planned.complete,
        notes=tuple(_short(note, _LONGEST_NOTE) for note in planned.notes[:_MOST_NOTES]),
    )


def _ranks(invocation: Invocation, spec: TransformSpec, request: Request) -> RanksMessage:
    index, total = _number("JOB_COMPLETION_INDEX"), _number("RESHARD_TARGET_RANKS")
    ranks = _grouping().group(ranks_to_write(spec.target.only_ranks, total), index)
    if not ranks:
        raise UsageError("InvalidVariable", f"index {index} has no ranks", where="JOB_COMPLETION_INDEX", fix=_FOR_PODS)
    options = msgspec.structs.replace(request.options, only_ranks=format_ranks(ranks))
    result = _write(invocation, msgspec.structs.replace(request, options=options), min(len(ranks), MOST_WORKERS))
    return RanksMessage(
        bytes_needed=result.bytes_needed,
        bytes_distinct=result.bytes_distinct,
        bytes_fetched=result.bytes_fetched,
        requests=result.requests,
        bytes_written=result.bytes_written,
        peak_rss_bytes=result.peak_rss_bytes,
        committed=_commit_as_last(invocation, request, ranks_to_write(spec.target.only_ranks, total)),
    )


def _write(invocation: Invocation, request: Request, workers: int) -> Result:
    """Write ranks without a commit."""
    with console.progress() as progress:
        return transform_checkpoint(
            request,
            workers=workers,
            commit=False,
            owner=_variable("RESHARD_OWNER"),
            progress=progress,
            cancellation=invocation.cancellation,
        )


def _commit_as_last(invocation: Invocation, request: Request, ranks: tuple[int, ...]) -> CommitMessage | None:
    """Complete the checkpoint if this pod finished its last rank. What fails here, the commit step reports or completes."""
    try:
        manifest = commit_if_complete(
            request.target,
            _variable("RESHARD_DIGEST"),
            ranks=ranks,
            verification=request.options.verification,
            storage_options=request.storage_options.target,
            cancellation=invocation.cancellation,
        )
    except CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - the ranks are written, so not even a bug may fail their pod
        log.debug("the commit of the last rank failed", exc_info=True)
        said = str(error) if isinstance(error, ReshardError) else f"{type(error).__name__}: {error}"
        console.err(f"the commit is left to the commit step: {printable(said)}", logging.WARNING)
        return None
    return None if manifest is None else _committed(manifest)


def _transform(invocation: Invocation, spec: TransformSpec, request: Request) -> TransformMessage:
    planned = _plan_message(_planned(invocation, spec, request, Pods(1, None)))
    if spec.dry_run or planned.complete:
        return TransformMessage(planned)
    if spec.target.kind.writes_files:
        _write(invocation, request, default_workers())
    return TransformMessage(planned, _finish(invocation, request, planned.digest))


def _commit(invocation: Invocation, _: TransformSpec, request: Request) -> CommitMessage:
    return _finish(invocation, request, _variable("RESHARD_DIGEST"))


def _finish(invocation: Invocation, request: Request, digest: str) -> CommitMessage:
    """Commit, whether or not another process has done so."""
    manifest = commit_checkpoint(
        request.target,
        ranks=request.options.only_ranks,
        digest=digest,
        owner=_variable("RESHARD_OWNER"),
        storage_options=request.storage_options.target,
        cancellation=invocation.cancellation,
    )
    return _committed(manifest)


def _committed(manifest: Manifest) -> CommitMessage:
    """Return the report of a commit, and log the final notes."""
    with console.progress() as progress:
        for note in final_notes(manifest):
            progress.note(note)
    content = content_of(manifest.files)
    return CommitMessage(
        digest=manifest.digest,
        bytes_fetched=content.nbytes,
        requests=content.requests,
        bytes_written=manifest.nbytes,
        rank_seconds=RankSeconds.of(record.seconds for record in manifest.files),
        manifest=MANIFEST_NAME if is_whole(manifest) else "",
    )


def _spec() -> TransformSpec:
    """Return the spec in the mounted ConfigMaps. Its digest is checked, because other users may be able to write ConfigMaps."""
    folder = Path(_variable("RESHARD_SPEC"))
    try:
        text = b"".join(path.read_bytes() for path in sorted(folder.glob("[0-9]*")))
    except OSError as error:
        raise UsageError("SpecMissing", f"the spec cannot be read: {error}", where=str(folder), fix=_FOR_PODS) from error
    found, expected = hashlib.sha256(text).hexdigest(), _variable("RESHARD_SPEC_SHA256")
    if found != expected:
        raise UsageError(
            "SpecMismatch",
            f"the SHA-256 of the spec is {found} instead of {expected}",
            where=str(folder),
            fix="delete the ConfigMap that the pod mounts there, and increase spec.execution.attempt",
        )
    return decode_spec(text, "the resource")


def _grouping() -> Grouping:
    try:
        return msgspec.json.decode(_variable("RESHARD_GROUPING"), type=Grouping)
    except msgspec.MsgspecError as error:
        problem = f"the text is not a grouping: {error}"
        raise UsageError("InvalidVariable", problem, where="RESHARD_GROUPING", fix=_FOR_PODS) from error


def _number(name: str) -> int:
    value = _variable(name)
    if not (value.isascii() and value.isdecimal()):
        raise UsageError("InvalidVariable", f"{value!r} is not a number", where=name, fix=_FOR_PODS)
    return int(value)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise UsageError("VariableMissing", "the environment variable is not set", where=name, fix=_FOR_PODS)
    return value


def _leave(message: StepMessage) -> None:
    """Write the termination message, if the container has a termination log."""
    path = Path(os.environ.get("RESHARD_TERMINATION_LOG", _TERMINATION_LOG))
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_text(encode_message(message), encoding="ascii")


def _short(text: str, most: int) -> str:
    """Shorten a text to `most` ASCII characters. Keep the start, with the problem, and the end, with the remedy."""
    text = printable(text).encode("ascii", "replace").decode("ascii")
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[5 - most // 3 :]}"


def _is_over(state: RetryCallState) -> bool:
    """Return whether a step is not tried again. A lock may expire later than the last of the usual tries."""
    is_locked = state.outcome is not None and isinstance(state.outcome.exception(), LockedError)
    waited = (state.seconds_since_start or 0.0) > _LOCK_SECONDS
    return state.attempt_number >= _TRIES and (waited or not is_locked)


def _log_retry(error: BaseException | None) -> None:
    console.err(f"retrying after: {printable(str(error))}", logging.WARNING)
