"""Record the checkpoints of this corpus with the real MindSpore: `python record.py [FOLDER]`, with the Python of prepare.sh.

The strategy files are those that are here; `tests/compiled/record.py` compiles them.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import mindspore
import numpy as np
import safetensors

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "support")]

import saving  # noqa: E402 - it is there
from corpus import network, small  # noqa: E402 - as above


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a checkpoint file with MindSpore, readable by everyone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [{"name": name, "data": mindspore.Tensor(array.copy())} for name, array in tensors.items()]
    mindspore.save_checkpoint(found, str(path), format=path.suffix[1:])
    path.chmod(0o644)


def record(folder: Path) -> dict[str, dict[str, str]]:
    """Write the checkpoints; returns digests of all files, and of those that MindSpore makes from the example for 4 ranks."""
    if folder != HERE:
        made = shutil.ignore_patterns("src", "src_checkpoints", "*.py", "__pycache__")
        shutil.copytree(HERE, folder, ignore=made, dirs_exist_ok=True)
    saving.strategy(folder / network.STRATEGIES[7], network.LAYOUTS[7], 0)
    for rank in range(8):
        save(folder / network.SOURCE / f"rank_{rank}" / f"net-{network.EPOCH_AND_STEP}.ckpt", network.held_by(rank, 8))
    for net in small.NETWORKS:
        for rank in range(net.stages * net.devices):
            save(folder / net.name / "src" / f"rank_{rank}" / f"net-{small.EPOCH_AND_STEP}.{net.kind}", net.source(rank))
    recorded = sorted([*folder.rglob("*.ckpt"), *folder.rglob("*.safetensors")])
    with tempfile.TemporaryDirectory() as made:
        source, before, after = (str(folder / n) for n in (network.SOURCE, network.STRATEGIES[8], network.STRATEGIES[4]))
        mindspore.transform_checkpoints(source, made, "checkpoint_", before, after)
        transformed = {str(path.relative_to(made)): digest(path) for path in sorted(Path(made).glob("*/*.ckpt"))}
    return {"recorded": {str(path.relative_to(folder)): digest(path) for path in recorded}, "transformed_to_4": transformed}


PROVENANCE = """# Provenance

The example of MindSpore's document on the transformation of checkpoints: a source on 8 ranks, and strategies for 4 ranks with
optimizer parallelism, for inference on 2 ranks, and for 7 ranks. The weights are made up (`network.py`). MindSpore wrote the
files:

- Its compiler wrote the strategies, from the networks in `tests/compiled`, with one exception: the compiler accepts 1, 2, 4 or a
  multiple of 8 devices, so `dst_strategy_7.ckpt` was made from messages of `mindspore.train.node_strategy_pb2`.
- `save_checkpoint` wrote the checkpoints.
- `transform_checkpoints(..., "checkpoint_", src_strategy, dst_strategy_4)` wrote the files of which only digests are kept. There
  are none for 7 ranks: MindSpore refuses to transform 8 ranks to 7.

Two small networks (`small.py`) are recorded in the same way: `experts`, safetensors on 8 ranks with a strategy for 4, and
`pipeline`, two stages of 4 ranks with a strategy for 4. `training` holds the strategies of the example when the optimizer trains
all parameters, on one stage and on two.

| | |
|---|---|
| MindSpore | {mindspore} (CPU), numpy {numpy}, safetensors {safetensors}, Python {python} |
| strategies | `python tests/compiled/compiler.py FOLDER`, then `python tests/compiled/record.py FOLDER` |
| checkpoints | `python tests/conformance/corpus/record.py` |
| date | {date} |
| licence | made for this project, under its licence |

Digests are SHA-256; programs read them from `digests.json`.

{tables}"""


def main(folder: Path) -> None:
    """Record everything, with its provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    found = record(folder)
    (folder / "digests.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    tables = "\n".join(
        "\n".join(
            [f"| {title.replace('_', ' ')} | sha256 |", "|---|---|", *(f"| `{n}` | `{d}` |" for n, d in digests.items()), ""]
        )
        for title, digests in found.items()
    )
    text = PROVENANCE.format(
        mindspore=mindspore.__version__,
        numpy=np.__version__,
        safetensors=safetensors.__version__,
        python=sys.version.split()[0],
        date=dt.datetime.now(dt.timezone.utc).date().isoformat(),  # noqa: UP017 - Python 3.9 has no other name for it
        tables=tables,
    )
    (folder / "PROVENANCE.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
