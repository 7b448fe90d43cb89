"""Safetensors files that Hugging Face libraries and torch's HuggingFaceStorageReader load: names, metadata, index."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.numpy
from local_folder import LocalFolder, content_of
from output_files import opaque, rendered, shard, write_checkpoint

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import OutputTensor
from reshard.errors import DataError
from reshard.formats.huggingface.write import HUGGING_FACE
from reshard.formats.registry import source_format
from reshard.formats.torch.sharded import SHARDED_OUTPUT

if TYPE_CHECKING:
    from pathlib import Path

    from output_files import Content

W, B = np.arange(24, dtype=np.float32).reshape(4, 6), np.arange(3, dtype=np.int64)


def whole(name: str, array: np.ndarray, dtype: str) -> Content:
    return shard(name, array, (0,) * array.ndim, array.shape, dtype)


def metadata_of(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    found: dict[str, str] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return found


def test_several_files_have_an_index(tmp_path: Path) -> None:
    write_checkpoint(HUGGING_FACE, tmp_path, [[whole("w", W, "Float32"), whole("a", B, "Int64")], [whole("b", B, "Int64")]])
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [first, second, "model.safetensors.index.json"]
    assert (tmp_path / "model.safetensors.index.json").read_text() == json.dumps(
        {
            "metadata": {"total_parameters": 30, "total_size": 144},
            "weight_map": {"a": first, "b": second, "w": first},
        },
        indent=2,
    ) + "\n"
    assert metadata_of(tmp_path / first) == metadata_of(tmp_path / second) == {"format": "pt"}
    assert (safetensors.numpy.load_file(tmp_path / first)["w"] == W).all()


def test_one_file_has_no_index(tmp_path: Path) -> None:
    write_checkpoint(HUGGING_FACE, tmp_path, [[whole("w", W, "Float32")]])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_parameters_are_counted_in_numbers(tmp_path: Path) -> None:
    packed = np.zeros((2, 3), np.uint8)
    ranks = [[whole("w", packed, "float4_e2m1fn_x2")], [whole("b", B, "Int64")]]
    write_checkpoint(HUGGING_FACE, tmp_path, ranks)
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_parameters"] == 12 + 3


def test_metadata_of_the_source_is_not_copied() -> None:
    content = rendered(HUGGING_FACE, [whole("w", W, "Float32")], {"format": "ms", "w": "Int4"})
    assert b'{"format":"pt"}' in content
    assert b"ms" not in content[: content.index(b"}}")]


def test_only_files_of_settings_are_carried_and_only_on_request() -> None:
    names = ["tokenizer.json", "pytorch_model.bin", "config.json", "x.py", "model.safetensors"]
    assert HUGGING_FACE.carried(names, "s", settings=True) == ["config.json", "tokenizer.json"]
    assert not HUGGING_FACE.carried(names, "s", settings=False)
    assert not SHARDED_OUTPUT.carried(names, "s", settings=True)


@pytest.mark.parametrize("output", [HUGGING_FACE, SHARDED_OUTPUT])
def test_what_libraries_cannot_load_is_refused_or_left_out(output: type[HUGGING_FACE]) -> None:
    for dtype in ("Int4", "str", "Complex128", "float6_e2m3fn_x4"):
        with pytest.raises(DataError, match=rf"UnknownType: .*parameter w: .* no equivalent of the type {re.escape(dtype)}"):
            output.can_hold(OutputTensor("w", dtype, (2,), 2 * DTYPES[dtype].itemsize))
    assert not output.can_hold(opaque("optim.lr", b"x")[0])


@pytest.mark.parametrize("dtype", ["float4_e2m1fn_x2", "F8_E8M0"])
def test_types_that_one_reader_does_not_know_are_refused_there_alone(dtype: str) -> None:
    tensor = OutputTensor("w", dtype, (2,), 2)
    assert HUGGING_FACE.can_hold(tensor)
    with pytest.raises(DataError, match=f"UnknownType: .*HuggingFaceStorageReader cannot read the type {dtype}"):
        SHARDED_OUTPUT.can_hold(tensor)


def test_shards_state_their_offsets(tmp_path: Path) -> None:
    scalar = np.array(2.5, np.float32)
    ranks = [
        [shard("w", W, (0, 0), (3, 6), "Float32"), shard("b", B, (0,), (3,), "Int64")],
        [shard("w", W, (3, 0), (1, 6), "Float32"), shard("b", B, (3,), (0,), "Int64"), shard("s", scalar, (), (), "Float32")],
    ]
    write_checkpoint(SHARDED_OUTPUT, tmp_path, ranks)
    first, second = (f"shard-0000{n}-model-00001-of-00001.safetensors" for n in (1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [first, second]
    found = metadata_of(tmp_path / second)
    offsets = {"w": {"saved_offsets": [3, 0]}, "b": {"saved_offsets": [3]}, "s": {"saved_offsets": []}}
    assert json.loads(found.pop("DCP_SHARDING_INFO")) == offsets
    assert found == {"DCP_VERSION": "1.0", "format": "pt"}
    read = source_format("torch-safetensors").read(LocalFolder(tmp_path))
    assert {each.name: content_of(tmp_path, read, each) for each in read.tensors} == {
        "w": W.tobytes(),
        "b": B.tobytes(),
        "s": scalar.tobytes(),
    }
