"""MindSpore's functions for unified safetensors: effects of their arguments, and concurrent use by several processes."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from definition import Cut

from reshard.errors import ReshardError
from reshard.mindspore import load_distributed_checkpoint, unified_safetensors
from reshard.mindspore import unified as module
from reshard.spec.request import Options

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST, HYPER = "reshard-manifest.json", "hyper_param.safetensors"


def model(seed: int = 1) -> models.Model:
    cuts = Cut((4,), ((0,), ())), Cut((2,), ((), (0,)))
    tensors = [models.Tensor(f"layer{i}.w", "Float32", (8, 4), cuts[0], 0, cuts[1], 0) for i in range(6)]
    return models.Model(
        4, 1, 2, 1, (*tensors, models.Tensor("step", "Int32", (), None, 0, None, 0)), seed, remove_redundancy=False
    )


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "made", model(), "safetensors")


def unify(made: disk.Checkpoint, target: Path, **arguments: Any) -> None:
    unified_safetensors(str(made.source), str(made.source_strategy), str(target), **arguments)


def load(made: disk.Checkpoint, source: Path, target: Path, **arguments: Any) -> bool:
    found = {"format": "safetensors", "predict_strategy": str(made.target_strategy)} | arguments
    return load_distributed_checkpoint(None, unified_safetensors_dir=str(source), dst_safetensors_dir=str(target), **found)


def held(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in folder.glob("*.safetensors"):
        found |= {name: array.tobytes() for name, array in rawfiles.read("safetensors", path.read_bytes()).items()}
    return found


def rank_file(target: Path, rank: int, kind: str = "safetensors") -> dict[str, bytes]:
    content = (target / f"rank_{rank}" / f"net.{kind}").read_bytes()
    return {name: array.tobytes() for name, array in rawfiles.read(kind, content).items()}


def expected(made: disk.Checkpoint, rank: int) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in made.model.target(rank).items()}


def listed(target: Path) -> list[int]:
    return [record["rank"] for record in json.loads((target / MANIFEST).read_text())["files"]]


def test_a_choice_excludes_and_renames_parameters_of_a_strategy(made: disk.Checkpoint, tmp_path: Path) -> None:
    asked = []

    def choice(name: str) -> bool | str:
        asked.append(name)
        return {"layer0.w": False, "layer1.w": "model.1"}.get(name, True)

    unify(made, tmp_path / "u", choice_func=choice)
    assert held(tmp_path / "u").keys() == {"model.1", "step", *(f"layer{i}.w" for i in range(2, 6))}
    assert "model.1" in json.loads((tmp_path / "u" / "param_name_map.json").read_text())["weight_map"]
    assert sorted(asked) == [f"layer{i}.w" for i in range(6)]


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (lambda _: "same", "NamesClash"),
        (lambda _: None, "InvalidOption.*neither a name"),
        (lambda _: "", "InvalidOption.*neither a name"),
    ],
)
def test_an_impossible_choice_is_refused(made: disk.Checkpoint, tmp_path: Path, choice: Any, said: str) -> None:
    with pytest.raises(ReshardError, match=said):
        unify(made, tmp_path / "u", choice_func=choice)
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize("suffix", ["1_100", "-1_100", "100", "net-1_100"])
def test_a_suffix_selects_files(made: disk.Checkpoint, tmp_path: Path, suffix: str) -> None:
    for rank in range(4):
        folder = made.source / f"rank_{rank}"
        shutil.copy(folder / "net-1_100.safetensors", folder / "net-11_1000.safetensors")
        (folder / "net-21_100.safetensors" if suffix != "100" else folder / "net-9_9.safetensors").write_text("not this one")
    unify(made, tmp_path / "u", file_suffix=suffix)
    assert held(tmp_path / "u").keys() == {t.name for t in made.model.tensors}


def test_a_suffix_that_matches_several_or_no_files_is_refused(made: disk.Checkpoint, tmp_path: Path) -> None:
    shutil.copy(made.source / "rank_0" / "net-1_100.safetensors", made.source / "rank_0" / "net_1-1_100.safetensors")
    with pytest.raises(ReshardError, match="AmbiguousFiles"):
        unify(made, tmp_path / "u", file_suffix="1_100")
    unify(made, tmp_path / "u", file_suffix="net-1_100")
    with pytest.raises(ReshardError, match="SourceRankMissing"):
        unify(made, tmp_path / "u", file_suffix="[0-9]")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one kibibyte: seven of them, and that of the parameter in no strategy."""
    monkeypatch.setattr(module, "Options", lambda **options: Options(max_file_size_bytes=1024, **options))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("machines", [1, 2, 3, 9])
