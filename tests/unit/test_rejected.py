"""A file that differs from the source is kept under another name, and never left in its place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import disk
import pytest

from reshard import mindspore
from reshard.cli import main
from reshard.engine import rankfile
from reshard.errors import BugError
from reshard.storage.local.writer import LocalWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def checkpoint(tmp_path: Path) -> disk.Checkpoint:
    return disk.write(tmp_path / "in", disk.example())


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Damage each checkpoint file of a target as it is completed; return a function that stops this."""
    flush = LocalWriter.flush

    def flush_badly(writer: LocalWriter) -> str:
        found = flush(writer)
        path, file_path = writer._path, writer._temporary  # noqa: SLF001 - the file that was just completed
        if path.endswith(".ckpt"):
            with open(file_path, "r+b") as file:  # noqa: PTH123 - as the writer does
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))
        return found

    monkeypatch.setattr(LocalWriter, "flush", flush_badly)
    return lambda: monkeypatch.setattr(LocalWriter, "flush", flush)


@pytest.mark.parametrize("staged", ["", "staged"])
def test_a_file_that_differs_is_kept_until_the_checkpoint_is_complete(
    checkpoint: disk.Checkpoint,
    tmp_path: Path,
    refused: Callable[..., str],
    damaged: Callable[[], None],
    staged: str,
) -> None:
    out = tmp_path / "out"
    arguments = checkpoint.arguments(out, "--verification", "full", "--workers", "1")
    if staged == "staged":
        assert main([*arguments, "--format", "safetensors"]) == 0  # which are not damaged
        arguments.append("--overwrite")
    before = disk.contents(out)
    line = refused(70, "VerificationFailed", *arguments)
    assert disk.contents(out) == before
    kept = list(out.glob(".reshard/*/rejected/rank_*/*.ckpt"))  # the next rank may have been written already
    assert any(f"inspect the file, which is kept as {path}" in line for path in kept)
    assert all(path.stat().st_size > 0 for path in kept)
    damaged()
    assert main(arguments) == 0
    assert not (out / ".reshard").exists() or not list(out.glob(".reshard/*"))
    assert disk.differences(checkpoint.model, out, "ckpt") == []


def test_a_file_that_cannot_be_read_again_is_kept_too(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = LocalWriter.flush

    def flush_short(writer: LocalWriter) -> str:
        found = flush(writer)
        path, file_path = writer._path, writer._temporary  # noqa: SLF001 - the file that was just completed
        if path.endswith(".ckpt"):
            os.truncate(file_path, 10)
        return found

    monkeypatch.setattr(LocalWriter, "flush", flush_short)
    refused(70, "VerificationFailed", *checkpoint.arguments(tmp_path / "out"))
    assert list(tmp_path.glob("out/.reshard/*/rejected/rank_*/*.ckpt"))
    assert not list(tmp_path.glob("out/rank_*/*"))


@pytest.mark.usefixtures("damaged")
def test_a_source_that_changed_is_named_instead(
    checkpoint: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_file = rankfile.check_file

    def change_first(*arguments: object, **options: object) -> None:
        for path in checkpoint.source.rglob("*.ckpt"):
            os.utime(path)
        check_file(*arguments, **options)

    monkeypatch.setattr(rankfile, "check_file", change_first)
    refused(65, "SourceChanged", *checkpoint.arguments(tmp_path / "out", "--verification", "full"))
    assert not list(tmp_path.glob("out/.reshard/*/rejected"))
    assert not list(tmp_path.glob("out/rank_*/*"))


@pytest.mark.usefixtures("damaged")
def test_a_single_file_that_differs_is_kept_next_to_its_place(checkpoint: disk.Checkpoint, tmp_path: Path) -> None:
    files = {rank: str(next((checkpoint.source / f"rank_{rank}").iterdir())) for rank in range(4)}
    out = tmp_path / "one.ckpt"
    strategies = str(checkpoint.source_strategy), str(checkpoint.target_strategy)
    with pytest.raises(BugError, match=r"one\.ckpt\.rejected"):
        mindspore.transform_checkpoint_by_rank(0, files, str(out), *strategies)
    assert (tmp_path / "one.ckpt.rejected").exists()
    assert not out.exists()
