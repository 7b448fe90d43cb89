"""File systems that are not quite POSIX, permission bits and groups, and writes that fail."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disk
import pytest
from store_contract import StoreContract

from reshard.cli import main
from reshard.errors import AccessError, OutputError, ReshardError, StorageError
from reshard.spec.request import Request
from reshard.storage.local import LocalStore, exclusive
from reshard.storage.local.filesystem import write_all
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reshard.storage.protocol import Store


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def no_chmod(patch: pytest.MonkeyPatch) -> None:
    """SMB, blobfuse, NFS exports with squashed users."""
    patch.setattr(os, "chmod", failing(errno.EPERM))


def no_folder_fsync(patch: pytest.MonkeyPatch) -> None:
    """CIFS and some FUSE file systems."""
    fsync = os.fsync

    def refuse(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(file)

    patch.setattr(os, "fsync", refuse)


def no_fsync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "fsync", failing(errno.EINVAL))


def no_links(patch: pytest.MonkeyPatch) -> None:
    """SMB, gcsfuse, exFAT, virtiofs."""
    patch.setattr(os, "link", failing(errno.EPERM))


def no_links_or_nameless_files(patch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: str, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return opened(path, flags, *arguments, **options)

    patch.setattr(os, "open", refuse)
    patch.setattr(os, "link", failing(errno.ENOSYS))


def no_proc(patch: pytest.MonkeyPatch) -> None:
    """/proc is not mounted, so that a nameless file cannot be linked."""
    link = os.link

    def refuse(source: str, *arguments: Any, **options: Any) -> None:
        link(source.replace("/proc/", "/nowhere/"), *arguments, **options)

    patch.setattr(os, "link", refuse)


def no_size(patch: pytest.MonkeyPatch) -> None:
    """rclone mount, mountpoint-s3."""
    statvfs = os.statvfs

    def empty(path: Any) -> os.statvfs_result:
        values = list(statvfs(path))
        values[2:5] = [0, 0, 0]
        return os.statvfs_result((*values, 0))

    patch.setattr(os, "statvfs", empty)


def no_statvfs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "statvfs", failing(errno.ENOSYS))


def no_utime(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "utime", failing(errno.EPERM))


KINDS = [no_chmod, no_folder_fsync, no_fsync, no_links, no_links_or_nameless_files, no_proc, no_size, no_statvfs, no_utime]
NOTES = {
    no_folder_fsync: "fsync on folders",
    no_fsync: "fsync on",
    no_links: "hard links",
    no_links_or_nameless_files: "hard links",
    no_size: "free space",
    no_statvfs: "free space",
}


class TestOddFileSystems(StoreContract):
    """The contract of stores, on each of these file systems."""

    @pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
        with pytest.MonkeyPatch.context() as patch:
            if request.param is not no_utime or "age" not in request.node.name:
                request.param(patch)
            yield LocalStore(tmp_path / "store")


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_continues_without_and_reports_it_once(
    kind: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = disk.write(tmp_path / "in", disk.example()), tmp_path / "out"
    kind(monkeypatch)
    result = transform_checkpoint(
        Request(
            source=str(made.source),
            source_strategy=str(made.source_strategy),
            target=str(out),
            target_strategy=str(made.target_strategy),
        )
    )
    assert result.complete
    assert disk.differences(made.model, out, "ckpt") == []
    found = [note for note in result.notes if "file system" in note]
    assert len(found) == len(set(found))
    assert all(NOTES[kind] in note for note in found) if kind in NOTES else not found
    assert bool(found) is (kind in NOTES)


@pytest.mark.parametrize("chmod", [failing(errno.EPERM), lambda *_: None], ids=["refused", "without effect"])
def test_a_requested_mode_that_cannot_be_set_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chmod: Callable[..., None]
) -> None:
    store = LocalStore(tmp_path / "store")
    monkeypatch.setattr(os, "chmod", chmod)
    old = os.umask(0o027)
    try:
        store.write("plain", b"1", mode=None)
        assert store.notes == ()
        store.write("open", b"1", mode=0o666)
    finally:
        os.umask(old)
    assert len(store.notes) == 1


def test_a_process_that_finds_an_empty_claim_waits_for_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hard links a file exists before its content."""
    no_links_or_nameless_files(monkeypatch)
    store = LocalStore(tmp_path)
    (tmp_path / "claim").touch()
    slept: list[float] = []

    def arrive(seconds: float) -> None:
        slept.append(seconds)
        (tmp_path / "claim").write_bytes(b"theirs")

    monkeypatch.setattr(exclusive.time, "sleep", arrive)
    assert not store.write_new("claim", b"ours", mode=None)
    assert slept
    assert store.read("claim", 6) == b"theirs"


