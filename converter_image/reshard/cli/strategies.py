"""`reshard strategy`: look at strategy files, and merge those of pipeline stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reshard.cli import show
from reshard.cli.arguments import PATH, json_option
from reshard.source.strategies import read_strategy, read_strategy_files
from reshard.storage import open_store, parent_and_name
from reshard.strategy import dump, merge

if TYPE_CHECKING:
    from reshard.layout import Layout


@click.group()
def strategy() -> None:
    """Look at strategy files, and merge those of pipeline stages."""


@strategy.command("show")
@click.argument("path", type=PATH, metavar="PATH")
@json_option
def show_strategy(path: str, as_json: bool) -> None:
    """Show how a strategy (a file, or a folder of stages) cuts each parameter."""
    found = read_strategy(path)
    if as_json:
        stages = [{name: _document(layout) for name, layout in stage.items()} for stage in found.stages]
        show.out_json({"ranks": found.ranks, "devices_per_stage": found.devices, "stages": stages})
        return
    show.out(f"{found.ranks} ranks: {len(found.stages)} pipeline stages of {found.devices}")
    for number, stage in enumerate(found.stages):
        show.out()
        show.table(
            f"stage {number}: {len(stage)} parameters",
            [
                ("parameter", "left"),
                ("device matrix", "left"),
                ("tensor map", "left"),
                ("cut into", "left"),
                ("copies", "right"),
            ],
            [(name, *_row(layout)) for name, layout in stage.items()],
        )


@strategy.command("merge")
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("output", type=PATH, metavar="FILE")
def merge_strategies(folder: str, output: str) -> None:
    """Merge the strategies of all pipeline stages in a folder into one file (.ckpt: protobuf, .json: JSON)."""
    merged = merge(read_strategy_files(folder))
    folder, name = parent_and_name(output)
    open_store(folder).write(name, dump(merged, "json" if output.endswith(".json") else "protobuf"), mode=None)
    show.out(f"wrote {output}: {len(merged.parameters)} parameters")


def _document(layout: Layout) -> dict[str, object]:
    return {
        "device_matrix": list(layout.device_matrix),
        "tensor_map": [list(axes) for axes in layout.tensor_map],
        "opt_weight_shard_step": layout.shard_step,
        "opt_weight_shard_size": layout.shard_size,
        "parts": list(layout.parts),
    }


def _row(layout: Layout) -> tuple[str, str, str, int]:
    tensor_map = [axes[0] if len(axes) == 1 else list(axes) or -1 for axes in layout.tensor_map]
    shard = f", optimizer shard {layout.shard_size}" if layout.shard_size and layout.shard_step else ""
    holders = next(iter(layout.holders.values()))
    return (
        str(list(layout.device_matrix)),
        f"{tensor_map}{shard}",
        " x ".join(map(str, layout.parts)) or "1",
        len(holders),
    )
