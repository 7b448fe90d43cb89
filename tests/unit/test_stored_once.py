"""Formats that store each slice once: their documents state where, and they are created from the manifest, after the files."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import example, given
from hypothesis import strategies as st

import reshard
from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.errors import DataError
from reshard.spec.request import Options, Request
from reshard.spec.rules import CastRule
from reshard.transform.run import transform_checkpoint

FORMATS = ("TorchDcp", "TorchSafetensors")
TYPES = (np.float32, np.float16, np.float64, np.int32)
# Replicas, replicas of uneven chunks, and chunks only.
LAYOUTS = (
    {"target_strategy": {"apiVersion": "reshard.dev/layout-v1", "mesh": "dp=3", "rules": [{"match": "*"}]}},
    {
        "target_strategy": {
            "apiVersion": "reshard.dev/layout-v1",
            "mesh": "replicate=2,shard=2",
            "uneven": True,
            "rules": [{"match": "[vm]*", "shard": {"0": "shard"}}, {"match": "*"}],
        }
    },
    {},
)
SHAPES = {"s": (), "v": (5,), "m": (4, 6)}


def write(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(rawfiles.safetensors(tensors))


@examples(100)
@given(
    kinds=st.lists(st.tuples(st.sampled_from("svm"), st.sampled_from(TYPES)), min_size=2, max_size=8),
    target_format=st.sampled_from(FORMATS),
    layout=st.sampled_from(LAYOUTS),
    cast=st.booleans(),
)
# The balance by the types of the source would be another one.
@example(kinds=[("m", np.float16), ("m", np.float32)], target_format="TorchDcp", layout=LAYOUTS[0], cast=True)
def test_documents_lead_to_the_written_slices(kinds: list[tuple[str, Any]], target_format: Any, layout: Any, cast: bool) -> None:
    tensors = {
        f"{kind}{i}": (np.arange(np.prod(SHAPES[kind], dtype=int)) + 100 * i).astype(dtype).reshape(SHAPES[kind])
        for i, (kind, dtype) in enumerate(kinds)
    }
    rules = (CastRule("*", "Float16"),) if cast else ()
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        write(source, tensors)
        options = Options(format=target_format, cast=rules, target_ranks=None if layout else 2)
        request = Request(str(source), str(target), **layout, options=options)
        transform_checkpoint(request, workers=1)
        found = reshard.load(str(target))
    assert found.keys() == tensors.keys()
    for name, content in tensors.items():
        expected = content.astype(np.float16) if cast and content.dtype.kind == "f" else content
        assert np.array_equal(found[name], expected), name


def test_files_with_other_tensors_than_the_manifest_describes_are_refused(tmp_path: Path) -> None:
    """Otherwise, the documents would state wrong places if another version of Reshard distributed the slices differently."""
    write(tmp_path / "source", {"a": np.ones(4, np.float32), "b": np.zeros(4, np.float32)})
    target = tmp_path / "target"
    transform_checkpoint(Request(str(tmp_path / "source"), str(target), **LAYOUTS[0], options=Options(format="TorchDcp")))
    manifest = json.loads((target / MANIFEST_NAME).read_text())
    digests = [file["tensors"] for file in manifest["files"]]
    assert len(set(digests)) == 3
    manifest["files"][0]["tensors"], manifest["files"][1]["tensors"] = digests[1::-1]
    (target / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"DocumentInvalid: .* does not describe the tensors of __0_0.distcp"):
        reshard.verify_checkpoint(str(target))


def test_copies_that_may_differ_come_from_the_first_rank(tmp_path: Path) -> None:
    """Ranks store different parameters, so the copies of each would otherwise be mixed."""
    source = tmp_path / "source"
    for rank in range(4):
        folder = source / f"rank_{rank}"
        folder.mkdir(parents=True)
        values = {"w": np.ones(64, np.float32), "rng.high": np.array(100 + rank), "rng.low": np.array(200 + rank)}
        (folder / "model.safetensors").write_bytes(rawfiles.safetensors(values))
    layout: Any = {"apiVersion": "reshard.dev/layout-v1", "mesh": "dp=4", "rules": [{"match": "w"}]}
    options = Options(format="TorchDcp", allow_inconsistent=("rng.*",))
    result = transform_checkpoint(
        Request(str(source), str(tmp_path / "target"), source_strategy=layout, target_strategy=layout, options=options)
    )
    assert any("the copy of the first rank is used: rng.high, rng.low" in note for note in result.notes)
    found = reshard.load(str(tmp_path / "target"))
    assert (found["rng.high"].item(), found["rng.low"].item()) == (100, 200)
