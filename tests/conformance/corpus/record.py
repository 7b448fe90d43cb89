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

import saving  # noqa: E402 - it is there
from corpus import network, small  # noqa: E402 - as above


def digest(path: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A checkpoint file, by MindSpore, that others may read too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [{"name": name, "data": mindspore.Tensor(array.copy())} for name, array in tensors.items()]
    mindspore.save_checkpoint(found, str(path), format=path.suffix[1:])
    path.chmod(0o644)


def record_small(folder: Path, net: small.Network) -> list[Path]:
    """Write one of the small networks: its source and the strategies of both sides."""
    for rank in range(net.stages * net.devices):
        save(folder / "src" / f"rank_{rank}" / f"net-{small.EPOCH_AND_STEP}.{net.kind}", net.source(rank))
    (folder / "src_strategy").mkdir(exist_ok=True)
    for stage in range(net.stages):
        layouts = {name: tensor.source for name, tensor in net.tensors.items() if tensor.stage == stage}
        saving.strategy(folder / "src_strategy" / f"stage_{stage}.ckpt", layouts, stage)
    saving.strategy(folder / "dst_strategy.ckpt", {name: tensor.target for name, tensor in net.tensors.items()}, 0)
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def record(folder: Path) -> dict[str, dict[str, str]]:
    """Write sources and strategies; returns the digests of these files, and of what MindSpore makes of them for 4 ranks."""
    for rank in range(8):
        save(folder / network.SOURCE / f"rank_{rank}" / f"net-{network.EPOCH_AND_STEP}.ckpt", network.held_by(rank, 8))
    for ranks, name in network.STRATEGIES.items():
        saving.strategy(folder / name, network.LAYOUTS[ranks], 0)
    recorded = sorted([*folder.glob(f"{network.SOURCE}/*/*.ckpt"), *folder.glob("*_strategy*.ckpt")])
    for net in small.NETWORKS:
        recorded += record_small(folder / net.name, net)
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

Beside it two small networks (`small.py`): `six`, safetensors on 8 ranks with a strategy of 6, and `pipeline`, two stages of 4
ranks with a strategy of 4. Their files and strategies are MindSpore's in the same way.

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