def test_machines_share_the_parts_and_the_last_one_completes(tmp_path: Path, machines: int) -> None:
    bigger = models.Model(4, 1, 2, 1, tuple(_wide(t) for t in model().tensors), 1, remove_redundancy=False)
    made, target = disk.write(tmp_path / "made", bigger, "safetensors"), tmp_path / "u"
    for number in reversed(range(1, machines + 1)):
        assert not (target / MANIFEST).exists()
        unify(made, target, split_dst_file=(number, machines))
    assert listed(target) == list(range(7))
    assert held(target) == {tensor.name: bigger.whole(tensor).tobytes() for tensor in bigger.tensors}
    unify(made, target, split_dst_file=(machines, machines))
    assert listed(target) == list(range(7))


def _wide(tensor: models.Tensor) -> models.Tensor:
    return models.Tensor(tensor.name, tensor.dtype, tensor.shape and (32, 8), tensor.source, 0, tensor.target, 0)


@pytest.mark.usefixtures("small_parts")
def test_machines_at_the_same_time_complete_it_too(tmp_path: Path) -> None:
    bigger = models.Model(4, 1, 2, 1, tuple(_wide(t) for t in model().tensors), 1, remove_redundancy=False)
    made, target = disk.write(tmp_path / "made", bigger, "safetensors"), tmp_path / "u"
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: unify(made, target, split_dst_file=(number, 3)), (1, 2, 3)))
    assert listed(target) == list(range(7))


@pytest.mark.parametrize("split", [(0, 2), (3, 2)])
def test_an_invalid_machine_number_is_refused(made: disk.Checkpoint, tmp_path: Path, split: tuple[int, int]) -> None:
    with pytest.raises(ReshardError, match=f"machine {split[0]} is out of range; the number of machines is 2"):
        unify(made, tmp_path / "u", split_dst_file=split)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_all_ranks_are_loaded(made: disk.Checkpoint, tmp_path: Path, kind: str) -> None:
    unify(made, tmp_path / "u")
    assert load(made, tmp_path / "u", tmp_path / "t", output_format=kind)
    for rank in range(2):
        assert rank_file(tmp_path / "t", rank, kind) == expected(made, rank)


def test_one_rank_is_loaded_and_then_another(made: disk.Checkpoint, tmp_path: Path) -> None:
    unify(made, tmp_path / "u")
    for rank in (1, 0):
        load(made, tmp_path / "u", tmp_path / "t", rank_id=rank)
        assert rank_file(tmp_path / "t", rank) == expected(made, rank)
        assert listed(tmp_path / "t") == list(range(rank, 2))


