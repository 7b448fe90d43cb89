"""A possible only copy of data is never replaced by less data, nor by other data."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest

from reshard.cli import main
from reshard.errors import RequestError
from reshard.spec.keys import Encryption, Key
from reshard.spec.request import Options, Request
from reshard.storage.local import LocalStore
from reshard.target.folder import TargetFolder
from reshard.target.task import TaskState
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import disk

    from reshard.target.snapshot import TaskRecord

MANIFEST = "reshard-manifest.json"


@pytest.fixture
def target(made: disk.Checkpoint, tmp_path: Path) -> Path:
    """A complete checkpoint, to be replaced."""
    assert main(made.arguments(tmp_path / "t")) == 0
    return tmp_path / "t"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_picture_replaces_pictures_only(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    plan = ["plan", *made.arguments(tmp_path / "t")[1:]]
    for _ in range(2):
        assert main([*plan, "--svg", str(tmp_path / "a.svg")]) == 0
    shard = next(made.source.rglob("*.ckpt"))
    before = shard.read_bytes()
    refused(2, "FileExists", *plan, "--svg", str(shard))
    assert shard.read_bytes() == before
    (tmp_path / "empty").touch()
    refused(2, "FileExists", *plan, "--svg", str(tmp_path / "empty"))
    refused(2, "NothingToDraw", "plan", *made.arguments(tmp_path / "t")[1:5], "--target", str(tmp_path / "i"),
            "--output", "index", "--svg", str(tmp_path / "i.svg"))  # fmt: skip


@pytest.mark.parametrize("more", [("--only-ranks", "0"), ("--output", "index")])
def test_a_refused_replacement_leaves_everything(
    made: disk.Checkpoint, target: Path, refused: Callable[..., str], more: tuple[str, ...]
) -> None:
    before = files(target)
    arguments = made.arguments(target, *more, "--overwrite")
    arguments += ["--crc"] if "--only-ranks" in more else []
    for command in ("plan", "transform"):
        refused(78, "PartialReplacement", command, *arguments[1:])
    assert files(target) == before


def test_rank_0_of_several_does_not_replace_the_only_rank(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    whole = ["transform", *made.arguments(tmp_path / "t")[1:5], "--target", str(tmp_path / "t")]
    assert main(whole) == 0
    before = files(tmp_path / "t")
    refused(78, "PartialReplacement", *made.arguments(tmp_path / "t", "--only-ranks", "0", "--overwrite"))
    assert files(tmp_path / "t") == before


@pytest.mark.parametrize("name", ["part0.safetensors", "hyper_param.safetensors", "param_name_map.json"])
def test_files_next_to_a_checkpoint_are_not_replaced(
    made: disk.Checkpoint, target: Path, refused: Callable[..., str], name: str
) -> None:
    (target / name).write_bytes(b"mine")
    unify = ["transform", *made.arguments(target)[1:5], "--target", str(target), "--output", "unified", "--overwrite"]
    assert name in refused(78, "TargetExists", *unify)
    assert (target / name).read_bytes() == b"mine"
    assert (target / MANIFEST).exists()


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, tuple[str, str]]:
    """Options with two keys."""
    found = {}
    for number, name in enumerate("ab"):
        (tmp_path / name).write_bytes(bytes([number]) * 16)
        found[name] = ("--encryption-key-file", str(tmp_path / name))
    return found


def test_one_checkpoint_has_one_key(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], keys: dict[str, tuple[str, str]]
) -> None:
    target = tmp_path / "t"
    assert main(made.arguments(target, *keys["a"], "--only-ranks", "0", "--no-commit")) == 0
    refused(78, "OtherKey", *made.arguments(target, *keys["b"], "--only-ranks", "1-3", "--no-commit"))
    assert main(made.arguments(target, *keys["a"])) == 0
    for command in ("plan", "transform"):
        refused(78, "OtherKey", command, *made.arguments(target, *keys["b"], "--overwrite")[1:])
    shutil.rmtree(target)
    assert main(made.arguments(target, *keys["b"])) == 0


def test_the_key_is_checked_before_any_file_is_finished(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], keys: dict[str, tuple[str, str]]
) -> None:
    """No file is finished yet that could show it."""
    target = tmp_path / "t"
    assert main(["plan", *made.arguments(target, *keys["a"], "--write")[1:]]) == 0
    refused(78, "OtherKey", *made.arguments(target, *keys["b"], "--no-commit"))
    assert not list(target.glob("rank_*"))
    assert main(made.arguments(target, *keys["a"])) == 0
    assert b"keyCheck" in (target / MANIFEST).read_bytes()


def test_one_of_two_concurrent_starts_with_different_keys_is_refused(
    made: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, both, usual = tmp_path / "t", Barrier(2), TaskState.begin

    def begin(self: TaskState, *arguments: Any) -> TaskRecord:
        both.wait()  # neither has found the other's
        return usual(self, *arguments)

    monkeypatch.setattr(TaskState, "begin", begin)

    def run(number: int) -> str:
        encryption, ranks = Encryption(Key(bytes([number]) * 16)), f"{number}"
        sides = (str(made.source), str(target), str(made.source_strategy), str(made.target_strategy))
        request = Request(*sides, options=Options(only_ranks=ranks), encryption=encryption)
        try:
            transform_checkpoint(request, commit=False)
        except RequestError as error:
            return error.reason
        return "written"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(run, range(2)))
    assert sorted(outcomes) == ["OtherKey", "written"]
    assert [path.name for path in target.glob("rank_*")] == [f"rank_{outcomes.index('written')}"]


@pytest.mark.parametrize("name", ["task.json", MANIFEST])
def test_without_a_record_of_the_key_nothing_is_added(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], keys: dict[str, tuple[str, str]], name: str
) -> None:
    target = tmp_path / "t"
    assert main(made.arguments(target, *keys["a"], "--only-ranks", "0", *(["--no-commit"] if name == "task.json" else []))) == 0
    (path,) = target.rglob(name)
    document = json.loads(path.read_text())
    del document["keyCheck"]
    path.write_text(json.dumps(document))
    refused(78, "OtherKey", *made.arguments(target, *keys["a"], "--only-ranks", "1"))


def test_no_kill_leaves_records_of_an_unknown_task(
    made: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, tuple[str, str]]
) -> None:
    """Files with another key would be mistaken for those of the same transform."""
    assert main(made.arguments(target, *keys["a"], "--overwrite", "--no-commit")) == 0
    (task,) = (path.parent for path in target.rglob("task.json"))
    usual = shutil.rmtree

    def killed(folder: str) -> None:
        if folder.endswith(task.name):
            (task / "task.json").unlink()
            raise KeyboardInterrupt
        usual(folder)

    monkeypatch.setattr("shutil.rmtree", killed)
    folder = TargetFolder(LocalStore(target), 0o640)
    digests = [found.digest for found in folder.observe().tasks]
    with pytest.raises(KeyboardInterrupt):
        folder.forget_tasks(digests)
    assert not list(task.rglob("rank_*.json"))


def test_an_index_of_encrypted_files_requires_their_key(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "key").write_bytes(b"k" * 16)
    assert main(made.arguments(tmp_path / "e", "--encryption-key-file", str(tmp_path / "key"))) == 0
    source = ["--source", str(tmp_path / "e"), "--source-strategy", str(made.target_strategy)]
    index = [*source, "--output", "index", "--target", str(tmp_path / "i")]
    assert main(["transform", *index, "--decryption-key-file", str(tmp_path / "key")]) == 0
    out = ["--target", str(tmp_path / "o"), "--index", str(tmp_path / "i")]
    refused(65, "Encrypted", "transform", "--source", str(tmp_path / "e"), *out)
