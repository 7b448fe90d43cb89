"""Checkpoints that several versions of PyTorch, and transformers, wrote: each tensor has the recorded contents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from local_folder import LocalFolder, content_of
from torch_files import DATA, sha256_of

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.safetensors import read_header
from reshard.errors import DataError
from reshard.formats.registry import detect, source_format

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = {"huggingface": "torch-safetensors"}  # the others: torch-dcp
FOLDERS = sorted(path for path in DATA.glob("[0-9]*/*") if path.name not in {"dtensors", "transformers"})


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: str(path.relative_to(DATA)))
def test_each_tensor_equals_the_one_that_was_saved(path: Path) -> None:
    folder, form = LocalFolder(path), source_format(FORMATS.get(path.name, "torch-dcp"))
    assert detect(folder.names) == form
    found = form.read(folder)
    held = {
        each.name: {
            "dtype": DTYPES[each.dtype].torch,
            "shape": list(each.shape),
            "sha256": sha256_of(content_of(path, found, each)),
        }
        for each in found.tensors
    }
    recorded = json.loads((path / "expected.json").read_text())
    assert held == recorded


def test_versions_and_ways_to_save_are_recorded() -> None:
    assert {path.parent.name for path in FOLDERS} == {"2.4.1", "2.6.0", "2.9.1", "2.12.1", "2.14.1", "2.15.0"}
    assert any(len(list(path.glob("__0_*.distcp"))) > 1 for path in FOLDERS)
    assert any(path.name.endswith("0.metadata") for folder in FOLDERS for path in folder.iterdir())


@pytest.mark.parametrize("path", sorted(DATA.glob("*/dtensors/*.pt")), ids=lambda path: str(path.relative_to(DATA)))
def test_a_file_of_one_rank_with_dtensors_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match=r"PickleNotAllowed: .*torch\.distributed\.[a-z_.]+\.DTensor") as caught:
        source_format("torch-save").read(LocalFolder(path.parent, [path.name]))
    assert caught.value.fix.startswith("save the state dict with torch.distributed.checkpoint, or save local tensors")


def test_the_files_of_transformers_hold_each_tensor_once() -> None:
    (path,) = DATA.glob("*/transformers")
    folder = LocalFolder(path)
    held = {}
    for name in folder.names:
        if name.endswith(".safetensors"):
            with folder.open(name) as reader:
                header = read_header(reader)
                assert header.structure.metadata == {"format": "pt"}
                for each in header.structure.tensors:
                    (extent,) = each.extents
                    held[each.name] = (DTYPES[each.dtype].torch, list(each.shape), sha256_of(reader.read(*extent)), name)
    recorded = json.loads((path / "expected.json").read_text())
    assert {name: each[:3] for name, each in held.items()} == {
        name: (each["dtype"], each["shape"], each["sha256"]) for name, each in recorded.items()
    }
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: each[3] for name, each in held.items()}
