"""Choose how to divide target ranks among pods, given what these will fetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reshard.engine.memory import MOST_WORKERS, memory_bytes, pass_budget, pass_limits
from reshard.plan.fetched import Reading
from reshard.plan.groupings import Groupings, choose
from reshard.spec.ranks import Grouping, ranks_to_write
from reshard.transform.ranks import most_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.plan import Summary
    from reshard.plan.groupings import Option
    from reshard.transform.preflight import Preflight


@dataclass(frozen=True, slots=True)
class Pods:
    """Pods that write target ranks.

    Attributes:
        parallelism: number of pods that run at the same time.
        ranks_per_pod: number of consecutive ranks of each pod. Auto: ranks that need the same bytes are in one pod. None: one pod
            writes all ranks.
    """

    parallelism: int
    ranks_per_pod: int | Literal["Auto"] | None = "Auto"


@dataclass(frozen=True, slots=True)
class PodsOption:
    """One way to divide the ranks among pods.

    Attributes:
        grouping: division of the ranks.
        pods: number of pods.
        ranks_per_pod: largest number of ranks of a pod.
        bytes_fetched: number of bytes of the source that all pods will fetch for the contents of files.
        memory_bytes: maximum memory of a pod.
        chosen: whether this option was chosen.
    """

    grouping: Grouping
    pods: int
    ranks_per_pod: int
    bytes_fetched: int
    memory_bytes: int
    chosen: bool


def options_of(preflight: Preflight, summary: Summary, pods: Pods) -> tuple[PodsOption, ...]:
    """Return the ways that were compared to divide the ranks among pods, smallest groups first. One of them is chosen."""
    task, target = preflight.task, preflight.target.store
    ranks = ranks_to_write(task.request.options.only_ranks, task.model.target_ranks) if task.kind.writes_files else ()
    shares = not (task.model.same or task.request.options.copy_mode == "Server")  # otherwise no bytes are fetched for two ranks
    largest, encrypts = max(preflight.sizes.values(), default=0), task.cipher is not None
    fetching = pass_budget(1, 1, task.source, target)  # with the smallest batches: larger ones join more ranges
    limits = pass_limits(task.source, target, largest, encrypts=encrypts) if shares else None
    groupings = Groupings(task.planner, ranks, limits, Reading(fetching.gap, fetching.batch))
    if pods.ranks_per_pod != "Auto":
        each = min(pods.ranks_per_pod or len(ranks), len(ranks))
        found: Sequence[Option] = [groupings.examine(Grouping.consecutive(max(1, each)))]
    elif shares and ranks:
        found = groupings.compare(pods.parallelism, summary.bytes_distinct)
    else:
        found = [groupings.examine(Grouping())]
    chosen = choose(found, summary.bytes_distinct)

    def described(option: Option) -> PodsOption:
        size = option.grouping.size
        memory = memory_of(preflight, summary, min(size, MOST_WORKERS), (some for group in option.groups for some in group))
        return PodsOption(option.grouping, option.pods, size, option.bytes_fetched, memory, option is chosen)

    return tuple(map(described, found))


def memory_of(
    preflight: Preflight, summary: Summary, workers: int, passes: Iterable[Sequence[int]], *, parses: bool = False
) -> int:
    """Return the maximum memory of a process that makes these passes over the source, see `memory_bytes`."""
    task, target, several = preflight.task, preflight.target.store, list(passes)
    return memory_bytes(
        task.model,
        workers,
        task.source,
        target,
        preflight.sizes.values(),
        files=most_files(task, target, several),
        ranks=max(map(len, several), default=0),
        copies=summary.most_copies,
        decrypts=task.request.decryption is not None,
        encrypts=task.request.encryption is not None,
        locates=task.output.once,
        parses=parses,
    )
