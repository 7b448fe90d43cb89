"""`reshard fetch`: what one pod of a training needs, on its own disk, before the training begins."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from reshard.cli import show
from reshard.cli.arguments import MOST_RANKS, PATH, rank_in
from reshard.cli.options import fetch_options, request_of
from reshard.errors import UsageError
from reshard.spec.ranks import format_ranks
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from reshard.cli.state import Invocation


@click.command()
@fetch_options
@click.option("--target", required=True, type=PATH, metavar="DIR", help="Where the file is to be.")
@click.option("--rank", type=click.IntRange(0, MOST_RANKS), help="The target rank that is wanted.")
@click.option(
    "--rank-from", metavar="NAME", help="The environment variable that says it, such as JOB_COMPLETION_INDEX or RANK_ID."
)
@click.option(
    "--ranks-per-pod",
    type=click.IntRange(1, 1 << 10),
    default=1,
    show_default=True,
    help="So many ranks for each number of --rank or --rank-from: for 8, number 1 means rank 8 to 15.",
)
@click.pass_obj
def fetch(invocation: Invocation, /, **arguments: Any) -> None:
    """Write the file of one target rank, verified, to a folder; nothing is done if it is there.

    It is DIR/rank_<r>/<prefix><r>.<format>, and appears whole, beside a manifest of this rank.
    """
    number, each = _number(arguments["rank"], arguments["rank_from"]), arguments["ranks_per_pod"]
    ranks = format_ranks(tuple(range(number * each, (number + 1) * each)))
    request = request_of({**arguments, "ranks": ranks})
    with show.progress() as progress:
        result = transform_checkpoint(
            request, workers=arguments["workers"], progress=progress, cancellation=invocation.cancellation
        )
    if arguments["as_json"]:
        show.out_json(asdict(result) | {"skipped_ranks": list(result.skipped_ranks)})
    elif result.bytes_written:
        show.out(f"rank {ranks} of {result.target_ranks}: {show.size(result.bytes_written)} in {result.seconds:.2f} s")
    else:
        show.out(f"nothing to do: rank {ranks} of {result.target_ranks} is there")


def _number(rank: int | None, variable: str | None) -> int:
    """Which rank is meant, or which pod.

    Raises:
        UsageError: nothing says it, or two say it.
    """
    if (rank is None) == (variable is None):
        raise UsageError("RankMissing", "one of the two is expected", where="--rank, --rank-from", fix="give one of them")
    return rank_in(variable) if variable is not None else rank or 0
