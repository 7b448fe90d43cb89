"""Fuzz `metadata.json` of MindFormers, next to a file that it describes."""

from __future__ import annotations

import json
import struct

from fuzzing import Folder, run

from reshard.formats.registry import source_format

FORMAT = source_format("mindformers")
NAME = "model-0000000-0000001.safetensors"
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1, 3], "data_offsets": [0, 12]}}).encode()
FILE = struct.pack("<Q", len(HEADER)) + HEADER + bytes(12)
CHUNK = {"global_offset": [0, 0], "local_shape": [1, 3]}
TENSOR = {"properties": {"dtype": "Float32"}, "global_shape": [1, 3], "chunk": [CHUNK]}
DOCUMENT = {"state_dict_metadata": {"w": TENSOR}, "storage_data": {"('w', (0, 0))": [{"file_name": NAME}]}}


def read(content: bytes) -> None:
    FORMAT.read(Folder({"metadata.json": content, NAME: FILE}))


if __name__ == "__main__":
    run(read, [json.dumps(DOCUMENT, indent=indent).encode() for indent in (None, 4)])
