"""Exact totals of the plans of all target ranks, calculated without planning every copy."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from reshard.plan.distinct import bytes_needed
from reshard.plan.model import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.plan.model import Kind, Model
    from reshard.plan.planner import Planner


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of all target ranks.

    Attributes:
        source_ranks: number of source ranks.
        target_ranks: number of target ranks.
        parameters: number of parameters that are written.
        excluded: names of source parameters that patterns or rename rules omit.
        bytes_needed: number of source bytes that the planned ranks require. What several ranks require counts for each.
        bytes_distinct: number of source bytes that any planned rank requires, each counted once.
        replicated_bytes: share of `bytes_needed` for parameters that every rank gets whole, because no strategy names them.
        copies: number of boxes to copy.
        most_copies: largest number of boxes to copy for one planned rank.
        sources: source ranks that each planned target rank reads, in ascending order.
        rank_bytes: number of source bytes that each planned target rank requires.
    """

    source_ranks: int
    target_ranks: int
    parameters: int
    excluded: tuple[str, ...]
    bytes_needed: int
    bytes_distinct: int
    replicated_bytes: int
    copies: int
    most_copies: int
    sources: dict[int, tuple[int, ...]]
    rank_bytes: dict[int, int]


def summarize(model: Model, planner: Planner, ranks: Sequence[int]) -> Summary:
    """Return the totals of these target ranks.

    Raises:
        MissingInputError: no source file contains a required slice.
    """

    @lru_cache
    def content(rank: int) -> tuple[int, int, Counter[Kind]]:
        """Return bytes of the rank's parameters, bytes of replicated ones, and the number of parameters of each kind."""
        nbytes = replicated = 0
        kinds: Counter[Kind] = Counter()
        for kind, numbers in planner.members(rank).items():
            size = kind.nbytes_at(rank % model.target_devices) * len(numbers)
            nbytes += size
            replicated += size if kind.role is Role.REPLICATED else 0
            kinds[planner.like(kind)] += len(numbers)
        return nbytes, replicated, kinds

    copies = most_copies = replicated_bytes = 0
    sources, rank_bytes = {}, {}
    for rank in ranks:
        rank_bytes[rank], replicated, kinds = content(planner.alike(rank))
        replicated_bytes += replicated
        sources[rank] = planner.sources(rank)
        of_rank = sum(count * len(planner.needs(kind, rank)) for kind, count in kinds.items())
        copies, most_copies = copies + of_rank, max(most_copies, of_rank)
    return Summary(
        source_ranks=model.source_ranks,
        target_ranks=model.target_ranks,
        parameters=model.distinct_names,
        excluded=(*model.excluded, *model.excluded_by_rename),
        bytes_needed=sum(rank_bytes.values()),
        bytes_distinct=bytes_needed(planner, ranks).distinct,
        replicated_bytes=replicated_bytes,
        copies=copies,
        most_copies=most_copies,
        sources=sources,
        rank_bytes=rank_bytes,
    )
