"""Files that are read and written past the page cache have the same content, and what a file system cannot do is not needed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import disk
import pytest

from reshard.cli import main
from reshard.errors import BugError, OutputError, RequestError, ReshardError, StorageError
from reshard.storage.buffers import ALIGNMENT, buffers
from reshard.storage.local import LocalStore, direct_reads, filesystem, writer
from reshard.storage.traffic import Meter, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reshard.storage.local import LocalReader
    from reshard.storage.local.writer import LocalWriter

STAGE = 1 << 20
SIZES = [0, 1, 4095, 4096, 4097, STAGE - 1, STAGE, STAGE + 1, 3 * STAGE + 4096, 3 * STAGE + 5000]


@pytest.fixture(params=["disk", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk, or on a tmpfs."""
    if request.param == "disk":
        yield tmp_path
        return
    tmpfs = Path("/dev/shm")  # noqa: S108 - a file system, not a file
    if not os.access(tmpfs, os.W_OK):
        pytest.skip("there is no tmpfs for all users")
    with tempfile.TemporaryDirectory(dir=tmpfs) as found:
        yield Path(found)


@pytest.fixture(autouse=True)
def _no_page_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reads with `RWF_NOWAIT` fail unless the page is in the page cache. The kernel starts to read it, sometimes in time."""
    real = os.preadv

    def preadv(file: int, into: list[bytearray], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT and not cached(Path(f"/proc/self/fd/{file}"), [offset]):
            raise BlockingIOError
        return real(file, into, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)


def accepts(folder: Path, io: str) -> bool:
    """Return whether the file system supports this way. A tmpfs does not support direct I/O before Linux 6.6."""
    if io == "Direct":
        try:
            os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
        except OSError:
            return False
    return True


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a disk, whose file system is treated like ext4."""
    kind = filesystem._type_of(tmp_path.stat().st_dev)  # noqa: SLF001 - to know it
    (tmp_path / "probe").write_bytes(b"1")
    try:
        with (tmp_path / "probe").open("rb") as file:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        pass
    except OSError:  # such as of an overlay, which is read through the page cache
        pytest.skip(f"{kind} does not support RWF_NOWAIT")
    (tmp_path / "probe").unlink()
    monkeypatch.setattr(filesystem, "_DIRECT", {kind})
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat small files like large ones."""
    monkeypatch.setattr(writer, "_SMALLEST_DIRECT", 0)
    monkeypatch.setattr(direct_reads, "_SMALLEST_FILE", 0)


def is_direct(created: LocalWriter) -> bool:
    """Return whether the kernel writes the next bytes past the page cache."""
    return bool(fcntl.fcntl(created._file, fcntl.F_GETFL) & os.O_DIRECT)  # noqa: SLF001 - there is no other way to ask the kernel


def parts_of(content: bytes, sizes: random.Random) -> Iterator[memoryview]:
    """Yield the content in aligned buffers: blocks, and parts of any length."""
    at = 0
    while at < len(content):
        n = sizes.choice([ALIGNMENT, 16 * ALIGNMENT, 256 * ALIGNMENT, sizes.randrange(1, STAGE)])
        part = content[at : at + n]
        (buffer,) = buffers(-(-len(part) // ALIGNMENT) * ALIGNMENT, 1)
        buffer[: len(part)] = part
        yield buffer[: len(part)]
        at += n


def write(store: LocalStore, content: bytes, sizes: random.Random, *, later: bool) -> None:
    """Write a file in parts. `later`: in any order, by several threads."""
    created = store.create("file", temporary="tmp/file", mode=None, size=len(content))
    try:
        if later and created.any_order:
            writes = [done for part in parts_of(content, sizes) if (done := created.write_later(part)) is not None]
            sizes.shuffle(writes)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda done: done(), writes))
        elif later:
            for part in parts_of(content, sizes):
                if (done := created.write_later(part)) is not None:
                    done()
        else:
            for part in parts_of(content, sizes):
                created.write(part)
        created.finish()
    finally:
        created.abort()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("io", ["Auto", "Direct", "Buffered"])
@pytest.mark.parametrize("size", SIZES)
def test_all_ways_write_the_same_bytes(folder: Path, io: Any, size: int, later: bool) -> None:
    content = random.Random(size).randbytes(size)
    if not accepts(folder, io):
        with pytest.raises(RequestError, match="DirectIoUnsupported"):
            write(LocalStore(folder, io), content, random.Random(size), later=later)
        return
    write(LocalStore(folder, io), content, random.Random(size + later), later=later)
    assert (folder / "file").read_bytes() == content
    assert list((folder / "tmp").iterdir()) == []


def test_a_part_that_was_not_written_is_not_read_as_zeros(drive: Path) -> None:
    size = writer._SMALLEST_DIRECT  # noqa: SLF001 - the smallest file that is written directly
    created = LocalStore(drive).create("file", temporary="file.tmp", mode=None, size=size)
    (buffer,) = buffers(size, 1)
    assert created.write_later(buffer) is not None
    with pytest.raises(BugError, match=f"0 of {size} bytes were written"):
        created.finish()
    created.abort()
    assert list(drive.iterdir()) == []


@pytest.mark.parametrize(("length", "wrong"), [(-5000, "shorter"), (5000, "longer")])
def test_a_file_has_the_bytes_that_were_written_although_another_size_was_expected(drive: Path, length: int, wrong: str) -> None:
    expected = writer._SMALLEST_DIRECT + 100  # noqa: SLF001 - the limits and states of the module
    content = random.Random(wrong).randbytes(expected + length)
    created = LocalStore(drive).create("file", temporary="file.tmp", mode=None, size=expected)
    assert is_direct(created)
    created.write(content)
    created.finish()
    assert (drive / "file").read_bytes() == content


def test_large_files_are_written_past_the_page_cache(drive: Path) -> None:
    size = writer._SMALLEST_DIRECT + 100  # noqa: SLF001 - the limits and states of the module
    for number, (given, io, expected) in enumerate(
        [(size, "Auto", True), (size, "Buffered", False), (1000, "Auto", False), (1000, "Direct", True), (None, "Direct", False)]
    ):
        created = LocalStore(drive, io).create(f"{number}", temporary=f"{number}.tmp", mode=None, size=given)
        assert (is_direct(created), created.any_order) == (expected, expected)
        created.write(bytes(given or 1000))
        created.finish()
    assert cached(drive / "0", range(0, size, 16 * ALIGNMENT)) == [size - size % (16 * ALIGNMENT)]  # the tail


def cached(path: Path, offsets: Iterable[int]) -> list[int]:
    """Return those of these offsets whose pages are in the page cache. `RWF_NOWAIT` would read them, sometimes in time."""
    library = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        first, pages = ctypes.c_char.from_buffer(mapped), bytearray(-(-size // mmap.PAGESIZE))
        vector = (ctypes.c_char * len(pages)).from_buffer(pages)
        if library.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), vector):
            raise OSError(ctypes.get_errno(), "mincore")
        del first
    return [offset for offset in offsets if pages[offset // mmap.PAGESIZE] & 1]


def refusing(name: str, number: int, applies: Callable[..., bool]) -> Callable[..., Any]:
    real = getattr(os, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if applies(*arguments):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    return call


def flags_are_direct(_: object, flags: int, *__: object) -> bool:
    return bool(flags & os.O_DIRECT)


def descriptor_is_direct(file: int, *_: object) -> bool:
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("call", "applies"),
    [("open", flags_are_direct), ("posix_fallocate", descriptor_is_direct), ("pwrite", descriptor_is_direct)],
)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_what_a_file_system_refuses_is_written_through_the_page_cache(
    drive: Path, monkeypatch: pytest.MonkeyPatch, call: str, applies: Callable[..., bool], number: int
) -> None:
    monkeypatch.setattr(os, call, refusing(call, number, applies))
    content = random.Random(1).randbytes(3 * STAGE + 5000)
    for later in (False, True):
        store = LocalStore(drive)
        write(store, content, random.Random(2), later=later)
        assert (drive / "file").read_bytes() == content
        assert store.notes == ()  # nothing is lost
    with pytest.raises(RequestError, match=r"DirectIoUnsupported.*--io direct"):
        write(LocalStore(drive, "Direct"), content, random.Random(2), later=True)
    assert (drive / "file").read_bytes() == content
    assert list((drive / "tmp").iterdir()) == []


@pytest.mark.usefixtures("small")
def test_a_write_that_is_cut_short_continues(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, content = os.pwrite, random.Random(3).randbytes(2 * STAGE + 5000)
    for length in (8 * ALIGNMENT, 1000):  # the rest is aligned, or not
        monkeypatch.setattr(os, "pwrite", lambda file, view, at, n=length: pwrite(file, view[:n], at))
        if length % ALIGNMENT:  # the kernel refuses such a write to a file that is open for direct writes
            monkeypatch.setattr(os, "pwrite", partial(_stopped_once, pwrite, [length]))
        write(LocalStore(drive), content, random.Random(4), later=True)
        assert (drive / "file").read_bytes() == content
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(StorageError, match="accepted no bytes"):
        write(LocalStore(drive), content, random.Random(4), later=True)


def _stopped_once(pwrite: Callable[..., int], left: list[int], file: int, view: memoryview, at: int) -> int:
    """Write all bytes, but report fewer at the first call."""
    n = pwrite(file, view, at)
    return left.pop() if left else n


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_failure_has_the_same_reason_and_leaves_nothing(
    drive: Path, monkeypatch: pytest.MonkeyPatch, call: str, later: bool, number: int
) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(
        os, call, refusing(call, number, lambda file, *_: Path(f"/proc/self/fd/{file}").readlink().match("tmp/file"))
    )
    expected = (StorageError, "WriteFailed") if number == errno.EIO else (OutputError, "CannotWrite")
    with pytest.raises(ReshardError) as failure:
        write(LocalStore(drive), bytes(3 * STAGE), random.Random(5), later=later)
    assert (type(failure.value), failure.value.reason) == expected
    assert list((drive / "tmp").iterdir()) == []
    assert not (drive / "file").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_the_type_of_a_file_system_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def types(path: str) -> str:
        return filesystem._type_of(Path(path).stat().st_dev)  # noqa: SLF001 - the limits and states of the module

    assert types("/proc") == "proc"
    assert types("/dev/shm") == "tmpfs"  # noqa: S108 - a file system, not a file
    assert not LocalStore("/proc")._system.allocates("/proc")  # noqa: SLF001 - the limits and states of the module
    monkeypatch.setattr("builtins.open", refusing("open", errno.ENOENT, lambda *_: True))
    assert types("/proc") == ""


def test_a_file_system_without_enough_space_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("mounting a file system takes root and mkfs.ext4")
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, mounted], check=False, capture_output=True).returncode:
        pytest.skip("loop devices cannot be mounted")
    try:
        store = LocalStore(mounted)
        with pytest.raises(OutputError, match=r"CannotWrite.*No space left"):
            store.create("file", temporary="tmp/file", mode=None, size=64 << 20)
        assert list((mounted / "tmp").iterdir()) == []
        assert store.free_bytes() > 10 << 20
        content = random.Random(6).randbytes(9 << 20)
        write(store, content, random.Random(6), later=True)
        assert (mounted / "file").read_bytes() == content
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_files_larger_than_the_process_may_write_are_an_error(drive: Path) -> None:
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9 << 20, 9 << 20)); from reshard.storage.local import LocalStore; "
        "LocalStore(sys.argv[1]).create('file', temporary='file.tmp', mode=None, size=10 << 20)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(drive)], capture_output=True, text=True, check=False)
    assert "OutputError: CannotWrite" in ran.stderr
    assert "ulimit -f" in ran.stderr
    assert list(drive.iterdir()) == []


def test_a_killed_process_leaves_only_its_temporary_file(drive: Path) -> None:
    program = (
        "import os, sys; from reshard.storage.local import LocalStore; from reshard.storage.buffers import buffers; "
        "(buffer,) = buffers(1 << 20, 1); "
        "created = LocalStore(sys.argv[1]).create('file', temporary='tmp/file', mode=None, size=64 << 20)\n"
        "for number in range(64):\n"
        "    created.write_later(buffer)()\n"
        "    print(number, flush=True)\n"
    )
    (drive / "file").write_bytes(b"before")
    process = subprocess.Popen([sys.executable, "-c", program, str(drive)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(9):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (drive / "file").read_bytes() == b"before"
    assert [path.name for path in (drive / "tmp").iterdir()] == ["file"]


def uncached(path: Path, content: bytes) -> bool:
    """Write a file, and remove it from the page cache. Return whether the file system permits this."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return not cached(path, [0])  # a tmpfs keeps it


