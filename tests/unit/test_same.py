"""Files that are converted one by one: to another format, or to other names."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemorySource
from memory_tasks import written
from rawfiles import same

import reshard.mindspore
from reshard.checkpoint.manifest import Manifest, decode
from reshard.cli import main
from reshard.engine.task import task_of
from reshard.errors import DataError, MissingInputError, RequestError, UsageError
from reshard.plan import Planner, passthrough_model
from reshard.plan.summary import summarize
from reshard.source.files import Files
from reshard.source.reading import read_inventory
from reshard.spec.request import Options, Request
from reshard.spec.rules import RenameRule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from reshard.engine.task import Task

KINDS = ("ckpt", "safetensors")
RENAME = (RenameRule("new.*", pattern="layer.*"), RenameRule("c", name="a"))


def task(files: dict[int, bytes], source: str, target: str, **options: Any) -> Task:
    store = MemorySource({f"rank_{rank}/x-1_2.{source}": content for rank, content in files.items()})
    inventory = read_inventory(store, Files({rank: f"rank_{rank}/x-1_2.{source}" for rank in files}), workers=1)
    chosen = Options(format="Ckpt" if target == "ckpt" else "Safetensors", output="Same", **options)
    model = passthrough_model(inventory, ranks=chosen.only_ranks, rename=chosen.rename)
    return task_of(Request("memory", "nowhere", options=chosen), store, model, (None, None))


@examples(300)
@given(models.models(16), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_every_rank_keeps_its_parameters(model: models.Model, source: str, target: str) -> None:
    held = model.source()
    files = {rank: rawfiles.write(source, tensors) for rank, tensors in enumerate(held)}
    made = task(files, source, target)
    for rank in files:
        assert same(rawfiles.read(target, written(made, rank)), held[rank])
        assert made.path(rank) == f"rank_{rank}/x-1_2.{target}"


def test_one_name_may_be_another_tensor_on_another_rank() -> None:
    held = [{"a": np.zeros(n, np.int8), "layer.0": np.full((n, 2), n, np.float32)} for n in (1, 2, 3)]
    made = task(dict(enumerate(map(rawfiles.ckpt, held))), "ckpt", "safetensors", rename=RENAME)
    for rank, tensors in enumerate(held):
        assert same(rawfiles.read("safetensors", written(made, rank)), {"c": tensors["a"], "new.0": tensors["layer.0"]})
    assert made.file_sizes(range(3)) == {rank: len(written(made, rank)) for rank in range(3)}


def test_a_ckpt_keeps_its_order_and_a_safetensors_file_its_metadata() -> None:
    tensors = {name: np.zeros(2, kind) for name, kind in (("z", np.int8), ("a", np.float32), ("m", np.int8))}
    content = rawfiles.ckpt(tensors)
    assert written(task({0: content}, "ckpt", "ckpt"), 0) == content
    marked = [rawfiles.safetensors(tensors, {"format": "ms", "remove_redundancy": value}) for value in ("True", "False")]
    made = task(dict(enumerate(marked)), "safetensors", "safetensors")
    for rank, value in enumerate(("True", "False")):
        found = written(made, rank)
        (length,) = struct.unpack("<Q", found[:8])
        assert json.loads(found[8 : 8 + length])["__metadata__"] == {"format": "ms", "remove_redundancy": value}


def test_ranks_that_share_a_structure_share_their_plan() -> None:
    content = rawfiles.ckpt({f"p{i}": np.zeros(2, np.int8) for i in range(50)})
    planner: Planner = task(dict.fromkeys(range(4096), content), "ckpt", "safetensors").planner
    assert len(planner.model.parameters) == 50
    assert planner.parameters(7) is planner.parameters(4095)
    summary = summarize(planner.model, planner, range(4096))
    assert summary.sources == {rank: (rank,) for rank in range(4096)}
    assert (summary.bytes_needed, summary.replicated_bytes, summary.copies) == (4096 * 100, 0, 4096 * 50)


def test_missing_ranks() -> None:
    content = rawfiles.ckpt({"a": np.zeros(2, np.int8)})
    assert task({5: content, 8: content}, "ckpt", "ckpt", only_ranks="5,8").scope == (5, 8)
    for ranks, absent in ((None, 0), ("5-8", 6)):
        with pytest.raises(MissingInputError, match=f"no checkpoint of rank {absent};"):
            task({5: content, 8: content}, "ckpt", "ckpt", only_ranks=ranks)
    with pytest.raises(MissingInputError, match="no checkpoint of rank 0"):
        task({999_999_999: content}, "ckpt", "ckpt")


@pytest.mark.parametrize("side", ["source_strategy", "target_strategy"])
def test_strategies_are_refused(side: str) -> None:
    with pytest.raises(UsageError, match="accepts no strategy"):
        Request("a", "b", **{side: "c"}, options=Options(output="Same"))


def test_parts_of_a_whole_are_not_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "part0.safetensors").write_bytes(rawfiles.safetensors({"a": np.zeros(2, np.int8)}))
    (tmp_path / "param_name_map.json").write_text('{"a": "part0.safetensors"}')
    assert main(["convert", str(tmp_path), str(tmp_path.parent / "to"), "--format", "ckpt"]) == RequestError.exit_code
    assert "SourceIsUnified" in capsys.readouterr().err


@pytest.fixture
def tree(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "made", disk.example())


def document(folder: Path) -> Manifest:
    return decode((folder / "reshard-manifest.json").read_bytes(), Manifest, "x")


def test_a_tree_is_converted_and_converted_back(tree: disk.Checkpoint, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert main(["convert", str(tree.source), str(there), "--format", "safetensors", "--rename-pattern", "*=x.*"]) == 0
    assert {p.name for p in document(there).parameters.records} == {"x.w", "x.m", "x.b", "x.step"}
    assert {p.source_name for p in document(there).parameters.records} == {"w", "m", "b", "step"}
    assert main(["convert", str(there), str(back), "--format", "ckpt", "--rename-pattern", "x.*=*"]) == 0
    for rank, tensors in enumerate(tree.model.source()):
        assert same(rawfiles.read_ckpt((back / f"rank_{rank}" / "net-1_100.ckpt").read_bytes()), tensors)
    assert main(["verify", str(there)]) == 0


@pytest.mark.parametrize("crc", [[], ["--crc"]])
def test_a_rank_that_holds_nothing_is_named_and_stays_so(
    tree: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], crc: list[str]
) -> None:
    (tree.source / "rank_2" / "net-1_100.ckpt").write_bytes(b"")
    held = tree.model.source()
    held[2] = {}
    there, back = tmp_path / "there", tmp_path / "back"
    for source, target, kind, more in ((tree.source, there, "safetensors", []), (there, back, "ckpt", crc)):
        assert main(["convert", str(source), str(target), "--format", kind, "--verification", "full", *more]) == 0
        named = f"restore them: rank_2/net-1_100.{'ckpt' if kind == 'safetensors' else 'safetensors'}"
        assert [line.endswith(named) for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")] == [True]
        assert main(["verify", str(target)]) == 0
        for rank, tensors in enumerate(held):
            assert same(rawfiles.read(kind, (target / f"rank_{rank}" / f"net-1_100.{kind}").read_bytes()), tensors)
    assert (back / "rank_2" / "net-1_100.ckpt").read_bytes() == (rawfiles.ckpt({}, crc=True) if crc else b"")


@pytest.mark.parametrize("source", ["src", "src/rank_0/net-1_100.ckpt"])
def test_files_without_parameters_are_not_converted(
    tree: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], source: str
) -> None:
    for path in tree.source.rglob("*.ckpt"):
        path.write_bytes(b"")
    line = refused(65, "Empty", "convert", str(tree.folder / source), str(tmp_path / "to"), "--format", "safetensors")
    assert ("net-1_100.ckpt: the file contains no" if source != "src" else "source: the files contain no") in line
    assert not (tmp_path / "to").exists()


def test_mindspores_functions_refuse_a_file_that_holds_nothing(tree: disk.Checkpoint, tmp_path: Path) -> None:
    """No file could record such a rank here; MindSpore's own function fails too."""
    (tree.source / "rank_2" / "net-1_100.ckpt").write_bytes(b"")
    with pytest.raises(DataError, match=r"Empty: .*rank_2/net-1_100.ckpt: the file contains no parameters"):
        reshard.mindspore.ckpt_to_safetensors(str(tree.source), str(tmp_path / "to"))


