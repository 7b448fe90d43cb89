"""Fuzz indexes of parameters: MindSpore's `param_name_map.json`, and those of Hugging Face libraries."""

from __future__ import annotations

import json

from inputs import json_in

from reshard.checkpoint.unified import HF_INDEX_NAME, MAP_NAME, files_of, read_map

FILES = ["part0.safetensors", "part1.safetensors", "hyper_param.safetensors"]
MAP = {"a": FILES[0], "b": FILES[1]}
SEEDS = [json.dumps(MAP).encode(), json.dumps({"metadata": {"total_size": 1}, "weight_map": MAP}).encode()]


def read(content: bytes) -> None:
    found = read_map(content, "fuzz")
    assert all("/" not in name and name.endswith(".safetensors") for name in found.values())
    text = json_in(content)
    assert found in (text, text.get("weight_map")), "another reader finds something else"
    for name in (MAP_NAME, HF_INDEX_NAME):
        files_of(found, [*found.values()][:2], name, "fuzz")
