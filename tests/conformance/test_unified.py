"""Unified safetensors: MindSpore loads ours, we load MindSpore's, and all of it against slices of the whole tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import contents
import numpy as np
import pytest
from deviations import ignores_device_order
from transforms import Case, Tensor, make

from reshard import Options, Request, transform_checkpoint
from reshard.errors import DataError, MissingInputError
from reshard.mindspore import load_distributed_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.spec.request import OutputFormat

CASES = [case for case in map(make, range(100)) if case.source_format == "safetensors" and case.source_named]


@dataclass(frozen=True)
class Unified:
    """A case: its inputs with MindSpore's `unified` and `loaded`; and ours, with what MindSpore has `loaded` from it."""

    case: Case
    theirs: Path
    ours: Path

    def strategy(self, side: str) -> str | None:
        kind = "json" if self.case.json else "ckpt"
        return str(self.theirs / f"{side}_strategy.{kind}") if getattr(self.case, f"{side}_named") else None

    @property
    def refused(self) -> bool:
        """MindSpore cannot unify where gradients are all that the strategy names."""
        return json.loads((self.theirs / "outcome.json").read_text())["error"] is not None

    def load(self, unified: Path, target: Path) -> None:
        load_distributed_checkpoint(
            None,
            predict_strategy=self.strategy("target"),
            format="safetensors",
            unified_safetensors_dir=str(unified),
            dst_safetensors_dir=str(target),
            output_format=self.case.target_format,
        )

    def cut(self, unified: Path, target: Path) -> None:
        """Cut MindSpore's files. A parameter in no part may be a slice, and is accepted."""
        output: OutputFormat = "Ckpt" if self.case.target_format == "ckpt" else "Safetensors"
        options = Options(format=output, file_prefix="net", numbered=False, allow_inconsistent=("*",))
        transform_checkpoint(Request(str(unified), str(target), target_strategy=self.strategy("target"), options=options))

    def differences(self, loaded: Path) -> list[tuple[int, Tensor]]:
        """Return the differences of a target from the expected types, shapes and contents."""
        wrong = []
        for rank in range(self.case.target_ranks):
            kind = self.case.target_format
            found = contents.tensors((loaded / f"rank_{rank}" / f"net.{kind}").read_bytes(), kind)
            expected = self.case.target(rank)
            assert found.keys() <= self.case.types().keys()
            for tensor in self.case.tensors:
                bits = expected.get(tensor.name)
                if bits is not None and tensor.inconsistent:
                    bits = self.case.whole(tensor)  # that of rank 0
                wanted = None if bits is None else (tensor.dtype, bits.shape, bits.tobytes())
                if found.get(tensor.name) != wanted:
                    wrong.append((rank, tensor))
        return wrong


@pytest.fixture(scope="module")
def unified(once: Callable[..., Path], oracle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Unified]:
    folder, mine = once("unify", *(case.number for case in CASES)), tmp_path_factory.mktemp("ours")
    found = [Unified(case, folder / str(case.number), mine / str(case.number)) for case in CASES]
    lines = []
    for each in found:
        options = Options(
            output="Unified",
            max_file_size_bytes=1024,
            allow_inconsistent=each.case.inconsistent,
        )
        transform_checkpoint(Request(each.theirs / "source", each.ours, each.strategy("source"), options=options))
        loaded = str(each.ours / "loaded")
        lines.append([str(each.ours), loaded, each.strategy("target"), each.case.target_ranks, each.case.target_format])
    (mine / "lines").write_text("\n".join(map(json.dumps, lines)))
    assert oracle("distribute", mine / "lines") == [None] * len(lines)
    return found


def test_mindspore_loads_our_unified_files(unified: list[Unified]) -> None:
    assert sum(len(list(each.ours.glob("part*"))) > 1 for each in unified) > 5
    for each in unified:
        assert each.differences(each.ours / "loaded") == [], each.case.name


def test_we_load_our_unified_files(unified: list[Unified], tmp_path: Path) -> None:
    for each in unified:
        each.load(each.ours, tmp_path / each.case.name)
        assert each.differences(tmp_path / each.case.name) == [], each.case.name


