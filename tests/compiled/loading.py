"""Give MindSpore strategy files that Reshard exported from a layout file.

Under MindSpore's Python:

    python loading.py FOLDER EXPORTED...    FOLDER has the compiled strategies and the checkpoints of `decoder`

Each file describes the layout `dst`. MindSpore transforms the checkpoint of `src` by it, as by its own strategy file. The
compiler accepts it as the file to load: it fails if the file is missing, or if a JSON file lacks shapes. The layouts of
parameters follow from the operators of the network, so the file does not change them.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compiler
import mindspore
from compiling import KINDS, SETTINGS

if TYPE_CHECKING:
    import numpy as np


def transformed(folder: Path, strategy: Path, made: Path) -> dict[tuple[str, str], np.ndarray]:
    """Return the tensors of all ranks that MindSpore transforms the checkpoint to."""
    kind, decoder = KINDS["decoder"], folder / "decoder"
    mindspore.transform_checkpoints(
        str(decoder / "src_checkpoints"), str(made), "checkpoint_", str(decoder / "src.ckpt"), str(strategy), output_format=kind
    )
    found = {}
    for path in made.rglob(f"*.{kind}"):
        for name, parameter in mindspore.load_checkpoint(str(path), format=kind).items():
            found[path.parent.name, name] = parameter.asnumpy()
    return found


def network(strategy: Path) -> tuple[Any, list[Any]]:
    """The network, whose compiler loads a strategy file."""
    mindspore.set_auto_parallel_context(strategy_ckpt_config={"load_file": str(strategy)})
    return compiler.network("decoder", SETTINGS["decoder"]["dst"])


def main(folder: Path, exported: list[Path]) -> None:
    """Compare what each file leads to."""
    own = folder / "decoder" / "dst.ckpt"
    with tempfile.TemporaryDirectory() as scratch:
        places = Path(scratch)
        expected = transformed(folder, own, places / "own")
        assert len({rank for rank, _ in expected}) == 16
        for number, strategy in enumerate(exported):
            found = transformed(folder, strategy, places / f"{number}")
            assert found.keys() == expected.keys(), strategy
            for key, array in expected.items():
                assert array.tobytes() == found[key].tobytes(), (strategy, key)
            build, made = partial(network, strategy), places / f"loaded_{number}.ckpt"
            compiler.apart(build, SETTINGS["decoder"]["dst"], 0, made)
            assert made.exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])
