"""Write a small LLaMA of MindFormers as a training of 8 ranks saves it: data parallelism of 2, tensor parallelism of 4.

    python llama.py FOLDER      FOLDER/llama_8, FOLDER/llama_8_strategy.ckpt

The elements are random numbers. Optimizer parallelism is on, except for the embedding and the norms, as in MindFormers.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

import reshard

WIDTH, HIDDEN, KEYS, VOCABULARY, LAYERS = 128, 384, 64, 512, 4
LAYOUT = {
    "apiVersion": "reshard.dev/layout-v1",
    "mesh": "dp=2,tp=4",
    "state": ["adam_m.", "adam_v."],
    "zero": {"threshold": 65536},
    "rules": [
        {"match": ["*.wq.*", "*.wk.*", "*.wv.*", "*.w1.*", "*.w3.*", "lm_head.weight"], "shard": {0: "tp"}},
        {"match": ["*.wo.*", "*.w2.*"], "shard": {1: "tp"}},
        {"match": ["*norm*", "model.tok_embeddings.*"], "zero": False},
    ],
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter."""
    layer = {
        **dict.fromkeys(("attention_norm", "ffn_norm"), (WIDTH,)),
        **dict.fromkeys(("attention.wq", "attention.wo"), (WIDTH, WIDTH)),
        **dict.fromkeys(("attention.wk", "attention.wv"), (KEYS, WIDTH)),
        **dict.fromkeys(("feed_forward.w1", "feed_forward.w3"), (HIDDEN, WIDTH)),
        "feed_forward.w2": (WIDTH, HIDDEN),
    }
    return {
        "model.tok_embeddings.embedding_weight": (VOCABULARY, WIDTH),
        **{f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()},
        "model.norm_out.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }


def write_whole(path: Path) -> None:
    """Write whole parameters, their optimizer states, and the number of steps, as safetensors."""
    random = np.random.default_rng(8)
    arrays = {
        state + name: random.standard_normal(shape, np.float32)
        for name, shape in shapes().items()
        for state in ("", "adam_m.", "adam_v.")
    }
    arrays["global_step"] = np.array([100], np.int32)
    header, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        dtype = {"f": "F32", "i": "I32"}[array.dtype.kind]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))


def main(folder: Path) -> None:
    """Write the checkpoint and its strategy file."""
    whole, target = folder / "llama.safetensors", folder / "llama_8"
    write_whole(whole)
    options = reshard.Options(write_strategy=True)
    reshard.transform_checkpoint(reshard.Request(str(whole), str(target), target_strategy=LAYOUT, options=options))
    shutil.move(target / "reshard-strategy.ckpt", folder / "llama_8_strategy.ckpt")
    (target / "reshard-manifest.json").unlink()  # a training writes none
    shutil.rmtree(target / ".reshard")
    whole.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