def test_ranks_of_another_checkpoint_wait_for_all(made: disk.Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "t"
    for seed in (1, 2):
        other = disk.write(tmp_path / f"made{seed}", model(seed), "safetensors")
        unify(other, tmp_path / f"u{seed}")
        load(other, tmp_path / f"u{seed}", target, rank_id=0)
        if seed == 2:
            assert rank_file(target, 0) == expected(made, 0)
        load(other, tmp_path / f"u{seed}", target, rank_id=1)
        assert [rank_file(target, rank) for rank in range(2)] == [expected(other, rank) for rank in range(2)]


def test_without_a_strategy_all_files_are_merged_into_one(made: disk.Checkpoint, tmp_path: Path) -> None:
    unify(made, tmp_path / "u")
    load(made, tmp_path / "u", tmp_path / "t", predict_strategy=None)
    assert rank_file(tmp_path / "t", 0) == {tensor.name: made.model.whole(tensor).tobytes() for tensor in made.model.tensors}


def test_names_are_those_of_the_network(made: disk.Checkpoint, tmp_path: Path) -> None:
    unify(made, tmp_path / "u", choice_func=lambda name: f"saved.{name}")
    names = {tensor.name: f"saved.{tensor.name}" for tensor in made.model.tensors if tensor.source}
    load(made, tmp_path / "u", tmp_path / "t", name_map=names)
    assert rank_file(tmp_path / "t", 1) == expected(made, 1)
    with pytest.raises(ReshardError, match=r"ParameterMissing.*layer0.w"):
        load(made, tmp_path / "u", tmp_path / "other")


@pytest.mark.parametrize("rank", [None, 1])
def test_rank_files_in_any_folders_are_loaded(made: disk.Checkpoint, tmp_path: Path, rank: int | None) -> None:
    files = []
    for number in range(4):
        files.append(str(tmp_path / f"of-{number}.safetensors"))
        shutil.copy(made.source / f"rank_{number}" / "net-1_100.safetensors", files[-1])
    arguments: dict[str, Any] = {"rank_id": rank, "dst_safetensors_dir": str(tmp_path / "t"), "output_format": "ckpt"}
    strategies = str(made.target_strategy), str(made.source_strategy)
    assert load_distributed_checkpoint(None, files, *strategies, **arguments)
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == (["rank_0", "rank_1"] if rank is None else ["rank_1"])
    assert rank_file(tmp_path / "t", 1, "ckpt") == expected(made, 1)
    with pytest.raises(ReshardError, match=r"SourceRankMissing.*rank 3"):
        load_distributed_checkpoint(None, files[:3], *strategies, **arguments)


def test_rank_files_in_another_order_than_their_ranks_are_refused(made: disk.Checkpoint, tmp_path: Path) -> None:
    files = [str(made.source / f"rank_{number}" / "net-1_100.safetensors") for number in (0, 2, 1, 3)]
    with pytest.raises(ReshardError, match=r"SourceRanksMismatch: .*rank_2/net-1_100.safetensors would be read as .* rank 1"):
        load_distributed_checkpoint(
            None, files, str(made.target_strategy), str(made.source_strategy), dst_safetensors_dir=str(tmp_path / "t")
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"return_param_dict": True}, "PackageMissing.*MindSpore"),
        ({"dec_key": b"0" * 17}, "InvalidKey.*17 bytes"),
        ({"format": "zip"}, "InvalidFormat.*format"),
        ({"output_format": "zip"}, "InvalidFormat.*output_format"),
        ({"dst_safetensors_dir": None}, "InvalidOption.*dst_safetensors_dir"),
        ({"unified_safetensors_dir": None}, "InvalidOption.*exactly one of"),
        ({"checkpoint_filenames": ["a"]}, "InvalidOption.*exactly one of"),
        ({"rank_id": 2}, "NoSuchRank"),
        ({"name_map": {"a": "nowhere"}}, "RenamedMissing.*nowhere"),
        ({"predict_strategy": {"a": 1}}, "InvalidType.*is not a path"),
    ],
)
def test_invalid_load_arguments_are_refused(made: disk.Checkpoint, tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    unify(made, tmp_path / "u")
    given = {
        "network": None,
        "predict_strategy": str(made.target_strategy),
        "format": "safetensors",
        "unified_safetensors_dir": str(tmp_path / "u"),
        "dst_safetensors_dir": str(tmp_path / "t"),
    }
    with pytest.raises(ReshardError, match=said):
        load_distributed_checkpoint(**given | arguments)
    assert not (tmp_path / "t").exists()
