"""Records this corpus with the real MindSpore: `python record.py [FOLDER]`, with the Python of tests/conformance/prepare.sh."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import mindspore
import numpy as np
import safetensors

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "support")]

import oracle  # noqa: E402 - it is there
from corpus import network  # noqa: E402


def digest(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(folder: Path) -> dict[str, dict[str, str]]:
    """Write source and strategies; returns the digests of these files, and of what MindSpore makes of them for 4 ranks."""
    for rank in range(8):
        path = folder / network.SOURCE / f"rank_{rank}" / f"net-{network.EPOCH_AND_STEP}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = network.held_by(rank, 8).items()
        mindspore.save_checkpoint([{"name": n, "data": mindspore.Tensor(a.copy())} for n, a in tensors], str(path))
        path.chmod(0o644)
    for ranks, name in network.STRATEGIES.items():
        oracle.strategy(folder / name, network.LAYOUTS[ranks], 0)
    recorded = sorted([*folder.glob(f"{network.SOURCE}/*/*.ckpt"), *folder.glob("*_strategy*.ckpt")])
    with tempfile.TemporaryDirectory() as made:
        source, before, after = (str(folder / n) for n in (network.SOURCE, network.STRATEGIES[8], network.STRATEGIES[4]))
        mindspore.transform_checkpoints(source, made, "checkpoint_", before, after)
        transformed = {str(path.relative_to(made)): digest(path) for path in sorted(Path(made).glob("*/*.ckpt"))}
    return {"recorded": {str(path.relative_to(folder)): digest(path) for path in recorded}, "transformed_to_4": transformed}


PROVENANCE = """# Provenance

The example of MindSpore's document on checkpoint transformation, as `network.py` tables it: a source on 8 ranks, its strategy,
and the strategies of 4 ranks (optimizer parallel) and of 7. The weights are made up (`network.py`), the files are MindSpore's:
`save_checkpoint` wrote the checkpoints, messages of `mindspore.train.node_strategy_pb2` are the strategies, and of what
`transform_checkpoints(..., "checkpoint_", src_strategy, dst_strategy_4)` made of them the digests are kept.
For 7 ranks there are none: MindSpore refuses to transform 8 ranks to 7.

| | |
|---|---|
| MindSpore | {mindspore} (CPU), numpy {numpy}, safetensors {safetensors}, Python {python} |
| command | `python tests/conformance/corpus/record.py` |
| date | {date} |
| licence | made for this project, under its licence |

Digests are SHA-256, and `digests.json` has them for programs.

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
