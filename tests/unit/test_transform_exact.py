"""Every source layout to every target layout, against numpy slices of the whole tensor."""

from __future__ import annotations

import models
import numpy as np
import pytest
import rawfiles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_jobs import job, written
from memory_store import MemoryReader

from reshard.engine.gather import SourceFiles
from reshard.engine.verify import check_file
from reshard.errors import RequestError

FORMATS = st.sampled_from(["ckpt", "safetensors"])


@settings(max_examples=3000, suppress_health_check=list(HealthCheck))
@given(models.models(), FORMATS, FORMATS, st.data())
def test_every_rank_gets_exactly_its_slices(model: models.Model, source: str, target: str, data: st.DataObject) -> None:
    made, store = job(model, source, target)
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
            check_file(reader, made.planner.plan(rank), made.model, files, level)