def test_a_claim_that_cannot_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links_or_nameless_files(monkeypatch)
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    with pytest.raises(OutputError, match="CannotWrite"):
        LocalStore(tmp_path).write_new("claim", b"ours", mode=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_modes_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    made, out = disk.write(tmp_path / "in", disk.example()), tmp_path / "below" / "out"
    old = os.umask(umask)
    try:
        assert main(made.arguments(out)) == 0
    finally:
        os.umask(old)
    for path in [out.parent, out, *out.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to give a folder to another group")
@pytest.mark.parametrize("mode", [[], ["--file-mode", "0640"]])
def test_a_shared_folder_keeps_its_group(tmp_path: Path, mode: list[str]) -> None:
    made, shared = disk.write(tmp_path / "in", disk.example()), tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, -1, 6000)
    shared.chmod(0o2775)
    assert main(made.arguments(shared / "run" / "out", *mode)) == 0
    assert main(made.arguments(shared / "run" / "out", *mode, "--format", "safetensors", "--overwrite")) == 0
    for path in [shared / "run", *shared.rglob("*")]:
        found = path.stat()
        assert found.st_gid == 6000, path
        assert not path.is_dir() or found.st_mode & stat.S_ISGID, path


def test_a_short_write_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, memoryview(content)[:3]))
    store = LocalStore(tmp_path)
    assert store.write_new("new", b"0123456789", mode=0o600)
    store.write("whole", b"0123456789", mode=0o600)
    assert store.read("new", 10) == store.read("whole", 10) == b"0123456789"
    monkeypatch.setattr(os, "write", lambda *_: 0)
    with pytest.raises(OSError, match="accepted no bytes"):
        write_all(1, b"x")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "close", "rename"])
def test_a_failure_while_writing_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    store, real = LocalStore(tmp_path), getattr(os, call)
    writer = store.create("file", temporary="tmp/file", mode=0o600)
    writer.write(b"before")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))

    def fail(*arguments: Any) -> None:
        monkeypatch.setattr(os, call, real)
        if call == "close":
            real(*arguments)  # as Linux does
        failing(number)()

    monkeypatch.setattr(os, call, fail)
    with pytest.raises((StorageError, OutputError), match="Write"):  # noqa: PT012 - by either
        writer.write(b"content")
        writer.finish()
    writer.abort()
    assert not (tmp_path / "file").exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors - 1


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.create("file", temporary="file.tmp", mode=0o644),
        lambda store: store.write("file", b"content", mode=0o644),
        lambda store: store.write_new("file", b"content", mode=0o644),
    ],
)
def test_a_chmod_that_fails_leaves_neither_descriptor_nor_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[LocalStore], object]
) -> None:
    store, descriptors = LocalStore(tmp_path), len(list(Path("/proc/self/fd").iterdir()))
    no_links_or_nameless_files(monkeypatch)
    monkeypatch.setattr(os, "chmod", failing(errno.EIO))
    old = os.umask(0o077)
    try:
        with pytest.raises(ReshardError):
            write(store)
    finally:
        os.umask(old)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_a_file_system_that_cannot_rename_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rename", failing(errno.ENOSYS))
    with pytest.raises(OutputError, match=r"CannotRename.*s3://"):
        LocalStore(tmp_path).write("file", b"content", mode=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EROFS, "mount the file system"), (errno.EDQUOT, "quota"), (errno.EFBIG, "file size limit"), (errno.ENOSPC, "space")],
)
def test_the_remedy_matches_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str) -> None:
    monkeypatch.setattr(os, "write", failing(number))
    with pytest.raises(OutputError, match=remedy):
        LocalStore(tmp_path).write("file", b"content", mode=None)


def test_the_owner_is_not_advised_to_become_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", failing(errno.EACCES))
    with pytest.raises(AccessError, match="root_squash") as refusal:
        LocalStore(tmp_path).write("file", b"content", mode=None)
    assert "run as that user" not in str(refusal.value)


def test_an_age_is_known_although_times_cannot_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.write("lock", b"content", mode=None)
    os.utime(tmp_path / "lock", (1, 1))
    no_utime(monkeypatch)
    assert store.age("lock") > 1e6
    store.touch("lock")
    assert abs(store.age("lock")) < 60
    assert store.read("lock", 7) == b"content"


def test_files_larger_than_the_process_may_write_are_an_error(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); from reshard.storage.local import LocalStore; "
        "LocalStore(sys.argv[1]).write('file', bytes(2000), mode=None)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "OutputError: CannotWrite" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_bytes_on_the_disk_leave_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advised: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, start, length, advice: advised.append((start, start + length, advice)))
    writer, step = LocalStore(tmp_path).create("file", temporary="file.tmp", mode=None), 1 << 20
    for _ in range(100):
        writer.write(bytes(step))
    writer.finish()
    starts, ends, advices = zip(*advised, strict=True)
    assert set(advices) == {os.POSIX_FADV_DONTNEED}
    assert list(ends) == [8 * step * (i + 1) for i in range(12)]  # the first advice for a byte starts its writeback
    for start in range(0, 64 * step, step):  # by the last advice for it, later bytes of the length of the page cache were written
        last = max(end for first, end in zip(starts, ends, strict=True) if first <= start < end)
        assert last - start > 32 * step
