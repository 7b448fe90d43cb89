"""Conversion of one file: types that MindSpore cannot load again, tensors without elements, and metadata with a tensor's name."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rawfiles

from reshard import Options, RenameRule, Request, transform_checkpoint
from reshard.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.transform.run import Result


def transformed(folder: Path, content: bytes, output: str, kind: str = "ckpt") -> tuple[bytes, Result]:
    """Return the one file that a whole source of one file becomes, and the notes about it."""
    (folder / f"net.{kind}").write_bytes(content)
    options = Options(format="Ckpt" if output == "ckpt" else "Safetensors", verification="Full")
    result = transform_checkpoint(Request(str(folder / f"net.{kind}"), str(folder / "target"), options=options))
    return (folder / "target" / "rank_0" / f"checkpoint_0.{output}").read_bytes(), result


def header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", content[:8])
    found: dict[str, Any] = json.loads(content[8 : 8 + length])
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
    with pytest.raises(
        DataError, match=f"UnknownType: parameter w: safetensors has no equivalent of the type {dtype}; write .ckpt"
    ):
        transformed(tmp_path, content, "safetensors")
    found, result = transformed(tmp_path, content, "ckpt")
    assert found == content
    assert any(f"cannot load these parameters of type {dtype} from a .ckpt file: w" in note for note in result.notes)


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"])
def test_a_type_that_mindspore_lacks_stays_in_safetensors(dtype: str, tmp_path: Path) -> None:
    text = json.dumps({"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(text)) + text + b"abcd"
    found, _ = transformed(tmp_path, content, "safetensors", "safetensors")
    assert (header(found)["w"]["dtype"], found[-4:]) == (dtype, b"abcd")
    with pytest.raises(DataError, match=f"UnknownType: parameter w: a .ckpt file cannot contain the type {dtype},"):
        transformed(tmp_path / "target", content, "ckpt", "safetensors")


def test_a_ckpt_keeps_tensors_without_elements_unless_their_shape_reads_as_a_scalar(tmp_path: Path) -> None:
    kept = rawfiles.message("rows", [0, 4], "Float32", b"") + rawfiles.message("columns", [4, 0], "Int8", b"")
    last = rawfiles.message("w", [1], "Int8", b"a")
    found, result = transformed(tmp_path, kept + rawfiles.message("none", [0], "Float32", b"") + last, "ckpt")
    assert found == kept + last
    assert [note for note in result.notes if "skipped tensors of shape [0]" in note and note.endswith("none")]


def test_a_tensor_of_shape_zero_reaches_safetensors(tmp_path: Path) -> None:
    content = rawfiles.message("none", [0], "Float32", b"") + rawfiles.message("w", [1], "Int8", b"a")
    found, _ = transformed(tmp_path, content, "safetensors")
    assert header(found)["none"] == {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def renamed(folder: Path, metadata: dict[str, str], *rules: RenameRule) -> dict[str, str]:
    """Return the metadata of the file to which embed.weight and norm are renamed."""
    tensors = {"embed.weight": np.ones((2, 2), np.float32), "norm": np.ones(2, np.float32)}
    (folder / "model.safetensors").write_bytes(rawfiles.safetensors(tensors, metadata))
    request = Request(
        str(folder / "model.safetensors"), str(folder / "target"), options=Options(rename=rules, overwrite="Replace")
    )
    transform_checkpoint(request)
    found: dict[str, str] = header((folder / "target" / "rank_0" / "checkpoint_0.safetensors").read_bytes()).get(
        "__metadata__", {}
    )
    return found


def test_an_alias_is_kept_while_its_tensor_is(tmp_path: Path) -> None:
    alias = {"format": "pt", "head.weight": "embed.weight", "author": "x"}
    assert renamed(tmp_path, alias) == alias
    assert renamed(tmp_path, alias, RenameRule("head.weight", name="embed.weight")) == {"format": "pt", "author": "x"}
    assert renamed(tmp_path, alias, RenameRule("other", name="embed.weight")) == {"format": "pt", "author": "x"}
    assert renamed(tmp_path, alias, RenameRule("head.weight", name="norm")) == {"format": "pt", "author": "x"}
    assert renamed(tmp_path, alias, RenameRule(None, name="embed.weight")) == {"format": "pt", "author": "x"}


def test_no_metadata_has_the_name_of_a_tensor(tmp_path: Path) -> None:
    assert renamed(tmp_path, {"format": "pt"}, RenameRule("format", name="norm")) == {}


def test_a_header_out_of_the_order_of_offsets_is_put_in_order(tmp_path: Path) -> None:
    entries = {name: {"dtype": "I8", "shape": [1], "data_offsets": [at, at + 1]} for name, at in (("b", 1), ("a", 0), ("c", 2))}
    text = json.dumps(entries).encode()
    found, _ = transformed(tmp_path, struct.pack("<Q", len(text)) + text + b"xyz", "safetensors", "safetensors")
    tensors = {name: entry["data_offsets"] for name, entry in header(found).items() if name != "__metadata__"}
    assert list(tensors.items()) == [("a", [0, 1]), ("b", [1, 2]), ("c", [2, 3])]
    assert found.endswith(b"xyz")
