"""Choose among source ranks with equal content, so that target ranks read few files and all source ranks have equal load."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import lru_cache
from heapq import heapify, heappop, heappush

# The search for a smaller set than the greedy one gives up after this many steps; such sets are rare and only save an open file.
_SEARCH_STEPS = 2000
# This few steps cannot rearrange more groups; the search is also as deep as the number of groups.
_SEARCHED_GROUPS = 128

Group = tuple[int, ...]


@lru_cache(maxsize=1 << 14)
def choose(groups: frozenset[Group], pivot: int, ranks: int) -> dict[Group, int]:
    """Choose one member of each group, with few distinct members in total.

    Args:
        groups: groups of ranks with equal content. No group is empty.
        pivot: rank at which the search starts. Among equally good ranks, the next one is chosen, to spread target ranks over
            the replicas.
        ranks: number of ranks. The search continues at rank 0 after the last rank.
    """
    chosen = _greedy(groups, pivot, ranks)
    smaller = _smaller(groups, len(chosen) - 1, pivot, ranks)
    if smaller is not None:
        chosen = smaller
    return {group: min((r for r in group if r in chosen), key=lambda r: (r - pivot) % ranks) for group in groups}


def _greedy(groups: frozenset[Group], pivot: int, ranks: int) -> set[int]:
    """Choose ranks without an alternative, then repeatedly the rank that serves most other groups, or the next after `pivot`."""
    chosen = {group[0] for group in groups if len(group) == 1}
    rest = {group for group in groups if chosen.isdisjoint(group)}
    served = Counter(rank for group in rest for rank in group)
    groups_of = defaultdict(list)
    for group in rest:
        for rank in group:
            groups_of[rank].append(group)
    heap = [(-count, (rank - pivot) % ranks, rank) for rank, count in served.items()]
    heapify(heap)
    while rest:
        count, distance, rank = heappop(heap)
        if -count > served[rank]:  # counts only shrink: an entry whose count is current is the first of all
            heappush(heap, (-served[rank], distance, rank))
            continue
        chosen.add(rank)
        done = rest.intersection(groups_of[rank])
        rest -= done
        served.subtract(other for group in done for other in group)
    return chosen


def _smaller(groups: frozenset[Group], most: int, pivot: int, ranks: int) -> set[int] | None:
    """Return at most `most` ranks that serve all groups, if a bounded search finds them."""
    forced = {group[0] for group in groups if len(group) == 1}
    rest = sorted((frozenset(group) for group in groups if forced.isdisjoint(group)), key=len)
    if not 2 <= len(rest) <= _SEARCHED_GROUPS or most < len(forced) + 1:
        return None
    steps = 0

    def search(chosen: set[int], left: list[frozenset[int]]) -> set[int] | None:
        nonlocal steps
        steps += 1
        if not left:
            return chosen
        if len(chosen) >= most or steps > _SEARCH_STEPS:
            return None
        for rank in sorted(left[0], key=lambda r: (r - pivot) % ranks):
            found = search(chosen | {rank}, [group for group in left if rank not in group])
            if found is not None:
                return found
        return None

    best = search(forced, rest)
    while best is not None and len(best) > len(forced) + 1 and steps <= _SEARCH_STEPS:
        most = len(best) - 1
        fewer = search(forced, rest)
        if fewer is None:
            break
        best = fewer
    return best
