"""Types that MindSpore writes into a `.ckpt` and cannot load again, and tensors without elements, from file to file."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest
import rawfiles

from reshard import Options, Request, transform_checkpoint
from reshard.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.transform.run import Result


def transformed(folder: Path, content: bytes, output: str, kind: str = "ckpt") -> tuple[bytes, Result]:
    """The one file that a whole source of one file becomes, and what was said of it."""
    (folder / f"net.{kind}").write_bytes(content)
    options = Options(format="Ckpt" if output == "ckpt" else "Safetensors", verification="Full")
    result = transform_checkpoint(Request(str(folder / f"net.{kind}"), str(folder / "target"), options=options))
    return (folder / "target" / "rank_0" / f"checkpoint_0.{output}").read_bytes(), result


def header(content: bytes) -> dict[str, dict[str, object]]:
    (length,) = struct.unpack("<Q", content[:8])
    found: dict[str, dict[str, object]] = json.loads(content[8 : 8 + length])
    return found


@pytest.mark.parametrize(
    ("dtype", "safetensors", "size"), [("Float8E4M3FN", "F8_E4M3", 1), ("Float8E5M2", "F8_E5M2", 1), ("Complex64", "C64", 8)]
)
def test_a_checkpoint_that_mindspore_cannot_load_is_rescued(dtype: str, safetensors: str, size: int, tmp_path: Path) -> None:
    data = bytes(range(6 * size))
    found, result = transformed(tmp_path, rawfiles.message("w", [2, 3], dtype, data), "safetensors")
    assert header(found)["w"] == {"dtype": safetensors, "shape": [2, 3], "data_offsets": [0, 6 * size]}
    assert found.endswith(data)
    assert not [note for note in result.notes if "MindSpore" in note]


@pytest.mark.parametrize(("dtype", "size"), [("HiFloat8", 1), ("Complex128", 16)])
def test_a_type_that_safetensors_lacks_is_refused_by_name(dtype: str, size: int, tmp_path: Path) -> None:
    content = rawfiles.message("w", [2], dtype, bytes(range(2 * size)))
    with pytest.raises(DataError, match=f"UnknownType: parameter w: safetensors has no type for MindSpore's {dtype}; write rank"):
        transformed(tmp_path, content, "safetensors")
    found, result = transformed(tmp_path, content, "ckpt")
    assert found == content
    assert any(f"a .ckpt with the type {dtype}, which 1 parameters have: w" in note for note in result.notes)


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"])
def test_a_type_that_mindspore_lacks_stays_in_safetensors(dtype: str, tmp_path: Path) -> None:
    text = json.dumps({"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(text)) + text + b"abcd"
    found, _ = transformed(tmp_path, content, "safetensors", "safetensors")
    assert (header(found)["w"]["dtype"], found[-4:]) == (dtype, b"abcd")
    with pytest.raises(DataError, match=f"UnknownType: parameter w: MindSpore has no type for {dtype} of safetensors"):
        transformed(tmp_path / "target", content, "ckpt", "safetensors")


def test_a_ckpt_keeps_tensors_without_elements_unless_their_shape_reads_as_a_scalar(tmp_path: Path) -> None:
    kept = rawfiles.message("rows", [0, 4], "Float32", b"") + rawfiles.message("columns", [4, 0], "Int8", b"")
    last = rawfiles.message("w", [1], "Int8", b"a")
    found, result = transformed(tmp_path, kept + rawfiles.message("none", [0], "Float32", b"") + last, "ckpt")
    assert found == kept + last
    assert [note for note in result.notes if "1 tensors of shape [0] are left out" in note and note.endswith("none")]


def test_a_tensor_of_shape_zero_reaches_safetensors(tmp_path: Path) -> None:
    content = rawfiles.message("none", [0], "Float32", b"") + rawfiles.message("w", [1], "Int8", b"a")
    found, _ = transformed(tmp_path, content, "safetensors")
    assert header(found)["none"] == {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
