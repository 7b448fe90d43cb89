"""A plan and a run make the same checks before the first byte, with one look at the target."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

import pytest

from reshard.cli import main
from reshard.storage.local import LocalStore
from reshard.target.folder import TargetFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import disk

    from reshard.spec.storage_options import Io
    from reshard.storage.protocol import Stat
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


class CountingStore(LocalStore):
    """A store that records each of its kind, and each listing."""

    opened: ClassVar[list[str]] = []
    listed: ClassVar[list[str]] = []

    def __init__(self, root: str, io: Io, inside: str | None) -> None:
        super().__init__(root, io, inside)
        self.opened.append(self.root)

    def list(self, path: str) -> list[Stat]:
        self.listed.append(f"{self.root}/{path}".rstrip("/"))
        return super().list(path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[CountingStore]]:
    monkeypatch.setattr("reshard.storage.LocalStore", CountingStore)
    yield CountingStore
    CountingStore.opened.clear()
    CountingStore.listed.clear()


@pytest.mark.parametrize(
    ("more", "looks"),
    [
        ((), 3),  # after the headers are read, when the lock is held, and when all ranks are written
        (("--only-ranks", "0", "--no-commit"), 3),  # also before, because another process may have written a plan
        (("--verification", "full"), 3),
    ],
)
def test_a_run_opens_each_store_once_and_lists_each_folder_as_often_as_it_can_have_changed(
    made: disk.Checkpoint, tmp_path: Path, counted: type[CountingStore], more: tuple[str, ...], looks: int
) -> None:
    """Each look costs a listing, and a read for each task: on an object store these are round trips of every pod."""
    target = tmp_path / "t"
    assert main(made.arguments(target, *more)) == 0
    found = Counter(counted.listed)
    others = 2  # for members of a shared lock: twice; or for members, and for what a commit removes
    assert found[f"{target}/.reshard"] == looks + others
    assert found[str(made.source)] == 1
    assert Counter(counted.opened)[str(made.source)] == 1
    assert Counter(counted.opened)[str(target)] == 1


def test_a_run_that_has_nothing_to_do_looks_once(made: disk.Checkpoint, tmp_path: Path, counted: type[CountingStore]) -> None:
    target = tmp_path / "t"
    assert main(made.arguments(target)) == 0
    counted.listed.clear()
    assert main(made.arguments(target)) == 0
    assert Counter(counted.listed)[f"{target}/.reshard"] == 1


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
    target = tmp_path / "t"
    assert main(made.arguments(target, "--only-ranks", "0", "--no-commit")) == 0
    assert len(looks) == 3  # before and after the headers are read, and with the lock held
    looks.clear()
    assert main(made.arguments(target, "--only-ranks", "1", "--no-commit")) == 0
    assert len(looks) == 2  # where a plan is found nothing but the lock comes between
    looks.clear()
    assert main(made.arguments(target)) == 0
    assert len(looks) == 3  # and when all ranks are written
    looks.clear()
    assert main(made.arguments(target)) == 0
    assert len(looks) == 1
    assert TargetFolder(LocalStore(target), 0o640).observe().manifest == looks[-1].manifest
