"""Planning at the size of the largest models: 405B parameters with Adam's moments, 16,384 ranks to 12,288."""

from __future__ import annotations

import json
import resource
import time
from math import prod

from reshard.checkpoint.inventory import Inventory, SourceFile, Structure, TensorEntry
from reshard.layout import Layout
from reshard.plan import Planner, build_model, prove, summarize
from reshard.plan.fetched import Reading
from reshard.plan.groupings import Groupings, choose
from reshard.plan.passes import Limits
from reshard.strategy import Strategy

LAYERS, HIDDEN, FFN, VOCABULARY, KV = 126, 16384, 53248, 128256, 1024
ROWS, COLUMNS, WHOLE = ((1,), ()), ((), (1,)), ((),)  # axes are counted from the right: 0 is the optimizer's, 1 the tensors'

_PARALLELISM = 8
# name, whole shape, tensor map over (tensor parallel, data parallel), optimizer shards at the source and at the target
LAYER = (
    ("attention.wq", (HIDDEN, HIDDEN), ROWS, 128, 64),
    ("attention.wk", (KV, HIDDEN), ROWS, 128, 64),
    ("attention.wv", (KV, HIDDEN), ROWS, 128, 64),
    ("attention.wo", (HIDDEN, HIDDEN), COLUMNS, 128, 64),
    ("feed_forward.w1", (FFN, HIDDEN), ROWS, 128, 64),
    ("feed_forward.w3", (FFN, HIDDEN), ROWS, 128, 64),
    ("feed_forward.w2", (HIDDEN, FFN), COLUMNS, 128, 64),
    ("attention_norm", (HIDDEN,), WHOLE, 128, 64),
    ("ffn_norm", (HIDDEN,), WHOLE, 128, 64),
)
ENDS = (
    ("embedding.weight", (VOCABULARY, HIDDEN), ROWS, 32, 32),
    ("norm.weight", (HIDDEN,), WHOLE, 128, 64),
    ("lm_head.weight", (VOCABULARY, HIDDEN), ROWS, 32, 32),
)


def parameters(stage: int, stages: int) -> list[tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...], int, int]]:
    """Return the parameters of a pipeline stage: its share of the layers, the embedding on the first, the head on the last."""
    found = [(f"model.layers.{i}.{name}", *rest) for i in range(LAYERS) if i * stages // LAYERS == stage for name, *rest in LAYER]
    found += [ENDS[0]] if stage == 0 else []
    found += list(ENDS[1:]) if stage == stages - 1 else []
    return [(f"{moment}{name}", *rest) for moment in ("", "adam_m.", "adam_v.") for name, *rest in found]


def strategy(stages: int, data: int, side: int) -> Strategy:
    """Tensor parallel over 8, data (and optimizer) parallel over `data`, in so many stages."""
    layouts: dict[tuple[object, ...], Layout] = {}
    made = []
    for stage in range(stages):
        stage_layouts = {}
        for name, _, maps, *shards in parameters(stage, stages):
            key = (maps, shards[side])
            if key not in layouts:
                layouts[key] = Layout((8, data), maps, 1, shards[side])
            stage_layouts[name] = layouts[key]
        made.append(stage_layouts)
    return Strategy(tuple(made), 8 * data)


def main() -> None:
    """Plan one rank and all of them, and print what it took."""
    began = time.perf_counter()
    source, target = strategy(16, 128, 0), strategy(8, 192, 1)
    structures = []
    for stage in range(16):
        offset, entries = 0, []
        for name, shape, *_ in parameters(stage, 16):
            slice_shape = tuple(n // k for n, k in zip(shape, source.stages[stage][name].parts, strict=True))
            nbytes = prod(slice_shape) * 4
            entries.append(TensorEntry(name, "Float32", slice_shape, ((offset, nbytes),)))
            offset += nbytes
        structures.append(Structure("safetensors", tuple(entries), {"format": "ms"}))
    files = tuple(
        SourceFile(rank, f"rank_{rank}/llama-1_1000.safetensors", 1 << 30, f"{rank}-1", rank // source.devices)
        for rank in range(source.ranks)
    )
    inventory = Inventory(files, tuple(structures))
    prepared = time.perf_counter()
    planner = Planner(build_model(inventory, source, target))
    placed = time.perf_counter()
    plan = planner.plan(7777)
    prove(plan)
    one = time.perf_counter()
    summary = summarize(planner.model, planner, range(target.ranks))
    every = time.perf_counter()
    processor = time.process_time()
    limits, reading = Limits(64, 1 << 16, equal=True, few=8, run=64 << 10), Reading(16 << 10, 8 << 20)
    groupings = Groupings(planner, range(target.ranks), limits, reading)
    options = groupings.compare(_PARALLELISM, summary.bytes_distinct)
    chosen, compared = choose(options, summary.bytes_distinct), time.process_time()
    print(
        json.dumps(
            {
                "parameters": summary.parameters,
                "source_ranks": source.ranks,
                "target_ranks": target.ranks,
                "strategies_seconds": round(prepared - began, 3),
                "place_seconds": round(placed - prepared, 3),
                "one_rank_seconds": round(one - placed, 3),
                "all_ranks_seconds": round(every - one, 3),
                "groupings_processor_seconds": round(compared - processor, 3),
                "pods": chosen.pods,
                "ranks_per_pod": chosen.grouping.size,
                "fetched_of_distinct": [round(option.bytes_fetched / summary.bytes_distinct, 2) for option in options],
                "copies": summary.copies,
                "bytes": summary.bytes_needed,
                "most_sources_of_a_rank": max(map(len, summary.sources.values())),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
