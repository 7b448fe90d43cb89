"""A source file that is replaced after its header was read: the reason is the change, whatever the new content."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import disk
import numpy as np
import pytest
import rawfiles

import reshard
from reshard.errors import DataError
from reshard.progress import Silent
from reshard.spec.keys import Encryption, Key
from reshard.spec.request import Options, Request
from reshard.storage.local import LocalStore
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE, READS_IT = "rank_3/net-1_100.ckpt", 5
KEY = b"a key, no poetry"


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "truncated to 0": lambda path: path.write_bytes(b""),
    "shorter": lambda path: os.truncate(path, path.stat().st_size - 7),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a pointer of Git LFS": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "other tensors": lambda path: path.write_bytes(rawfiles.ckpt({"other": np.ones(3, np.float32)})),
    "missing": lambda path: path.unlink(),
    "its folder is missing": lambda path: shutil.rmtree(path.parent),
    "a folder": folder_instead,
}


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path, disk.example())


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    return CHANGES[request.param]


def request_of(made: disk.Checkpoint, target: Path, encryption: Encryption | None = None, **options: str) -> Request:
    return Request(
        made.source, target, made.source_strategy, made.target_strategy, options=Options(**options), decryption=encryption
    )


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_ranks_of_a_plan(made: disk.Checkpoint, tmp_path: Path, change: Callable[[Path], object], *, encrypted: bool) -> None:
    encryption = None
    if encrypted:
        (tmp_path / "key").write_bytes(KEY)
        encryption = Encryption(Key(file=str(tmp_path / "key")), "AES-GCM")
        for path in made.source.rglob("*.ckpt"):
            path.write_bytes(rawfiles.encrypted(path.read_bytes(), "AES-GCM", KEY, 300))
    request = request_of(made, tmp_path / "out", encryption)
    reshard.plan_transform(request, write=True)
    change(made.source / FILE)
    with pytest.raises(DataError, match=rf"SourceChanged: {FILE}: the file (changed|was deleted).*without --no-commit"):
        transform_checkpoint(request, commit=False)


@pytest.mark.parametrize("what", ["truncated to 0", "shorter", "zeros"])
@pytest.mark.parametrize("commit", [True, False], ids=["transform", "ranks"])
def test_a_file_that_is_open(
    made: disk.Checkpoint, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch, *, commit: bool
) -> None:
    """The file is overwritten in place, so an open reader sees the change."""
    request = request_of(made, tmp_path / "out")
    if not commit:
        reshard.plan_transform(request, write=True)
    opened, seen = LocalStore.open, []

    def then_changed(store: LocalStore, path: str) -> object:
        reader = opened(store, path)
        if path == FILE and any("Resharding" in each for each in seen):
            CHANGES[what](made.source / FILE)
        return reader

    monkeypatch.setattr(LocalStore, "open", then_changed)
    monkeypatch.setattr(Silent, "begin", lambda _, step, *__: seen.append(step))
    with pytest.raises(DataError, match=rf"SourceChanged: \S*{FILE}"):
        transform_checkpoint(request, commit=commit)
    assert not (tmp_path / "out" / "reshard-manifest.json").exists()


@pytest.mark.parametrize("step", ["Checking CRCs", "Comparing replicas"])
def test_before_its_content_is_compared(
    made: disk.Checkpoint, tmp_path: Path, change: Callable[[Path], object], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Silent, "begin", lambda _, name, *__: change(made.source / FILE) if name == step else None)
    for path in made.source.rglob("*.ckpt"):
        path.write_bytes(rawfiles.ckpt(made.model.source()[int(path.parent.name[5:])], crc=True))
    with pytest.raises(DataError, match=rf"SourceChanged: {FILE}: the file"):
        transform_checkpoint(request_of(made, tmp_path / "out", verification="Full"))


def test_a_source_file_that_changed_since_it_was_indexed(
    made: disk.Checkpoint, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    transform_checkpoint(request_of(made, tmp_path / "index", output="Index"))
    change(made.source / FILE)
    said = rf"SourceChanged: {FILE}: the file (changed|was deleted) since the source was indexed"
    with pytest.raises(DataError, match=said):
        reshard.load(str(made.source), index=str(tmp_path / "index"), rank=READS_IT)