def test_one_file_becomes_one_file(tree: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tree.source / "rank_2" / "net-1_100.ckpt", tmp_path / "target"
    arguments = ["convert", str(source), str(target), "--format", "safetensors", "--rename", "w=v"]
    assert main(arguments) == 0
    expected = {"v" if name == "w" else name: array for name, array in tree.model.source()[2].items()}
    assert same(rawfiles.read_safetensors((target / "net-1_100.safetensors").read_bytes()), expected)
    assert {entry.name for entry in target.iterdir()} == {"net-1_100.safetensors", "reshard-manifest.json", ".reshard"}
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments[:-1], "w=u"]) == RequestError.exit_code  # its names are in the task's digest
    assert main([*arguments[:-1], "w=u", "--overwrite"]) == 0
    assert document(target).files[0].path == "net-1_100.safetensors"


def test_an_undescribed_file_is_not_replaced(tree: disk.Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "net-1_100.safetensors").write_bytes(b"mine")
    source = str(tree.source / "rank_0" / "net-1_100.ckpt")
    assert main(["convert", source, str(target), "--format", "safetensors", "--overwrite"]) == RequestError.exit_code
    assert (target / "net-1_100.safetensors").read_bytes() == b"mine"


def test_rank_by_rank_and_committed(tree: disk.Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "target"
    common = ["--output", "same", "--format", "safetensors", "--source", str(tree.source), "--target", str(target)]
    assert main(["plan", "--write", *common]) == 0
    for ranks in ("0-1", "2,3"):
        assert main(["transform", "--no-commit", "--only-ranks", ranks, *common]) == 0
    assert main(["commit", str(target)]) == 0
    assert document(target).ranks == "0-3"


def test_each_strategy_has_the_names_of_its_side(tree: disk.Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "target"
    strategy = tree.folder / "renamed.json"
    layouts = {
        f"new.{tensor.name}": {
            "dev_matrix": tensor.target.matrix,
            "tensor_map": [axes[0] if axes else -1 for axes in tensor.target.maps],
            "param_split_shape": [],
            "indices_offset": [],
            "field": 0,
            "opt_weight_shard_step": tensor.target.step,
            "opt_weight_shard_size": tensor.target.size,
        }
        for tensor in tree.model.tensors
        if tensor.target is not None
    }
    strategy.write_text(json.dumps({"current_stage": 0, "parallel_strategy_item": {}, "parallel_layout_item": layouts}))
    arguments = tree.arguments(target, "--rename-pattern", "*=new.*", "--rename", "step=global_step", "--verification", "full")
    arguments[arguments.index(str(tree.target_strategy))] = str(strategy)
    assert main(arguments) == 0
    for rank in range(tree.model.target_ranks):
        expected = {"global_step" if n == "step" else f"new.{n}": a for n, a in tree.model.target(rank).items()}
        assert same(rawfiles.read_ckpt((target / f"rank_{rank}" / f"checkpoint_{rank}.ckpt").read_bytes()), expected)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--rename", "w"], 2, "InvalidRename"),
        (["--rename", "=w"], 2, "InvalidRename"),
        (["--rename", "w=m"], 78, "NamesClash"),
        (["--rename", "nobody=m"], 66, "RenamedMissing"),
        (["--rename-pattern", "*=x"], 2, "InvalidRename"),
        (["--rename-file", "rules.yaml", "--rename", "w=z"], 2, "InvalidOption"),
        (["--rename-file", "names.yaml"], 2, "InvalidRename"),
        (["--rename-file", "object.yaml"], 2, "InvalidRename"),
        (["--rename-file", "omitted.yaml"], 2, "InvalidRename"),
        (["--rename-file", "two.yaml"], 2, "InvalidRename"),
        (["--rename-file", "stars.yaml"], 2, "InvalidRename"),
        (["--rename-file", "text.yaml"], 2, "NotYaml"),
        (["--rename-file", "nothing.yaml"], 66, "NotFound"),
    ],
)
def test_an_invalid_renaming_is_reported_in_one_line(
    options: list[str],
    code: int,
    reason: str,
    tree: disk.Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "rules": "- {from: w, to: v}",
        "names": "[w]",
        "object": "{w: v}",
        "omitted": "- {from: w, to: null}",
        "two": "- {from: w, to: v}\n---\n- {from: m, to: n}",
        "stars": "- {pattern: '*', to: v}",
        "text": "[",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert main(["convert", str(tree.source), "target", "--format", "ckpt", *options]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("reshard: ")]
    assert reason in line
    assert not (tmp_path / "target").exists()


def test_mindspores_functions_write_next_to_or_below_the_source(tree: disk.Checkpoint, tmp_path: Path) -> None:
    odd = tree.source / "rank5"  # all folders whose names begin so, and all files in them
    odd.mkdir()
    for name in ("a.ckpt", "b.ckpt", "c.txt"):
        (odd / name).write_bytes((tree.source / "rank_0" / "net-1_100.ckpt").read_bytes())
    reshard.mindspore.ckpt_to_safetensors(str(tree.source), str(tmp_path / "to"), {"w": "v", "nobody": "x"}, processes_num=2)
    reshard.mindspore.safetensors_to_ckpt(str(tmp_path / "to"), None, {"v": "w"}, r"^b")
    written_files = {str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*.*")}
    ranks = {f"rank_{rank}/net-1_100.safetensors" for rank in range(4)}
    assert written_files == ranks | {"rank5/a.safetensors", "rank5/b.safetensors", "rank5/b.ckpt"}
    found = rawfiles.read_ckpt((tmp_path / "to" / "rank5" / "b.ckpt").read_bytes())
    assert same(found, tree.model.source()[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "SourceMissing"),
        (("src/rank_0/net-1_100.safetensors",), "SourceMissing"),
        (("src/rank_0/net-1_100.ckpt", "to.d"), "InvalidPath"),
        (("src/rank_0/net-1_100.ckpt", "to", None, "other"), "SourceMissing"),
        (("src/rank_0",), "SourceMissing"),
        (("src", "to", None, "other"), "SourceMissing"),
        (("src", "to", {"w": "m"}), "NamesClash"),
        (("src", "to", {"w": 1}), "InvalidRename"),
        (("src", "to", None, None, 0), "InvalidOption"),
    ],
)
def test_mindspores_functions_refuse_invalid_arguments(
    arguments: tuple[Any, ...], said: str, tree: disk.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.folder)
    with pytest.raises(Exception, match=said):
        reshard.mindspore.ckpt_to_safetensors(*arguments)
    assert not list(tree.folder.rglob("*.safetensors"))


def test_the_map_of_unified_files_has_the_new_names(tmp_path: Path) -> None:
    (tmp_path / "one.ckpt").write_bytes(rawfiles.ckpt({"a": np.zeros(2, np.int8), "layer.w": np.ones(2, np.int8)}))
    target = tmp_path / "to"
    arguments = ["--source", str(tmp_path / "one.ckpt"), "--target", str(target), "--output", "unified"]
    assert main(["transform", *arguments, "--rename-pattern", "layer.*=new.*"]) == 0
    assert json.loads((target / "param_name_map.json").read_text())["weight_map"].keys() == {"a", "new.w"}
    found = rawfiles.read_safetensors((target / "part0.safetensors").read_bytes())
    assert same(found, {"a": np.zeros(2, np.int8), "new.w": np.ones(2, np.int8)})