def reads_directly(reader: LocalReader) -> bool:
    return reader.descriptor is not None and reader.descriptor._direct is not None  # noqa: SLF001 - the limits and states of the module


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("io", ["Auto", "Direct", "Buffered"])
def test_all_ways_read_the_same_bytes(folder: Path, io: Any, drop: bool) -> None:
    if not accepts(folder, io):
        pytest.skip("the file system does not support direct I/O")
    ranges, size = random.Random(7), 3 * STAGE + 5000
    content = ranges.randbytes(size)
    dropped = uncached(folder / "file", content) and drop
    if not drop:
        (folder / "file").read_bytes()
    meter = Meter()
    with closing(LocalStore(folder, io).open("file")) as reader:
        reader.count_in(meter)
        for _ in range(60):
            start = ranges.choice([0, ALIGNMENT * ranges.randrange(size // ALIGNMENT), ranges.randrange(size)])
            end = ranges.choice([size, ranges.randrange(start, size), min(size, start + ALIGNMENT * ranges.randrange(300))])
            shift = ranges.choice([0, 0, 1])
            view = buffers(4 * STAGE, 1)[0][shift : shift + end - start]
            reader.read_into(view, start)
            assert bytes(view) == content[start:end]
            assert reader.read(start, end - start) == content[start:end]
        assert reads_directly(reader) == (io == "Direct" or (io == "Auto" and dropped))
        view = buffers(STAGE, 1)[0]
        for start in (size - STAGE + 1, size, size + ALIGNMENT):
            with pytest.raises(ReshardError, match="Truncated"):
                reader.read_into(view, start)
    assert meter.traffic.nbytes >= size


def test_the_page_cache_keeps_nothing_of_a_file_that_was_not_in_it(drive: Path) -> None:
    content = random.Random(8).randbytes(20 << 20)
    uncached(drive / "file", content)
    with closing(LocalStore(drive).open("file")) as reader:
        view = memoryview(bytearray(STAGE))
        for at in range(0, len(content) - STAGE, STAGE + 12345):
            reader.read_into(view, at)
            assert bytes(view) == content[at : at + STAGE]
            reader.read_into(view[:100], at)
        assert reads_directly(reader)
    assert cached(drive / "file", range(0, len(content), 16 * ALIGNMENT)) == []


@pytest.mark.parametrize("error", [None, OSError(errno.EINVAL, "no")])
def test_a_disk_is_asked_to_read_what_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    advice: list[tuple[int, int, int]] = []

    def advise(_: int, *given: int) -> None:
        advice.append((given[0], given[1], given[2]))
        if error is not None:
            raise error

    (tmp_path / "file").write_bytes(b"content")
    with closing(LocalStore(tmp_path).open("file")) as reader:
        monkeypatch.setattr(os, "posix_fadvise", advise)
        reader.will_read(2, 3)
        assert reader.read(2, 3) == b"nte"
    assert advice == [(2, 3, os.POSIX_FADV_WILLNEED)]


def test_what_is_in_the_page_cache_is_read_from_it_and_stays(drive: Path) -> None:
    half, content = direct_reads._SEGMENT_BYTES, random.Random(9).randbytes(2 * direct_reads._SEGMENT_BYTES)  # noqa: SLF001 - the limits and states of the module
    uncached(drive / "file", content)
    with (drive / "file").open("rb") as file:
        assert file.read(half) == content[:half]
        os.posix_fadvise(file.fileno(), half, 0, os.POSIX_FADV_DONTNEED)  # what was read ahead
    meter, view = Meter(), memoryview(bytearray(STAGE))
    with closing(LocalStore(drive).open("file")) as reader:
        reader.count_in(meter)
        for at in range(0, half, STAGE):
            reader.read_into(view, at)
            assert bytes(view) == content[at : at + STAGE]
        assert not reads_directly(reader)
        assert meter.traffic == Traffic(half + 3, half // STAGE + 3)
        reader.read_into(view, half)
        assert bytes(view) == content[half : half + STAGE]
        assert reads_directly(reader)
        assert meter.traffic == Traffic(half + 3 + STAGE, half // STAGE + 7)
    assert cached(drive / "file", range(0, half, ALIGNMENT)) == list(range(0, half, ALIGNMENT))


@pytest.mark.parametrize(
    ("call", "applies"),
    [
        ("open", flags_are_direct),
        ("preadv", descriptor_is_direct),
        ("preadv", lambda _file, _views, _offset, flags=0: flags == os.RWF_NOWAIT),
    ],
)
def test_what_a_file_system_refuses_is_read_through_the_page_cache(
    drive: Path, monkeypatch: pytest.MonkeyPatch, call: str, applies: Callable[..., bool]
) -> None:
    content = random.Random(10).randbytes(9 << 20)
    uncached(drive / "file", content)
    monkeypatch.setattr(os, call, refusing(call, errno.EINVAL, applies))
    view = memoryview(bytearray(STAGE))
    with closing(LocalStore(drive).open("file")) as reader:
        reader.read_into(view, 12345)
        assert bytes(view) == content[12345 : 12345 + STAGE]
        assert not reader.waits
    if applies not in (flags_are_direct, descriptor_is_direct):
        return
    with closing(LocalStore(drive, "Direct").open("file")) as reader, pytest.raises(RequestError, match="DirectIoUnsupported"):
        reader.read_into(view, 0)


def test_an_error_of_the_disk_is_an_error(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uncached(drive / "file", bytes(9 << 20))
    monkeypatch.setattr(os, "preadv", refusing("preadv", errno.EIO, descriptor_is_direct))
    with closing(LocalStore(drive).open("file")) as reader, pytest.raises(StorageError, match=r"ReadFailed.*at byte 0"):
        reader.read_into(memoryview(bytearray(STAGE)), 0)


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(drive: Path) -> None:
    uncached(drive / "file", bytes(9 << 20))
    with closing(LocalStore(drive).open("file")) as reader:
        view = memoryview(bytearray(STAGE))
        reader.read_into(view, 0)
        assert reads_directly(reader)
        os.truncate(drive / "file", 100)
        with pytest.raises(ReshardError, match="changed"):
            reader.read_into(view, 0)


FORMATS = {
    "ckpt": ["--format", "ckpt"],
    "large-ckpt": ["--format", "ckpt"],
    "large-safetensors": ["--format", "safetensors"],
    "safetensors": ["--format", "safetensors"],
    "crc": ["--format", "ckpt", "--crc"],
    "crc-safetensors": ["--format", "safetensors", "--crc"],
    "cast": ["--format", "ckpt", "--cast", "w=float16"],
    "unified": ["--output", "unified", "--max-file-size-bytes", "5000"],
    "huggingface": ["--format", "huggingface"],
    "torch-dcp": ["--format", "torch-dcp"],
    "torch-safetensors": ["--format", "torch-safetensors"],
}


@pytest.fixture
def tiny(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write a few bytes like many, with tiles that are small and not aligned."""
    del small
    monkeypatch.setattr("reshard.storage.local.reader.SMALLEST_DIRECT_READ", 1)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("form", FORMATS)
def test_transforms_write_the_same_files_in_all_ways(drive: Path, form: str, workers: str) -> None:
    size = 6 if form.startswith("large") else 1  # of several buffers of a file
    made = disk.write(drive / "in", disk.example(rows=480 * size, columns=240 * size), "safetensors")
    unified = form in ("unified", "huggingface")
    sides = [*made.arguments(drive / "out", "--workers", workers, "--verification", "full", *FORMATS[form])]
    if unified:
        at = sides.index("--target-strategy")
        del sides[at : at + 2]
    found = {}
    for io in ("buffered", "direct", "auto"):
        for path in made.source.rglob("*.safetensors"):
            uncached(path, path.read_bytes())
        shutil.rmtree(drive / "out", ignore_errors=True)
        assert main([*sides, "--io", io]) == 0
        assert main(["verify", str(drive / "out"), "--io", io]) == 0
        files = [path for path in (drive / "out").rglob("*") if path.is_file() and "manifest" not in path.name]
        found[io] = {str(path.relative_to(drive / "out")): path.read_bytes() for path in files}
    assert found["buffered"] == found["direct"] == found["auto"]
    assert found["auto"]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("mode", ["AES-GCM", "AES-CBC"])
def test_encrypted_files_are_written_and_read_in_all_ways(drive: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "0123456789abcdef")
    sealing = ["--encryption-key-env", "KEY", "--encryption-mode", mode, "--format", "ckpt", "--verification", "full"]
    opening = ["--decryption-key-env", "KEY", "--decryption-mode", mode]
    made = disk.write(drive / "in", disk.example(rows=480, columns=240), "ckpt")
    plain = []
    for io in ("buffered", "direct", "auto"):
        sealed, opened = drive / f"sealed-{io}", drive / f"opened-{io}"
        assert disk.run(made, sealed, *sealing, "--io", io) == 0
        assert main(["convert", str(sealed), str(opened), "--format", "ckpt", "--io", io, *opening]) == 0
        assert disk.differences(made.model, opened, "ckpt") == []
        plain.append(disk.contents(opened, "rank_*/*.ckpt"))
    assert plain[0] == plain[1] == plain[2]


def test_a_transform_that_insists_fails_where_direct_io_is_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "open", refusing("open", errno.EINVAL, flags_are_direct))
    made = disk.write(tmp_path / "in", disk.example())
    assert disk.run(made, tmp_path / "out", "--io", "direct") == 78
    assert "DirectIoUnsupported" in capsys.readouterr().err
    assert disk.run(made, tmp_path / "out") == 0
