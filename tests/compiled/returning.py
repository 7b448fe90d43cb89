"""Give MindSpore targets of Reshard, by the strategy file that is next to their folders of ranks.

Under MindSpore's Python:

    python returning.py FOLDER UNIFIED TARGET...    FOLDER has the compiled strategies and the checkpoints of `decoder`

Each target has the content of the checkpoint of `src`, in another layout. MindSpore transforms it back, and loads the slices of
the target's ranks from UNIFIED, which has the same content in whole parameters.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import mindspore
from compiling import KINDS
from mindspore.parallel import transform_safetensors

if TYPE_CHECKING:
    import numpy as np

KIND = KINDS["decoder"]


def tensors(folder: Path, kind: str) -> dict[tuple[str, str], np.ndarray]:
    """Return the tensors of all ranks."""
    found = {}
    for path in folder.glob(f"rank_*/*.{kind}"):
        for name, parameter in mindspore.load_checkpoint(str(path), format=kind).items():
            found[path.parent.name, name] = parameter.asnumpy()
    return found


def check(found: dict[tuple[str, str], np.ndarray], expected: dict[tuple[str, str], np.ndarray], what: str) -> None:
    """Compare tensors bit by bit."""
    assert found.keys() == expected.keys(), what
    assert found, what
    for key, array in expected.items():
        assert (array.shape, array.tobytes()) == (found[key].shape, found[key].tobytes()), (what, key)


def main(folder: Path, unified: Path, targets: list[Path]) -> None:
    """Compare what MindSpore makes of each target."""
    # MindSpore waits while half of the machine's memory is in use by any process.
    transform_safetensors.psutil = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(percent=0))
    source, strategy = folder / "decoder" / "src_checkpoints", folder / "decoder" / "src.ckpt"
    expected = tensors(source, KIND)
    for target in targets:
        written = str(target / "reshard-strategy.ckpt")
        with tempfile.TemporaryDirectory() as scratch:
            back, loaded = Path(scratch, "back"), Path(scratch, "loaded")
            mindspore.transform_checkpoints(str(target), str(back), "checkpoint_", written, str(strategy), output_format=KIND)
            check(tensors(back, KIND), expected, f"back from {target.name}")
            held = tensors(target, KIND)
            for rank in range(len({rank for rank, _ in held})):
                mindspore.load_distributed_checkpoint(
                    None,
                    predict_strategy=written,
                    format="safetensors",
                    unified_safetensors_dir=str(unified),
                    dst_safetensors_dir=str(loaded),
                    rank_id=rank,
                    output_format=KIND,
                )
            check(tensors(loaded, KIND), held, f"slices of {target.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]])
