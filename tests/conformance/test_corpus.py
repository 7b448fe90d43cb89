"""The document's example: what MindSpore 2.10 made of it, and what we make."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import contents
import pytest
from corpus import network
from corpus_contract import CORPUS, DIGESTS, CorpusContract, defined, digests
from places import Folder, Sides

if TYPE_CHECKING:
    from pathlib import Path


class TestInFolders(CorpusContract):
    @pytest.fixture
    def sides(self, tmp_path: Path) -> Sides:
        return Sides(Folder(tmp_path), Folder(tmp_path))


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
    assert contents.tensors(path.read_bytes(), "ckpt") == defined(network.held_by(rank, 8))
