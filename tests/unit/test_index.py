"""The index of a source: the reads of a load by it, its checks, and its creation and removal at a target."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any

import disk
import models
import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from memory_tasks import task
from rawfiles import same

import reshard
from reshard.cli import main
from reshard.engine.task import task_of
from reshard.errors import DataError, ReshardError
from reshard.plan import build_model
from reshard.source.index import decode_index
from reshard.spec.request import Options, Request
from reshard.spec.storage_options import RequestStorageOptions
from reshard.storage.local import LocalReader, LocalStore
from reshard.transform.prepare import encode_index

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INDEX = "reshard-index.json"


def indexed(made: disk.Checkpoint, *more: str) -> Path:
    """An index of a checkpoint, made by the command line."""
    folder = made.folder / "index"
    assert main([*made.arguments(folder, "--output", "index"), *more]) == 0
    return folder


def halves(ranks: int) -> models.Model:
    """A model of so many ranks that becomes one of half as many: every target rank is made of two source ranks' files."""
    rows = disk.Cut((ranks,), ((0,), ())), 0, disk.Cut((ranks // 2,), ((0,), ())), 0
    tensors = (models.Tensor("w", "Float32", (256, 64), *rows), models.Tensor("step", "Int32", (), None, 0, None, 0))
    return models.Model(ranks, 1, ranks // 2, 1, tensors, 1, remove_redundancy=False)


def staged() -> models.Model:
    """A pipeline of two stages of two ranks each that becomes one of two stages of three."""
    two, three = disk.Cut((2,), ((0,), ())), disk.Cut((3,), ((), (0,)))
    tensors = tuple(models.Tensor(f"{stage}-w", "BFloat16", (4, 6), two, stage, three, stage) for stage in (0, 1))
    return models.Model(2, 2, 3, 2, tensors, 1, remove_redundancy=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count calls of local storage, and bytes read."""
    found: Counter[str] = Counter()

    def counted(kind: type, name: str, *, nbytes: Callable[..., int] = lambda *_: 0) -> None:
        original = getattr(kind, name)

        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            found[name] += 1
            found["bytes"] += nbytes(*arguments)
            return original(self, *arguments, **named)

        monkeypatch.setattr(kind, name, call)

    for name in ("open", "list", "stat"):
        counted(LocalStore, name)
    counted(LocalReader, "read", nbytes=lambda _, length: length)
    counted(LocalReader, "read_into", nbytes=lambda view, _: len(view))
    counted(LocalReader, "read_runs", nbytes=lambda view, *_: len(view))
    return found


@pytest.mark.parametrize("model", [disk.example(), staged()], ids=["example", "pipeline"])
@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_every_rank_gets_exactly_its_slices(model: models.Model, kind: str, tmp_path: Path) -> None:
    made = disk.write(tmp_path, model, kind)
    folder = indexed(made)
    for rank in range(model.target_ranks):
        assert same(reshard.load(str(made.source), index=str(folder), rank=rank), model.target(rank))


@examples(100)
@given(models.models())
def test_an_index_contains_everything_that_affects_a_load(model: models.Model) -> None:
    made, store = task(model, "safetensors", "safetensors")
    found = decode_index(encode_index(made), "here")
    before, after = found.strategies()
    again = build_model(found.inventory, before, after, incomplete=True)
    request = Request("memory", "nowhere", options=Options(format="Safetensors"))
    assert task_of(request, store, again, (before, after)).digest == made.digest == found.digest


def test_requests_of_a_load_do_not_grow_with_the_number_of_ranks(tmp_path: Path, calls: Counter[str]) -> None:
    asked, sizes = [], {}
    for ranks in (8, 32, 128):
        (tmp_path / str(ranks)).mkdir()
        made = disk.write(tmp_path / str(ranks), halves(ranks))
        folder = indexed(made, "--workers", "1")
        sizes[ranks] = (folder / INDEX).stat().st_size
        calls.clear()
        expected = made.model.target(3)
        assert same(reshard.load(str(made.source), index=str(folder), rank=3), expected)
        # Blocks by which two files of the same size and time are distinguished; and the index.
        fixed = sizes[ranks] + 2 * 5 * min(4096, (made.source / "rank_6" / "net-1_100.ckpt").stat().st_size)
        assert calls.pop("bytes") == sum(array.nbytes for array in expected.values()) + fixed
        asked.append(dict(calls))
    assert asked[0] == asked[1] == asked[2]
    assert asked[0]["open"] == 3
    assert "list" not in asked[0]
    assert (sizes[128] - sizes[32]) / 96 < 128  # for each file its path, size and version


@pytest.mark.parametrize("how", ["load", "fetch"])
@pytest.mark.parametrize("change", ["rewritten", "gone"])
def test_a_source_that_has_changed_since_is_to_be_indexed_again(
    tmp_path: Path, how: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = disk.write(tmp_path, halves(8))
    folder, changed = indexed(made), made.source / "rank_6" / "net-1_100.ckpt"
    if change == "gone":
        changed.unlink()
    else:
        changed.write_bytes(changed.read_bytes())
    assert same(reshard.load(str(made.source), index=str(folder), rank=0), made.model.target(0))  # it reads others
    said = f"SourceChanged: rank_6/net-1_100.ckpt: the file {'was deleted' if change == 'gone' else 'changed'} since"
    if how == "load":
        with pytest.raises(DataError, match=f"{said} the source was indexed; .* create the index again"):
            reshard.load(str(made.source), index=str(folder), rank=3)
        return
    fetch = ["fetch", "--source", str(made.source), "--index", str(folder), "--rank", "3", "--target", str(tmp_path / "out")]
    assert main(fetch) == 65
    assert said in capsys.readouterr().err
    assert list((tmp_path / "out").glob("rank_*/*")) == []


def many_layers(folder: Path) -> dict[str, np.ndarray]:
    """Write a file with so many names that the samples do not contain all of them, and return its tensors."""
    tensors = {f"layer.{i:04d}": np.full((16, 16), i, np.float32) for i in range(300)}
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(rawfiles.safetensors(tensors))
    return tensors


def exchange_two_names(path: Path) -> None:
    """Exchange two names in a file of `many_layers`. Its size and its modification time remain."""
    before, content = path.stat(), path.read_bytes()
    one, other = b'"layer.0150"', b'"layer.0151"'
    path.write_bytes(content.replace(one, b"").replace(other, one).replace(b",:", b"," + other + b":"))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_a_file_with_another_change_time_is_only_read_if_its_header_is_equal(tmp_path: Path) -> None:
    """A program can restore the modification time of a file that it replaces, and the samples may not contain what differs."""
    source, index = tmp_path / "source", tmp_path / "index"
    tensors = many_layers(source)
    assert main(["transform", "--source", str(source), "--target", str(index), "--output", "index"]) == 0
    (source / "model.safetensors").chmod(0o600)
    assert same(reshard.load(str(source), index=str(index)), tensors)
    exchange_two_names(source / "model.safetensors")
    with pytest.raises(DataError, match=r"SourceChanged: model\.safetensors: the file changed since the source was indexed"):
        reshard.load(str(source), index=str(index))


def test_a_transform_by_an_index_is_not_continued_with_another_header(tmp_path: Path) -> None:
    """Its finished files are compared with the source, and then the others are written."""
    source, index, target = tmp_path / "source", tmp_path / "index", tmp_path / "target"
    many_layers(source)
    start = ["transform", "--source", str(source), "--target"]
    assert main([*start, str(index), "--output", "index", "--target-ranks", "2"]) == 0
    assert main([*start, str(target), "--index", str(index), "--only-ranks", "0"]) == 0
    exchange_two_names(source / "model.safetensors")
    assert main([*start, str(target), "--index", str(index)]) == 65


FILES, TENSORS = "inventory files ", "inventory structures 0 1 "


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("schema", "reshard.dev/index/v2", "DocumentInvalid"),
        (f"{FILES} 0 1", "../rank_0/net-1_100.ckpt", "DocumentInvalid"),
        (f"{FILES} 0 1", "/etc/passwd", "DocumentInvalid"),
        (f"{FILES} 0 1", "a\n/..", "DocumentInvalid"),
        (f"{FILES}", [], "DocumentInvalid: .*ascending"),
        (f"{FILES} 1 0", 0, "DocumentInvalid: .*ascending"),
        (f"{FILES} 0 4", 7, "DocumentInvalid: .*structure 7 is missing"),
        (f"{TENSORS} 0 0", "m", "DocumentInvalid: .*twice"),
        (f"{TENSORS} 0 1", "Float7", "DocumentInvalid: .*its type and shape"),
        (f"{TENSORS} 0 2 0", 1 << 40, "DocumentInvalid: .*and shape"),
        (f"{TENSORS} 0 3 0 0", -1, "DocumentInvalid"),
        (f"{TENSORS} 0 3 0 0", 1 << 40, "DocumentInvalid: .*beyond the end"),
        ("sourceStrategy devices", 5, "StrategyInvalid"),
        ("sourceStrategy layouts 0 deviceMatrix", [1 << 30], "LayoutInvalid"),
        ("sourceStrategy layouts 0 tensorMap 0", [9], "LayoutInvalid"),
        ("sourceStrategy layouts", [], "StrategyInvalid"),
        ("sourceStrategy layouts 0 uneven", True, "StrategyInvalid"),
        ("layout", {"apiVersion": "reshard.dev/layout-v1", "mesh": "dp=2", "rules": [{"match": "*"}]}, "IndexDamaged"),
        ("sourceStrategy", "?", "DocumentInvalid"),
        (f"{TENSORS} 0 3 0 0", 29, "IndexDamaged"),  # other bytes of the same file: only the digest differs
        (f"{FILES} 0 3", "1-1", "IndexDamaged"),
        ("digest", "0" * 64, "IndexDamaged"),
    ],
)
def test_an_index_that_is_damaged_or_hostile_is_refused(tmp_path: Path, place: str, value: object, reason: str) -> None:
    made = disk.write(tmp_path, disk.example())
    path = indexed(made) / INDEX
    document = json.loads(path.read_text())
    *folders, last = (int(part) if part.isdecimal() else part for part in place.split())
    reduce(getitem, folders, document)[last] = value
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=reason):
        reshard.load(str(made.source), index=str(path.parent))


@pytest.mark.parametrize("content", [b"", b"[]", b"{" * 10_000, b"\xff", b'{"schema": 1}'])
def test_other_files_are_refused_as_an_index(tmp_path: Path, content: bytes) -> None:
    made = disk.write(tmp_path, disk.example())
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(DataError, match="DocumentInvalid"):
        reshard.load(str(made.source), index=str(tmp_path))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"index": "nowhere"}, "IndexMissing: .*nowhere.*--output index"),
        ({"rank": 6}, "NoSuchRank"),
        ({"source_strategy": "source.ckpt"}, "InvalidOption: source_strategy: the index already defines it"),
        ({"source_only": "Keep"}, "InvalidOption: source_only: the index already defines it"),
        ({"verification": "Full"}, "IndexNotChecked"),
    ],
)
def test_arguments_that_conflict_with_an_index(tmp_path: Path, how: dict[str, Any], reason: str) -> None:
    made = disk.write(tmp_path, disk.example())
    arguments = {"source": str(made.source), "index": str(indexed(made)), "storage_options": RequestStorageOptions()}
    with pytest.raises(ReshardError, match=reason):
        reshard.load(**(arguments | how))


@pytest.mark.parametrize(
    "option", [["--format", "ckpt"], ["--file-prefix", "x"], ["--only-ranks", "0"], ["--crc"], ["--copy-mode", "server"]]
)
def test_options_of_files_are_refused_with_an_index(tmp_path: Path, option: list[str]) -> None:
    made = disk.write(tmp_path, disk.example())
    assert main([*made.arguments(tmp_path / "index", "--output", "index"), *option]) == 2
    assert not (tmp_path / "index").exists()


def test_an_index_is_a_target_like_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path, disk.example())
    folder = indexed(made)
    assert sorted(path.name for path in folder.iterdir()) == [".reshard", INDEX, "reshard-manifest.json"]
    before = (folder / INDEX).read_bytes()
    assert main(["verify", str(folder)]) == 0
    assert "intact: index for 6 ranks" in capsys.readouterr().out
    indexed(made)
    assert "nothing to do" in capsys.readouterr().out
    (folder / INDEX).write_bytes(before[:-1] + b" ")
    assert main(["verify", str(folder)]) == 65
    assert main(["inspect", str(folder)]) == 65
    assert "DocumentInvalid" in capsys.readouterr().err


def test_an_index_replaces_only_an_older_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = disk.write(tmp_path, disk.example())
    folder = indexed(made)
    changed = made.source / "rank_1" / "net-1_100.ckpt"
    changed.write_bytes(changed.read_bytes())
    again = made.arguments(folder, "--output", "index")
    assert main(again) == 78
    assert "TargetExists" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0
    assert same(reshard.load(str(made.source), index=str(folder), rank=1), made.model.target(1))
    assert main(made.arguments(folder, "--overwrite")) == 0
    assert not (folder / INDEX).exists()
    assert disk.differences(made.model, folder, "ckpt") == []
    assert main([*again, "--overwrite"]) == 78
    assert "PartialReplacement: " in capsys.readouterr().err
    assert disk.differences(made.model, folder, "ckpt") == []


def test_the_steps_of_a_cluster(tmp_path: Path) -> None:
    made = disk.write(tmp_path, disk.example())
    folder = tmp_path / "index"
    plan = ["plan", *made.arguments(folder, "--output", "index")[1:]]
    assert main([*plan, "--write"]) == 0
    assert not (folder / INDEX).exists()
    assert main(["commit", str(folder)]) == 0
    assert same(reshard.load(str(made.source), index=str(folder), rank=5), made.model.target(5))


def test_a_replacement_that_was_interrupted_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = disk.write(tmp_path, disk.example())
    folder = indexed(made)
    changed = made.source / "rank_1" / "net-1_100.ckpt"
    changed.write_bytes(changed.read_bytes())
    again = made.arguments(folder, "--output", "index", "--overwrite")
    monkeypatch.setattr("reshard.target.folder.TargetFolder.write_manifest", lambda *_: 1 / 0)
    assert main(again) == 70
    monkeypatch.undo()
    assert main(again) == 0
    assert same(reshard.load(str(made.source), index=str(folder), rank=1), made.model.target(1))
    assert main(["verify", str(folder)]) == 0