def test_the_files_equal_mindspores_except_for_their_number(unified: list[Unified], tmp_path: Path) -> None:
    for each in unified:
        if each.refused:
            continue
        whole = tmp_path / each.case.name
        options = Options(output="Unified", allow_inconsistent=each.case.inconsistent)
        transform_checkpoint(Request(each.theirs / "source", whole, each.strategy("source"), options=options))
        found, expected = (
            json.loads((folder / "param_name_map.json").read_text()) for folder in (whole, each.theirs / "unified")
        )
        gradients = [name for name in found["weight_map"] if name.startswith("accu_grads")]
        for name in gradients:
            del found["weight_map"][name]
        assert found["weight_map"] == expected["weight_map"]
        if not gradients:
            assert found == expected
        part = "part0.safetensors"
        mine, theirs = (contents.header((folder / part).read_bytes()) for folder in (whole, each.theirs / "unified"))
        assert mine["__metadata__"] == theirs["__metadata__"] or any(t.dtype == "Int4" for t in each.case.tensors)


def _lost(tensor: Tensor) -> bool:
    """Return whether MindSpore loses a tensor: it takes gradients and parameters without a layout from rank 0."""
    return tensor.name.startswith("accu_grads") or (tensor.source is None and 0 not in (tensor.source_stages or (0,)))


def _not_required(tensor: Tensor) -> bool:
    """A gradient that rank 0 does not have, so that it is in no file; no loader asks for it."""
    return tensor.name.startswith("accu_grads") and 0 not in (tensor.source_stages or (0,))


def test_mindspore_loads_its_own_files_except_for_known_losses(unified: list[Unified]) -> None:
    seen = set()
    for each in unified:
        if each.refused:
            continue
        for _, tensor in each.differences(each.theirs / "loaded"):
            assert _lost(tensor) or ignores_device_order(tensor.source), each.case.name
            seen.add(tensor.name.startswith("accu_grads"))
    assert seen == {True, False}


def test_we_load_mindspores_files_except_for_its_losses(unified: list[Unified], tmp_path: Path) -> None:
    seen = set()
    for each in unified:
        if each.refused:
            continue
        lost = [tensor for tensor in each.case.tensors if _lost(tensor)]
        if any(tensor.target is not None and not _not_required(tensor) for tensor in lost):
            with pytest.raises((DataError, MissingInputError), match=r"MayBeSlice|ParameterMissing"):
                each.cut(each.theirs / "unified", tmp_path / each.case.name)
            continue
        each.cut(each.theirs / "unified", tmp_path / each.case.name)
        wrong = {tensor for _, tensor in each.differences(tmp_path / each.case.name)}
        assert wrong <= set(lost), each.case.name
        seen.add(bool(wrong))
    assert False in seen


def test_slices_that_mindspore_leaves_next_to_the_parts_are_not_taken_for_whole_tensors(
    once: Callable[..., Path], tmp_path: Path
) -> None:
    folder = once("choose")
    unified = folder / "unified"
    assert contents.header((unified / "hyper_param.safetensors").read_bytes())["refused"]["shape"] == [2, 4]
    with pytest.raises(DataError, match="MayBeSlice: parameter refused"):
        transform_checkpoint(Request(str(unified), str(tmp_path / "cut"), target_strategy=str(folder / "strategy.ckpt")))
    with pytest.raises(DataError, match="MayBeSlice: parameter refused"):
        transform_checkpoint(Request(str(unified), str(tmp_path / "whole")))


def test_a_crc_that_mindspore_copies_into_a_part_is_not_checked(once: Callable[..., Path], tmp_path: Path) -> None:
    folder = once("choose")
    part = folder / "unified" / "part0.safetensors"
    source = folder / "source" / "rank_0" / "net.safetensors"
    crcs = {contents.header(path.read_bytes())["__metadata__"]["crc_num"] for path in (part, source)}
    assert len(crcs) == 1
    request = Request(
        str(folder / "unified"), str(tmp_path / "out"), options=Options(verification="Full", allow_inconsistent=("refused",))
    )
    assert any("the CRC32 in these files was not checked" in note for note in transform_checkpoint(request).notes)
    found = contents.tensors((tmp_path / "out" / "rank_0" / "checkpoint_0.safetensors").read_bytes(), "safetensors")
    assert found["kept"] == ("Float32", (4, 4), np.arange(16, dtype=np.float32).tobytes())
