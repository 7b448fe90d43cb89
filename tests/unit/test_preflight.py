"""A plan and a run make the same checks before the first byte, with one look at the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reshard.cli import main
from reshard.storage.local import LocalStore
from reshard.target.folder import TargetFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import disk

    from reshard.target.snapshot import TargetSnapshot


def stray(folder: Path) -> None:
    (folder / "rank_0").mkdir(parents=True)
    (folder / "rank_0" / "mine.ckpt").write_bytes(b"the only copy")


def in_the_way(folder: Path) -> None:
    folder.write_bytes(b"")


def key(folder: Path, number: int) -> tuple[str, str]:
    path = folder.with_name(f"key{number}")
    path.write_bytes(bytes([number]) * 16)
    return "--encryption-key-file", str(path)


@pytest.mark.parametrize(
    ("reason", "before", "more"),
    [
        ("TargetExists", stray, ()),
        ("TargetExists", (), ("--crc",)),
        ("PartialReplacement", (), ("--crc", "--only-ranks", "0", "--overwrite")),
        ("OtherKey", 1, 2),
        ("CannotCreate", in_the_way, ()),
        ("CannotCopy", (), ("--copy-mode", "server")),
    ],
)
@pytest.mark.parametrize("command", ["plan", "transform"])
def test_each_command_refuses_for_the_same_reason(
    made: disk.Checkpoint,
    tmp_path: Path,
    refused: Callable[..., str],
    command: str,
    reason: str,
    before: Callable[[Path], None] | tuple[str, ...] | int,
    more: tuple[str, ...] | int,
) -> None:
    target = tmp_path / "t"
    if callable(before):
        before(target)
    else:
        assert main(made.arguments(target, *(key(target, before) if isinstance(before, int) else before))) == 0
    arguments = made.arguments(target, *(key(target, more) if isinstance(more, int) else more))
    refused(73 if reason == "CannotCreate" else 78, reason, command, *arguments[1:])


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[TargetSnapshot]:
    """Return the snapshot of each look at a target."""
    found: list[TargetSnapshot] = []
    observe = TargetFolder.observe

    def seen(target: TargetFolder) -> TargetSnapshot:
        found.append(observe(target))
        return found[-1]

    monkeypatch.setattr(TargetFolder, "observe", seen)
    return found


def test_a_target_is_observed_a_few_times(made: disk.Checkpoint, tmp_path: Path, looks: list[TargetSnapshot]) -> None:
    """Each look costs a listing, and a read for each job: on an object store these are round trips of every pod."""
    target = tmp_path / "t"
    assert main(made.arguments(target, "--only-ranks", "0", "--no-commit")) == 0
    assert len(looks) <= 4  # before and after the headers are read, with the lock held, and after the start
    looks.clear()
    assert main(made.arguments(target, "--only-ranks", "1", "--no-commit")) == 0
    assert len(looks) == 2  # where a plan is found nothing but the lock comes between
    looks.clear()
    assert main(made.arguments(target)) == 0
    assert len(looks) <= 4
    looks.clear()
    assert main(made.arguments(target)) == 0
    assert len(looks) == 2
    assert TargetFolder(LocalStore(target), 0o640).observe().manifest == looks[-1].manifest
