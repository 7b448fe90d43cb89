"""Parameters of MindSpore's hyper_param.safetensors may be rank 0's slices, however often they are copied."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rawfiles

import reshard
from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.errors import ReshardError
from reshard.layout import Layout
from reshard.mindspore import load_distributed_checkpoint
from reshard.spec.request import Options, Request
from reshard.spec.rules import RenameRule
from reshard.strategy import StrategyFile, dump
from reshard.transform.run import Result, transform_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

MAP, INDEX, HYPER = "param_name_map.json", "model.safetensors.index.json", "hyper_param.safetensors"
SINGLE = "model.safetensors"
CUT, WHOLE = Layout((2,), ((0,), ())), Layout((2,), ((), ()))
ROWS = np.arange(16, dtype=np.float32).reshape(4, 4)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Files that MindSpore 2.10 unifies with a choice_func that refuses b.w: with rank 0's slice of it, and rank 0's CRC."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    hyper = {"b.w": ROWS[:2], "step": np.array(5, np.int32)}
    (folder / "part0.safetensors").write_bytes(rawfiles.safetensors({"a.w": ROWS}, {"format": "ms", "crc_num": "12345"}))
    (folder / HYPER).write_bytes(rawfiles.safetensors(hyper, {"format": "ms"}))
    (folder / MAP).write_text(json.dumps({"weight_map": {"a.w": "part0.safetensors"}}))
    return folder


def naming(path: Path, *names: str, layout: Layout = CUT) -> Path:
    path.write_bytes(dump(StrategyFile("x", {0: dict.fromkeys(names, layout)}), "protobuf"))
    return path


def transform(source: Path, target: Path, strategy: Path | None = None, **options: Any) -> Result:
    before = options.pop("source_strategy", None)
    return transform_checkpoint(Request(source, target, before, strategy, options=Options(**options)), workers=2)


def marks(target: Path) -> list[str]:
    found: list[str] = json.loads((target / MANIFEST_NAME).read_bytes())["mayBeSlices"]
    return found


@pytest.mark.parametrize("layout", [CUT, WHOLE], ids=["cut", "whole"])
def test_parameters_with_a_layout_never_come_from_slices_that_mindspore_leaves(
    theirs: Path, layout: Layout, tmp_path: Path
) -> None:
    strategy = naming(tmp_path / "target.ckpt", "a.w", "b.w", layout=layout)
    with pytest.raises(ReshardError, match=r"MayBeSlice: parameter b.w: .*hyper_param.safetensors") as error:
        transform(theirs, tmp_path / "out", strategy)
    assert error.value.exit_code == 65
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [None, "a.w"], ids=["no strategy", "a strategy of others"])
@pytest.mark.parametrize("output", ["PerRank", "Unified", "Index"])
def test_possible_slices_are_refused_unless_accepted_by_name(
    theirs: Path, output: str, named: str | None, tmp_path: Path
) -> None:
    strategy = None if named is None or output == "Unified" else naming(tmp_path / "target.ckpt", named)
    for patterns in ((), ("a.*", "step")):
        with pytest.raises(ReshardError, match=r"MayBeSlice: parameter b.w: .*hyper_param.*--allow-inconsistent b.w") as error:
            transform(theirs, tmp_path / "out", strategy, output=output, allow_inconsistent=patterns)
        assert error.value.exit_code == 65
        assert not (tmp_path / "out").exists()
    result = transform(theirs, tmp_path / "out", strategy, output=output, allow_inconsistent=("b.*",), verification="Full")
    assert any("these parameters of MindSpore's hyper_param.safetensors" in note and "b.w" in note for note in result.notes)
    assert not any("pattern b.*" in note for note in result.notes)
    assert any("the CRC32 in these files was not checked" in note and "part0.safetensors" in note for note in result.notes)
    assert marks(tmp_path / "out") == ["b.w"]


def test_scalars_are_not_slices(theirs: Path, tmp_path: Path) -> None:
    scalars = {"step": np.array(5, np.int32), "scale": np.ones((1,), np.float32), "rate": np.ones((1, 1), np.float32)}
    (theirs / HYPER).write_bytes(rawfiles.safetensors(scalars, {"format": "ms"}))
    assert transform(theirs, tmp_path / "out").complete
    assert marks(tmp_path / "out") == []


@pytest.mark.parametrize("layout", [CUT.device_matrix, (1,)], ids=["two ranks", "one rank"])
def test_a_target_strategy_never_shards_one_element_of_a_possible_slice(
    theirs: Path, layout: tuple[int, ...], tmp_path: Path
) -> None:
    """The parameter may have as many elements as there were ranks."""
    (theirs / HYPER).write_bytes(rawfiles.safetensors({"bias": np.ones((1,), np.float32)}, {"format": "ms"}))
    strategy = naming(tmp_path / "target.ckpt", "bias", layout=Layout(layout, ((),)))
    with pytest.raises(ReshardError, match=r"MayBeSlice: parameter bias: .*hyper_param.safetensors"):
        transform(theirs, tmp_path / "out", strategy)


def test_a_target_strategy_may_name_a_scalar_of_a_hyper_file(theirs: Path, tmp_path: Path) -> None:
    (theirs / HYPER).write_bytes(rawfiles.safetensors({"step": np.array(5, np.int32)}, {"format": "ms"}))
    strategy = naming(tmp_path / "target.ckpt", "step", layout=Layout((2,), ()))
    assert transform(theirs, tmp_path / "out", strategy).complete


def test_a_load_refuses_possible_slices_too(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(ReshardError, match=r"MayBeSlice: parameter b\.w"):
        reshard.load(str(theirs))
    assert reshard.load(str(theirs), allow_inconsistent=("b.w",)).keys() == {"a.w", "b.w", "step"}
    with pytest.raises(ValueError, match=r"MayBeSlice: parameter b\.w"):
        load_distributed_checkpoint(
            None, format="safetensors", unified_safetensors_dir=str(theirs), dst_safetensors_dir=str(tmp_path / "out")
        )


def test_each_file_that_is_converted_by_itself_keeps_its_slice(theirs: Path, tmp_path: Path) -> None:
    transform(theirs / HYPER, tmp_path / "out", output="Same", format="Ckpt")
    assert marks(tmp_path / "out") == ["b.w"]


@pytest.mark.parametrize("name", ["b.w", "c.w"])
@pytest.mark.parametrize("form", ["unified", "hugging face", "one rank", "two ranks", "converted", "twice"])
def test_copies_of_possible_slices_stay_marked(theirs: Path, form: str, name: str, tmp_path: Path) -> None:
    out, options = tmp_path / "copy", {"rename": (RenameRule(to=name, name="b.w"),), "allow_inconsistent": ("b.w",)}
    only_a = naming(tmp_path / "only_a.ckpt", "a.w")
    if form == "unified":
        transform(theirs, out, output="Unified", **options)
    elif form == "hugging face":
        transform(theirs, out, output="Unified", format="HuggingFace", **options)
    elif form == "two ranks":
        transform(theirs, out, only_a, **options)
    elif form == "one rank":
        transform(theirs, out, **options)
    elif form == "converted":
        transform(theirs, tmp_path / "one", **options)
        transform(tmp_path / "one", out, output="Same", format="Ckpt")
    else:
        transform(theirs, tmp_path / "ranks", only_a, **options)
        transform(tmp_path / "ranks", tmp_path / "u", output="Unified", source_strategy=only_a)
        transform(tmp_path / "u", out)
    assert marks(out) == [name]
    before = only_a if form == "two ranks" else None
    with pytest.raises(ReshardError, match=f"MayBeSlice: parameter {name}"):
        transform(out, tmp_path / "out", naming(tmp_path / "t.ckpt", "a.w", name), source_strategy=before)
    result = transform(out, tmp_path / "out", only_a, source_strategy=before)
    assert any(name in note for note in result.notes)


@pytest.mark.parametrize("chosen", [MAP, SINGLE, HYPER])
def test_selected_files_stay_marked(theirs: Path, chosen: str, tmp_path: Path) -> None:
    output = "HuggingFace" if chosen == SINGLE else "Safetensors"
    transform(theirs, tmp_path / "u", output="Unified", format=output, max_file_size_bytes=1024, allow_inconsistent=("b.w",))
    names = ["b.w"] if chosen == HYPER else ["a.w", "b.w"]
    with pytest.raises(ReshardError, match=r"MayBeSlice: parameter b.w"):
        transform(tmp_path / "u" / chosen, tmp_path / "out", naming(tmp_path / "t.ckpt", *names))


@pytest.mark.parametrize("way", ["file", "folder", "pattern"])
def test_a_single_selected_file_of_a_rank_stays_marked(theirs: Path, tmp_path: Path, way: str) -> None:
    transform(theirs, tmp_path / "one", allow_inconsistent=("b.w",))
    (file,) = (tmp_path / "one").glob("rank_0/*")
    source, options = {
        "file": (file, {}),
        "folder": (file.parent, {}),
        "pattern": (tmp_path / "one", {"files": "*.safetensors"}),
    }[way]
    with pytest.raises(ReshardError, match=r"MayBeSlice: parameter b.w"):
        transform(source, tmp_path / "out", naming(tmp_path / "t.ckpt", "a.w", "b.w"), **options)
    file.chmod(0o600)
    file.write_bytes(rawfiles.safetensors({"a.w": ROWS, "b.w": ROWS}, {"format": "ms"}))  # training has continued
    assert transform(source, tmp_path / "out", naming(tmp_path / "t.ckpt", "a.w", "b.w"), **options).complete


@pytest.mark.parametrize("way", ["file", "index"])
def test_slices_that_mindspore_leaves_are_recognized_without_its_map(theirs: Path, way: str, tmp_path: Path) -> None:
    (theirs / MAP).unlink()
    (theirs / INDEX).write_text(json.dumps({"weight_map": {"a.w": "part0.safetensors", "b.w": HYPER, "step": HYPER}}))
    source, names = (theirs / HYPER, ["b.w"]) if way == "file" else (theirs, ["a.w", "b.w", "step"])
    strategy = tmp_path / "t.ckpt"
    layouts = {name: CUT if name != "step" else Layout((2,), ()) for name in names}
    strategy.write_bytes(dump(StrategyFile("x", {0: layouts}), "protobuf"))
    with pytest.raises(ReshardError, match=r"MayBeSlice: parameter b.w"):
        transform(source, tmp_path / "out", strategy)
    with pytest.raises(ReshardError, match=r"MayBeSlice: parameter b.w"):
        transform(source, tmp_path / "out")
    result = transform(source, tmp_path / "out", allow_inconsistent=("b.w",))
    assert any("b.w" in note for note in result.notes)
    assert marks(tmp_path / "out") == ["b.w"]


@pytest.mark.parametrize("chosen", ["", HYPER, MAP])
def test_whole_parameters_in_a_hyper_file_of_reshard_are_whole(chosen: str, tmp_path: Path) -> None:
    (tmp_path / "made" / "rank_0").mkdir(parents=True)
    (tmp_path / "made" / "rank_0" / "x.safetensors").write_bytes(rawfiles.safetensors({"a.w": ROWS, "b.w": ROWS}, {}))
    whole = naming(tmp_path / "s.ckpt", "a.w", layout=Layout((1,), ((), ())))
    transform(tmp_path / "made", tmp_path / "u", output="Unified", source_strategy=whole)
    names = ["b.w"] if chosen == HYPER else ["a.w", "b.w"]
    assert (tmp_path / "u" / HYPER).exists()
    result = transform(tmp_path / "u" / chosen, tmp_path / "out", naming(tmp_path / "t.ckpt", *names))
    assert result.complete
    assert marks(tmp_path / "out") == []
    hyper = tmp_path / "u" / HYPER
    hyper.chmod(0o600)
    hyper.write_bytes(rawfiles.safetensors({"b.w": ROWS[:2]}, {}))  # as MindSpore would write over it
    with pytest.raises(ReshardError, match="MayBeSlice" if chosen else "SourceChanged"):
        transform(tmp_path / "u" / chosen, tmp_path / "again", naming(tmp_path / "t.ckpt", *names))


@pytest.mark.parametrize(("chosen", "output"), [("", "Safetensors"), (MAP, "Safetensors"), ("", "HuggingFace")])
def test_a_part_of_a_unified_checkpoint_is_refused_as_a_checkpoint(chosen: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "made" / "rank_0").mkdir(parents=True)
    tensors = {name: np.arange(300, dtype=np.float32) for name in ("a", "b")}
    (tmp_path / "made" / "rank_0" / "x.safetensors").write_bytes(rawfiles.safetensors(tensors, {}))
    whole = naming(tmp_path / "s.ckpt", "a", "b", layout=Layout((1,), ((),)))
    options = {"output": "Unified", "format": output, "max_file_size_bytes": 1024, "only_ranks": "0"}
    assert transform(tmp_path / "made", tmp_path / "u", source_strategy=whole, **options).complete
    with pytest.raises(ReshardError, match="FileMissing"):
        transform(tmp_path / "u" / chosen, tmp_path / "out")
