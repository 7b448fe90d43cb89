"""Contract for the recorded files, wherever they are stored. A class of tests joins with a fixture `sides`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import contents
import numpy as np
import pytest
from corpus import network, small

from reshard import Options, Request, transform_checkpoint

if TYPE_CHECKING:
    from places import Sides

CORPUS = Path(__file__).parent / "corpus"
DIGESTS: dict[str, dict[str, str]] = json.loads((CORPUS / "digests.json").read_text(encoding="utf-8"))


def digests(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def defined(tensors: dict[str, np.ndarray]) -> dict[str, contents.Found]:
    return {name: (a.dtype.name.capitalize(), a.shape, np.ascontiguousarray(a).tobytes()) for name, a in tensors.items()}


def resharded(sides: Sides, names: tuple[str, str, str], options: Options) -> Path:
    """A folder with what becomes, on these sides, of the corpus' source, source strategy and target strategy of these names."""
    corpus, target = sides.source.put(CORPUS), sides.target.new()
    source, before, after = (f"{corpus}/{name}" for name in names)
    transform_checkpoint(Request(source, target, before, after, options))
    return sides.target.get(target)


def example_on(ranks: int, sides: Sides) -> Path:
    names = (network.SOURCE, network.STRATEGIES[8], network.STRATEGIES[ranks])
    return resharded(sides, names, Options(format="Ckpt", verification="Full"))


class CorpusContract:
    def test_eight_ranks_become_four_with_the_bytes_of_mindspore(self, sides: Sides) -> None:
        found = example_on(4, sides)
        expected = DIGESTS["transformed_to_4"]
        assert len(set(expected.values())) == 4
        assert digests(found, list(expected)) == expected

    @pytest.mark.parametrize("ranks", [4, 2, 7])
    def test_every_rank_holds_the_documented_slices(self, ranks: int, sides: Sides) -> None:
        found = example_on(ranks, sides)
        for rank in range(ranks):
            content = (found / f"rank_{rank}" / f"checkpoint_{rank}.ckpt").read_bytes()
            assert contents.tensors(content, "ckpt") == defined(network.held_by(rank, ranks))

    @pytest.mark.parametrize("net", small.NETWORKS, ids=lambda net: net.name)
    def test_the_small_networks_are_sliced_as_by_numpy(self, net: small.Network, sides: Sides) -> None:
        names = (f"{net.name}/src", f"{net.name}/src_strategy", f"{net.name}/dst_strategy.ckpt")
        found = resharded(sides, names, Options(verification="Full"))
        for rank in range(net.target_ranks):
            content = (found / f"rank_{rank}" / f"checkpoint_{rank}.{net.kind}").read_bytes()
            assert contents.tensors(content, net.kind) == defined(net.target(rank))
