"""One step of a CheckpointTransform, as the operator's pods run it.

Operator and pods meet only here: in these environment variables, in the exit code, and in the termination message
(`reshard.spec.messages`), at most 2,000 bytes long.

| variable | |
|---|---|
| `RESHARD_SPEC` | the folder with the resource's spec: JSON, in one or more files to be joined in the order of their names |
| `RESHARD_SPEC_SHA256` | the SHA-256 of that JSON |
| `RESHARD_OWNER` | the resource's UID: pods of one transform share the target's lock |
| `RESHARD_TARGET_RANKS` | the number of ranks that the target has; of these, or of those in the spec, a pod takes its part |
| `JOB_COMPLETION_INDEX` | which part, counted in `spec.execution.ranksPerPod`; Kubernetes sets it |
| `RESHARD_DIGEST` | digest of the job to commit, which the plan step reported |
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import show
from reshard.engine.memory import MOST_WORKERS
from reshard.errors import ReshardError, UsageError, printable
from reshard.progress import CancelledError
from reshard.spec.messages import (
    CommitMessage,
    FailureMessage,
    PlanMessage,
    RankSeconds,
    RanksMessage,
    StepMessage,
    encode_message,
)
from reshard.spec.ranks import format_ranks, ranks_of_index, ranks_to_write
from reshard.spec.resource import parse_spec, request_of_pod
from reshard.target.parts import is_whole, notes_on_rules
from reshard.transform.complete import commit_checkpoint
from reshard.transform.plan import plan_transform
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from reshard.cli.state import Invocation
    from reshard.spec.request import Request
    from reshard.spec.resource import TransformSpec

_TERMINATION_LOG = "/dev/termination-log"
# JSON may need two characters for one; all of it together is to stay below 2,000.
_LONGEST_MESSAGE = 900
_LONGEST_NOTE = 150
_MOST_NOTES = 4
# A failing pod keeps its place among the parallel ones while Kubernetes waits before the next, so what may be over in a moment
# is tried again in the pod.
_TRIES = 4
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 15.0
_FOR_PODS = "this command is for the operator's pods"


@click.command(hidden=True)
@click.argument("name", type=click.Choice(["plan", "ranks", "commit"]))
@click.pass_obj
def step(invocation: Invocation, name: str) -> None:
    """Carry out one step of a CheckpointTransform, in a pod of the operator."""
    work = {"plan": _plan, "ranks": _ranks, "commit": _commit}[name]
    retrying = Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, ReshardError) and e.retryable and not isinstance(e, CancelledError)),
        stop=stop_after_attempt(_TRIES),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS),
        before_sleep=lambda state: _say_retry(state.outcome.exception() if state.outcome else None),
        reraise=True,
    )
    try:
        spec = _spec()
        result = retrying(work, invocation, spec, request_of_pod(spec))
    except ReshardError as error:
        _leave(FailureMessage(error.reason, _short(str(error), _LONGEST_MESSAGE), error.exit_code))
        raise
    _leave(result)
    show.out_json(msgspec.to_builtins(result))


def _plan(invocation: Invocation, spec: TransformSpec, request: Request) -> PlanMessage:
    with show.progress() as progress:
        workers = min(spec.execution.ranks_per_pod, MOST_WORKERS)
        planned = plan_transform(
            request,
            workers=workers,
            write=not spec.dry_run,
            owner=_variable("RESHARD_OWNER"),
            progress=progress,
            cancellation=invocation.cancellation,
        )
    return PlanMessage(
        source_ranks=planned.summary.source_ranks,
        target_ranks=planned.summary.target_ranks,
        parameters=planned.summary.parameters,
        bytes=planned.summary.bytes_needed,
        memory_bytes=planned.memory_bytes,
        digest=planned.digest,
        finished_ranks=len(planned.finished_ranks),
        complete=planned.complete,
        notes=tuple(_short(note, _LONGEST_NOTE) for note in planned.notes[:_MOST_NOTES]),
    )


def _ranks(invocation: Invocation, spec: TransformSpec, request: Request) -> RanksMessage:
    index, total = _number("JOB_COMPLETION_INDEX"), _number("RESHARD_TARGET_RANKS")
    ranks = ranks_of_index(ranks_to_write(spec.target.ranks, total), spec.execution.ranks_per_pod, index)
    if not ranks:
        raise UsageError("InvalidVariable", f"there are no ranks for index {index}", where="JOB_COMPLETION_INDEX", fix=_FOR_PODS)
    options = msgspec.structs.replace(request.options, ranks=format_ranks(ranks))
    with show.progress() as progress:
        result = transform_checkpoint(
            msgspec.structs.replace(request, options=options),
            workers=min(len(ranks), MOST_WORKERS),
            commit=False,
            owner=_variable("RESHARD_OWNER"),
            progress=progress,
            cancellation=invocation.cancellation,
        )
    return RanksMessage(result.bytes_read, result.bytes_written, result.peak_rss_bytes)


def _commit(invocation: Invocation, _: TransformSpec, request: Request) -> CommitMessage:
    digest, owner = _variable("RESHARD_DIGEST"), _variable("RESHARD_OWNER")
    ranks, access = request.options.ranks, request.access.target
    with show.progress() as progress:
        manifest = commit_checkpoint(
            request.target, ranks=ranks, digest=digest, owner=owner, access=access, cancellation=invocation.cancellation
        )
        for note in notes_on_rules(manifest):
            progress.note(note)
    return CommitMessage(
        digest=manifest.digest,
        bytes_read=sum(record.bytes_read for record in manifest.files),
        bytes_written=manifest.nbytes,
        rank_seconds=RankSeconds.of(record.seconds for record in manifest.files),
        manifest=MANIFEST_NAME if is_whole(manifest) else "",
    )


def _spec() -> TransformSpec:
    """Return the spec that the operator left in ConfigMaps, which others in the namespace may be able to write."""
    folder = Path(_variable("RESHARD_SPEC"))
    try:
        text = b"".join(path.read_bytes() for path in sorted(folder.glob("[0-9]*")))
    except OSError as error:
        raise UsageError("SpecMissing", f"it cannot be read: {error}", where=str(folder), fix=_FOR_PODS) from error
    found, expected = hashlib.sha256(text).hexdigest(), _variable("RESHARD_SPEC_SHA256")
    if found != expected:
        raise UsageError(
            "SpecMismatch",
            f"the SHA-256 of the spec is {found}, and the operator wrote {expected}",
            where=str(folder),
            fix="delete the ConfigMap that the pod mounts there, and raise spec.execution.attempt",
        )
    try:
        document = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise UsageError("InvalidSpec", f"the spec is not JSON: {error}", where=str(folder), fix=_FOR_PODS) from error
    return parse_spec(document, "the resource")


def _number(name: str) -> int:
    value = _variable(name)
    if not (value.isascii() and value.isdecimal()):
        raise UsageError("InvalidVariable", f"{value!r} is not a number", where=name, fix=_FOR_PODS)
    return int(value)


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise UsageError("VariableMissing", "it is not set", where=name, fix=_FOR_PODS)
    return value


def _leave(message: StepMessage) -> None:
    """Leave the termination message, where there is a place for one."""
    path = Path(os.environ.get("RESHARD_TERMINATION_LOG", _TERMINATION_LOG))
    with contextlib.suppress(OSError):
        if path.exists():
            path.write_text(encode_message(message), encoding="ascii")


def _short(text: str, most: int) -> str:
    """At most so many ASCII characters: what is wrong stands at the beginning, what to do at the end."""
    text = printable(text).encode("ascii", "replace").decode("ascii")
    return text if len(text) <= most else f"{text[: most * 2 // 3]} ... {text[5 - most // 3 :]}"


def _say_retry(error: BaseException | None) -> None:
    show.say(f"trying again: {error}", logging.WARNING)
