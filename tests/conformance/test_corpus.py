"""The document's example: what MindSpore 2.10 made of it, and what we make."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import contents
import pytest
from corpus import network, small
from corpus_contract import CORPUS, DIGESTS, CorpusContract, defined, digests
from definition import Cut
from places import Folder, Sides

from reshard.strategy import parse

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.layout import Layout


class TestInFolders(CorpusContract):
    @pytest.fixture
    def sides(self, tmp_path: Path) -> Sides:
        return Sides(Folder(tmp_path), Folder(tmp_path))


def cut_of(layout: Layout) -> Cut:
    return Cut(layout.device_matrix, layout.tensor_map, layout.shard_step, layout.shard_size)


def test_the_corpus_is_as_it_was_recorded() -> None:
    assert digests(CORPUS, list(DIGESTS["recorded"])) == DIGESTS["recorded"]
    text = (CORPUS / "PROVENANCE.md").read_text(encoding="utf-8")
    assert all(digest in text for group in DIGESTS.values() for digest in group.values())


@pytest.mark.parametrize("ranks", network.LAYOUTS)
def test_the_corpus_strategies_match_the_table(ranks: int) -> None:
    ((_, layouts),) = parse((CORPUS / network.STRATEGIES[ranks]).read_bytes(), "").stages.items()
    assert {name: cut_of(layout) for name, layout in layouts.items()} == network.LAYOUTS[ranks]


@pytest.mark.parametrize("net", small.NETWORKS, ids=lambda net: net.name)
def test_strategies_of_the_small_networks_match_the_table(net: small.Network) -> None:
    files = [CORPUS / net.name / "dst_strategy.ckpt", *sorted((CORPUS / net.name / "src_strategy").iterdir())]
    target, *stages = ({n: cut_of(layout) for n, layout in parse(f.read_bytes(), "").parameters.items()} for f in files)
    assert target == {name: tensor.target for name, tensor in net.tensors.items()}
    for stage, found in enumerate(stages):
        held = {name: cut for name, cut in found.items() if not name.startswith("accu_grads.")}
        assert held == {name: tensor.source for name, tensor in net.tensors.items() if tensor.stage == stage}


def test_mindspore_still_records_the_same_corpus(tmp_path: Path) -> None:
    command = [os.environ["RESHARD_MINDSPORE_PYTHON"], str(CORPUS / "record.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env={**os.environ, "GLOG_v": "4"})
    assert json.loads((tmp_path / "digests.json").read_text(encoding="utf-8")) == DIGESTS


@pytest.mark.parametrize("rank", range(8))
def test_the_corpus_files_hold_the_documented_slices(rank: int) -> None:
    (path,) = (CORPUS / network.SOURCE / f"rank_{rank}").iterdir()
    assert contents.tensors(path.read_bytes(), "ckpt") == defined(network.held_by(rank, 8))
