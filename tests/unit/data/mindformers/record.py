"""Record a small checkpoint of MindFormers, and its contents, for the tests of `reshard.formats.mindformers`.

    python record.py MINDFORMERS OUTPUT

Needs MindSpore and a copy of https://github.com/mindspore-ai/mindformers. MindFormers' own functions make the metadata and the
names of files, and MindSpore writes the files. This program only takes the slices of each rank, since there are no devices. See
README.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mindspore as ms
import numpy as np

RANKS = 4
MODEL = {
    "grid": (("dp", "tp"), ms.float32, (4, 6)),
    "columns": (("None", "tp"), ms.bfloat16, (4, 6)),
    "rows": ((("dp", "tp"), "None"), ms.float32, (8, 3)),
    "rows_by_tp_first": ((("tp", "dp"), "None"), ms.float32, (8, 3)),
    "vector": (("tp",), ms.float16, (6,)),
    "whole": (None, ms.int32, (2, 3, 2)),
    "scalar": (None, ms.float32, ()),
}
OPTIMIZER = {f"adam_m.{name}": each for name, each in MODEL.items() if name in {"grid", "rows"}} | {
    "global_step": (None, ms.int32, (1,))
}


def load_functions(mindformers: str) -> tuple[Any, Any, Any]:
    """MindFormers' modules of checkpoints, without the rest of MindFormers, which needs far more packages."""

    def package(name: str, folder: str | None = None, **attributes: Any) -> None:
        found = ModuleType(name)
        found.__path__ = [] if folder is None else [folder]
        found.__dict__.update(attributes)
        sys.modules[name] = found

    package("mindformers")
    package("mindformers.checkpoint", f"{mindformers}/mindformers/checkpoint")
    package("mindformers.tools", get_output_root_path=lambda: ".")
    package("mindformers.tools.logger", logger=logging.getLogger())
    package(
        "mindformers.tools.utils",
        set_safe_mode_for_file_or_dir=lambda _: None,
        get_real_rank=lambda: 0,
        get_real_group_size=lambda: RANKS,
    )
    package("mindformers.core")
    package("mindformers.core.context")
    package("mindformers.core.context.build_context", get_context=lambda _: ms.context.GRAPH_MODE)
    from mindformers.checkpoint import metadata, sharded_tensor, utils  # noqa: PLC0415 - after the packages above

    metadata.get_group_size = lambda: RANKS
    return metadata, sharded_tensor, utils


def slice_of(whole: np.ndarray, placements: Any, rank: int) -> np.ndarray:
    """What a rank of a mesh of 2 x 2 holds."""
    if placements is None:
        return whole
    mesh = {"dp": rank // 2, "tp": rank % 2}
    for dim, axes in enumerate(placements):
        for axis in axes if isinstance(axes, tuple) else (axes,):
            if axis != "None":
                whole = np.split(whole, 2, axis=dim)[mesh[axis]]
    return whole


def record(mindformers: str, output: str) -> None:
    metadata, sharded_tensor, utils = load_functions(mindformers)
    layout = ms.parallel.Layout((2, 2), ("dp", "tp"), list(range(RANKS)))
    every = MODEL | OPTIMIZER
    infos = {
        name: [None if placements is None else layout(*placements), str(dtype).lower(), list(shape)]
        for name, (placements, dtype, shape) in every.items()
    }
    shards = {rank: sharded_tensor.get_sharded_tensor_from_strategy_metadata(infos, rank) for rank in range(RANKS)}
    folder = Path(utils.get_checkpoint_iter_dir(output, 10))
    folder.mkdir(parents=True)
    files = metadata.get_total_params_file_mapping_info(shards, "llama", list(MODEL))
    metadata.save_metadata(shards, files, utils.get_metadata_filename(output, 10))
    (folder / "common.json").write_text(json.dumps({"epoch_num": 1, "step_num": 10, "global_step": 10}, indent=4))
    wholes = {
        name: np.arange(i, i + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
        for i, (name, (_, _, shape)) in enumerate(every.items())
    }
    for kind, names in ((utils.FileType.MODEL, MODEL), (utils.FileType.OPTIMIZER, OPTIMIZER)):
        for rank in range(RANKS):
            parameters = [
                {"name": name, "data": ms.Tensor(slice_of(wholes[name], placements, rank).copy(), dtype)}
                for name, (placements, dtype, _) in names.items()
            ]
            ms.save_checkpoint(
                parameters, utils.get_checkpoint_name(str(folder), "llama", rank, RANKS, kind), format="safetensors"
            )
    expected = {
        name: {"dtype": str(dtype), "shape": shape, "sha256": hashlib.sha256(content(wholes[name], dtype)).hexdigest()}
        for name, (_, dtype, shape) in every.items()
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n")


def content(whole: np.ndarray, dtype: Any) -> bytes:
    """The row-major bytes. The numbers are so small that the upper half of a float32 is the bfloat16."""
    if dtype == ms.bfloat16:
        return (whole.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return whole.astype(ms.dtype_to_nptype(dtype)).tobytes()


if __name__ == "__main__":
    record(*sys.argv[1:])
