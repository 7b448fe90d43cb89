"""Every source layout to every target layout, against numpy slices of the whole tensor."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryReader
from memory_tasks import task, written

from reshard import Request, transform_checkpoint
from reshard.checkpoint.manifest import Manifest, decode
from reshard.engine.gather import SourceFiles
from reshard.engine.verify import check_file
from reshard.errors import RequestError

PIPELINE = Path(__file__).parents[1] / "conformance" / "corpus" / "pipeline"
FORMATS = ["ckpt", "safetensors"]


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
@examples(500)
@given(model=models.models(), data=st.data())
def test_every_rank_gets_exactly_its_slices(source: str, target: str, model: models.Model, data: st.DataObject) -> None:
    model = model.repeated(data.draw(st.sampled_from([1, 1, 1, 12])))  # few tensors are read one by one
    made, store = task(model, source, target)
    ranks = data.draw(st.lists(st.integers(0, model.target_ranks - 1), min_size=1, max_size=6, unique=True))
    for rank in ranks:
        expected = model.target(rank)
        if target == "ckpt" and not expected:
            with pytest.raises(RequestError, match="NothingToWrite"):
                written(made, rank)
            continue
        content = written(made, rank)
        found = rawfiles.read(target, content)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].shape == array.shape
            assert found[name].dtype == array.dtype
            assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()
        reader = MemoryReader(f"rank_{rank}/y.{target}", content)
        files = SourceFiles(store, made.model.inventory)
        for level in ("Sample", "Full"):
            described = made.output.entries(reader, made.tensors(rank))
            check_file(reader, made.planner.plan(rank), made.model, files, level, described)


def test_gradient_buffers_of_a_target_pipeline_are_not_required(tmp_path: Path) -> None:
    source, strategy = PIPELINE / "src", str(PIPELINE / "src_strategy")
    transform_checkpoint(Request(str(source), str(tmp_path), strategy, strategy))
    missing = decode((tmp_path / "reshard-manifest.json").read_bytes(), Manifest, "manifest").target_only
    assert sorted(missing) == sorted(f"accu_grads.layers.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias"))
    for rank in range(8):
        paths = tmp_path / f"rank_{rank}" / f"checkpoint_{rank}.ckpt", source / f"rank_{rank}" / "net-1_100.ckpt"
        made, before = (rawfiles.read("ckpt", path.read_bytes()) for path in paths)
        assert {name: array.tobytes() for name, array in made.items()} == {name: a.tobytes() for name, a in before.items()}
