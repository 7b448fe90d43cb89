"""Small language models with the parameter names of MindFormers, torchtitan and Hugging Face."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import rawfiles
from output_files import shard, write_checkpoint

from reshard.formats.torch.write import DCP

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COLUMNS = ("huggingface", "mindformers-llama", "torchtitan-qwen3", "torchtitan-0.2-qwen3")
_TABLE = """
model.embed_tokens.weight         model.tok_embeddings.embedding_weight  tok_embeddings.weight
#self_attn.q_proj.weight          #attention.wq.weight                   #attention.qkv_linear.wq.weight
#self_attn.k_proj.weight          #attention.wk.weight                   #attention.qkv_linear.wk.weight
#self_attn.v_proj.weight          #attention.wv.weight                   #attention.qkv_linear.wv.weight
#self_attn.q_proj.bias            #attention.wq.bias                     -
#self_attn.k_proj.bias            #attention.wk.bias                     -
#self_attn.v_proj.bias            #attention.wv.bias                     -
#self_attn.o_proj.weight          #attention.wo.weight                   #attention.wo.weight
#self_attn.q_norm.weight          -                                      #attention.q_norm.weight
#self_attn.k_norm.weight          -                                      #attention.k_norm.weight
#mlp.gate_proj.weight             #feed_forward.w1.weight                #feed_forward.w1.weight
#mlp.up_proj.weight               #feed_forward.w3.weight                #feed_forward.w3.weight
#mlp.down_proj.weight             #feed_forward.w2.weight                #feed_forward.w2.weight
#input_layernorm.weight           #attention_norm.weight                 #attention_norm.weight
#post_attention_layernorm.weight  #ffn_norm.weight                       #ffn_norm.weight
model.norm.weight                 model.norm_out.weight                  norm.weight
lm_head.weight                    lm_head.weight                         lm_head.weight
"""


def _row(line: str) -> tuple[str, str, str, str]:
    """Return the names of one parameter in COLUMNS, with # for the number of the layer, or `-` if the model has none."""
    huggingface, mindformers, torchtitan = line.split()
    older = torchtitan.replace("qkv_linear.", "").replace("lm_head.", "output.")
    return (
        huggingface.replace("#", "model.layers.#."),
        mindformers.replace("#", "model.layers.#."),
        torchtitan.replace("#", "layers.#."),
        older.replace("#", "layers.#."),
    )


LAYERS = 12  # two digits


def names(source: str, target: str, layers: int = LAYERS) -> dict[str, str]:
    """Return the target's name of each parameter that both sides have, by the name in the source."""
    one, other = COLUMNS.index(source), COLUMNS.index(target)
    found = {}
    for row in map(_row, _TABLE.strip().splitlines()):
        if "-" not in (row[one], row[other]):
            for layer in range(layers if "#" in row[one] else 1):
                found[row[one].replace("#", str(layer))] = row[other].replace("#", str(layer))
    return found


def tensors(wanted: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return a different array for each name: a vector for norms and biases, and else a matrix of 8 x 4."""
    found = {}
    for number, name in enumerate(wanted):
        shape = (8,) if "norm" in name or name.endswith("bias") else (8, 4)
        found[name] = np.random.default_rng(number).standard_normal(shape, np.float32)
    return found


def write_dcp(folder: Path, arrays: Mapping[str, np.ndarray], ranks: int = 4) -> None:
    """Write a distributed checkpoint whose tensors are divided along dimension 0, next to optimizer state."""
    folder.mkdir(parents=True)
    everything = {**arrays, **{f"optimizer.state.{name}.exp_avg": array + 1 for name, array in arrays.items()}}
    contents = []
    for rank in range(ranks):
        rows = 8 // ranks
        contents.append(
            [
                shard(name, array, (rank * rows, *(0,) * (array.ndim - 1)), (rows, *array.shape[1:]), "Float32")
                for name, array in everything.items()
            ]
        )
    write_checkpoint(DCP, folder, contents)


def write_mindspore(folder: Path, strategy: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write `.ckpt` files of two ranks, which divide matrices along dimension 0, next to optimizer state, and their strategy."""
    everything = {**arrays, **{f"adam_m.{name}": array + 1 for name, array in arrays.items()}}
    layouts = {
        name: {
            "dev_matrix": [2],
            "tensor_map": [0, -1] if array.ndim == 2 else [-1],
            "param_split_shape": [],
            "indices_offset": [],
            "field": 0,
            "opt_weight_shard_step": 0,
            "opt_weight_shard_size": 0,
        }
        for name, array in everything.items()
    }
    strategy.write_text(json.dumps({"current_stage": 0, "parallel_strategy_item": {}, "parallel_layout_item": layouts}))
    for rank in range(2):
        path = folder / f"rank_{rank}" / "net-1_100.ckpt"
        path.parent.mkdir(parents=True)
        part = {name: a[rank * 4 : rank * 4 + 4] if a.ndim == 2 else a for name, a in everything.items()}
        path.write_bytes(rawfiles.ckpt(part))
