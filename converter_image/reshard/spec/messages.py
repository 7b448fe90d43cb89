"""Termination messages: the report of a step's pod to the operator, as a JSON object in ASCII.

`version` increases when older readers can no longer read a message. New fields do not change it, because readers ignore unknown
fields.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from typing import TYPE_CHECKING, Annotated, Self, TypeVar

import msgspec

from reshard.spec.ranks import Grouping
from reshard.structs import examined

if TYPE_CHECKING:
    from collections.abc import Iterable

MESSAGE_VERSION = 1
# Upper bounds of the buckets of rank durations. A message has no room for thousands of durations.
RANK_SECONDS_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)

# More ranks than any cluster has. A forged message must not make the operator create an endless list.
_Ranks = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class StepMessage(msgspec.Struct, frozen=True, rename="camel"):
    """The fields that all steps report."""


class PlanMessage(StepMessage, frozen=True):
    """The report of the plan step, and what the status contains of it.

    Only the fields that the operator needs are required: a status does not have those that the CRD does not know.

    Attributes:
        bytes_fetched: number of bytes of the source that these pods will fetch for the contents of files.
        grouping: division of the ranks among pods.
    """

    source_ranks: _Ranks
    target_ranks: _Ranks
    memory_bytes: _Count
    digest: str
    parameters: _Count = 0
    bytes_needed: _Count = 0
    bytes_distinct: _Count = 0
    bytes_fetched: _Count = 0
    grouping: Grouping = Grouping()
    finished_ranks: _Count = 0
    complete: bool = False
    notes: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)] = ()


class RankSeconds(msgspec.Struct, frozen=True):
    """Durations of ranks.

    Attributes:
        counts: number of ranks in each of RANK_SECONDS_BUCKETS, and above the last.
        sum: sum of all durations.
    """

    counts: Annotated[
        tuple[_Count, ...], msgspec.Meta(min_length=len(RANK_SECONDS_BUCKETS) + 1, max_length=len(RANK_SECONDS_BUCKETS) + 1)
    ] = (0,) * (len(RANK_SECONDS_BUCKETS) + 1)
    sum: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @classmethod
    def of(cls, durations: Iterable[float]) -> Self:
        """Count durations in seconds."""
        counts, total = [0] * (len(RANK_SECONDS_BUCKETS) + 1), 0.0
        for seconds in durations:
            counts[bisect_left(RANK_SECONDS_BUCKETS, seconds)] += 1
            total += seconds
        return cls(tuple(counts), round(total, 3))


class CommitMessage(StepMessage, frozen=True):
    """The report of a commit.

    Attributes:
        digest: digest of the task that was committed.
        bytes_fetched: number of bytes of the source that were fetched for its tensors.
        requests: number of requests that fetched them.
        bytes_written: number of bytes written to files.
        manifest: name of the manifest. Empty if other transforms still have to write stages of this checkpoint.
        rank_seconds: durations of the ranks.
    """

    digest: str
    bytes_fetched: _Count
    requests: _Count
    bytes_written: _Count
    manifest: str
    rank_seconds: RankSeconds = RankSeconds()


class RanksMessage(StepMessage, frozen=True):
    """The report of one pod of the ranks step.

    Attributes:
        committed: report of the commit, if all ranks were finished and this pod completed the checkpoint.
    """

    bytes_needed: _Count
    bytes_distinct: _Count
    bytes_fetched: _Count
    requests: _Count
    bytes_written: _Count
    peak_rss_bytes: _Count
    committed: CommitMessage | None = None


class TransformMessage(StepMessage, frozen=True):
    """The report of the only pod of a transform.

    Attributes:
        plan: report of the plan.
        committed: report of the commit. None if there was nothing to do, or if the transform is a dry run.
    """

    plan: PlanMessage
    committed: CommitMessage | None = None


class FailureMessage(StepMessage, frozen=True):
    """The report of a failed pod."""

    reason: str
    message: str
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] = 1


class UnreadableMessageError(ValueError):
    """A termination message is missing, has another version, or is not the message of a step."""


class _Header(msgspec.Struct):
    version: int


M = TypeVar("M", bound=StepMessage)


def encode_message(message: StepMessage) -> str:
    """Return a message in ASCII."""
    return json.dumps({"version": MESSAGE_VERSION} | msgspec.to_builtins(message))


def decode_message(text: str, kind: type[M]) -> M:
    """Return a message of this type.

    Raises:
        UnreadableMessageError: the text is not such a message, or has another version.
    """
    if not text.strip():
        raise UnreadableMessageError("the container wrote no termination message")
    try:
        version = msgspec.json.decode(text, type=examined(_Header)).version
        if version != MESSAGE_VERSION:
            raise UnreadableMessageError(
                f"the termination message has version {version}, but this operator reads version {MESSAGE_VERSION}"
            )
        return msgspec.json.decode(text, type=examined(kind))
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise UnreadableMessageError(f"the termination message is not a step result: {error}") from error
