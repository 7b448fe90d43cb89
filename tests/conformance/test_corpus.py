"""The document's example: what MindSpore 2.10 made of it, and what we make."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import contents
import numpy as np
import pytest
from corpus import network, small

from reshard import Options, Request, transform_checkpoint

CORPUS = Path(__file__).parent / "corpus"
DIGESTS: dict[str, dict[str, str]] = json.loads((CORPUS / "digests.json").read_text(encoding="utf-8"))


def digests(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def reshard_to(ranks: int, target: Path) -> None:
    transform_checkpoint(
        Request(
            str(CORPUS / network.SOURCE),
            str(target),
            str(CORPUS / network.STRATEGIES[8]),
            str(CORPUS / network.STRATEGIES[ranks]),
            Options(format="Ckpt", verification="Full"),
        )
    )


def defined(rank: int, ranks: int) -> dict[str, Any]:
    found = network.held_by(rank, ranks).items()
    return {
        name: (f"{array.dtype.name.capitalize()}", array.shape, np.ascontiguousarray(array).tobytes()) for name, array in found
    }


def test_the_corpus_is_as_it_was_recorded() -> None:
    assert digests(CORPUS, list(DIGESTS["recorded"])) == DIGESTS["recorded"]
    text = (CORPUS / "PROVENANCE.md").read_text(encoding="utf-8")
    assert all(digest in text for group in DIGESTS.values() for digest in group.values())


def test_mindspore_records_it_so_today(tmp_path: Path) -> None:
    command = [os.environ["RESHARD_MINDSPORE_PYTHON"], str(CORPUS / "record.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env={**os.environ, "GLOG_v": "4"})
    assert json.loads((tmp_path / "digests.json").read_text(encoding="utf-8")) == DIGESTS


@pytest.mark.parametrize("rank", range(8))
def test_its_files_hold_what_the_document_says(rank: int) -> None:
    (path,) = (CORPUS / network.SOURCE / f"rank_{rank}").iterdir()
    assert contents.tensors(path.read_bytes(), "ckpt") == defined(rank, 8)


def test_eight_ranks_become_four_to_the_byte_as_by_mindspore(tmp_path: Path) -> None:
    reshard_to(4, tmp_path)
    expected = DIGESTS["transformed_to_4"]
    assert len(set(expected.values())) == 4
    assert digests(tmp_path, list(expected)) == expected


@pytest.mark.parametrize("ranks", [4, 7])
def test_every_rank_holds_what_the_document_says(ranks: int, tmp_path: Path) -> None:
    reshard_to(ranks, tmp_path)
    for rank in range(ranks):
        assert contents.tensors((tmp_path / f"rank_{rank}" / f"checkpoint_{rank}.ckpt").read_bytes(), "ckpt") == defined(
            rank, ranks
        )


@pytest.mark.parametrize("net", small.NETWORKS, ids=lambda net: net.name)
def test_the_small_networks_become_what_numpy_says(net: small.Network, tmp_path: Path) -> None:
    source, before, after = (str(CORPUS / net.name / part) for part in ("src", "src_strategy", "dst_strategy.ckpt"))
    transform_checkpoint(Request(source, str(tmp_path), before, after, Options(verification="Full")))
    for rank in range(net.target_ranks):
        content = (tmp_path / f"rank_{rank}" / f"checkpoint_{rank}.{net.kind}").read_bytes()
        assert contents.tensors(content, net.kind) == {
            name: (array.dtype.name.capitalize(), array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in net.target(rank).items()
        }
