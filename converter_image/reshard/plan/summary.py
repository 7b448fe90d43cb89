"""The plan of all target ranks in numbers: counted, not sampled, without making every copy. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.plan.parameters import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.plan.parameters import Model
    from reshard.plan.rank import Planner


@dataclass(frozen=True, slots=True)
class Summary:
    """What all target ranks together need.

    Attributes:
        source_ranks: ranks that the source has.
        target_ranks: ranks that the target has.
        parameters: names that are written.
        bytes_needed: source bytes that the planned ranks are made of, replicas counted for each rank.
        replicated_bytes: of these the bytes of parameters that every rank gets whole because no strategy names them.
        copies: boxes to copy.
        sources: for each planned target rank the source ranks that it reads, ascending.
        rank_bytes: for each planned target rank its bytes.
    """

    source_ranks: int
    target_ranks: int
    parameters: int
    bytes_needed: int
    replicated_bytes: int
    copies: int
    sources: dict[int, tuple[int, ...]]
    rank_bytes: dict[int, int]


def summarize(model: Model, planner: Planner, ranks: Sequence[int]) -> Summary:
    """Count what these target ranks need.

    Raises:
        MissingInputError: no source file has a part that one of them needs.
    """
    kinds_of_stage = [Counter(kinds) for kinds in planner.kinds_of_stage]
    nbytes_of_stage = [sum(p.slice_nbytes for p in parameters) for parameters in planner.parameters_of_stage]
    replicated_of_stage = [
        sum(p.slice_nbytes for p in parameters if p.role is Role.REPLICATED) for parameters in planner.parameters_of_stage
    ]
    copies = 0
    sources, rank_bytes = {}, {}
    for rank in ranks:
        stage = rank // model.target_devices
        sources[rank] = planner.sources(rank)
        rank_bytes[rank] = nbytes_of_stage[stage]
        copies += sum(count * len(planner.needs(planner.examples[kind], rank)) for kind, count in kinds_of_stage[stage].items())
    return Summary(
        source_ranks=model.source_ranks,
        target_ranks=model.target_ranks,
        parameters=len({p.name for p in model.parameters}),
        bytes_needed=sum(rank_bytes.values()),
        replicated_bytes=sum(replicated_of_stage[rank // model.target_devices] for rank in ranks),
        copies=copies,
        sources=sources,
        rank_bytes=rank_bytes,
    )
