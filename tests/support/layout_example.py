"""A small model of whole parameters on disk, and a layout file for it: four layers in two stages, with states and a scalar."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

LAYOUT = """
apiVersion: reshard.dev/layout-v1
mesh: pp=2,dp=2,tp=2
state: [adam_m.]
zero: {threshold: 128}
pipeline: {layer: layers.*., layers: 4}
rules:
- {match: layers.*.wo, shard: {1: tp}}
- {match: layers.*, shard: {0: tp}}
- {match: embedding, stage: first, zero: false}
- {match: norm, stage: last}
"""
SHAPES = {
    "embedding": (16, 8),
    **{f"layers.{i}.wq": (8, 8) for i in range(4)},
    **{f"layers.{i}.wo": (8, 8) for i in range(4)},
    "adam_m.layers.0.wq": (8, 8),
    "norm": (4,),
    "step": (),
}


def write(folder: Path) -> dict[str, np.ndarray]:
    """Write `model.safetensors` and `layout.yaml`, and return the parameters."""
    rng = np.random.default_rng(7)
    arrays = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "layout.yaml").write_text(LAYOUT)
    return arrays
