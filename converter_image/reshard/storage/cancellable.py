"""A store whose reads stop when the work is cancelled."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from reshard.storage.protocol import Reader, ReadStore, Stat
    from reshard.storage.traffic import Meter

_current: ContextVar[Callable[[], None]] = ContextVar("reshard_check", default=lambda: None)


@contextmanager
def cancelled_by(check: Callable[[], None]) -> Iterator[None]:
    """Let the requests of the body end when `check` raises, instead of being repeated, and those of files that it opens."""
    token = _current.set(check)
    try:
        yield
    finally:
        _current.reset(token)


def not_cancelled() -> AbstractContextManager[None]:
    """Let the requests of the body be repeated although the work was cancelled, because they clean up."""
    return cancelled_by(lambda: None)


def current_check() -> Callable[[], None]:
    """Return the function that raises if the work of the current context was cancelled."""
    return _current.get()


class CancellableStore:
    """A store that calls `check` before each access, for operations that read much data and rarely report progress.

    Args:
        store: store to read.
        check: function that raises if the work was cancelled. It is called from every thread that reads.
    """

    def __init__(self, store: ReadStore, check: Callable[[], None]) -> None:
        self._store, self._check = store, check
        self.url, self.remote = store.url, store.remote

    def list(self, path: str) -> list[Stat]:
        """See `ReadStore.list`."""
        self._check()
        return self._store.list(path)

    def stat(self, path: str) -> Stat | None:
        """See `ReadStore.stat`."""
        self._check()
        return self._store.stat(path)

    def read(self, path: str, limit: int) -> bytes:
        """See `ReadStore.read`."""
        self._check()
        return self._store.read(path, limit)

    def list_folders(self, paths: Sequence[str]) -> Sequence[Sequence[Stat]]:
        """See `ReadStore.list_folders`."""
        self._check()
        return self._store.list_folders(paths)

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """See `ReadStore.stats`."""
        self._check()
        return self._store.stats(paths)

    def open(self, path: str) -> CancellableReader:
        """See `ReadStore.open`."""
        self._check()
        return CancellableReader(self._store.open(path), self._check)


class CancellableReader:
    """A reader that calls `check` before each read."""

    def __init__(self, reader: Reader, check: Callable[[], None]) -> None:
        self._reader, self._check = reader, check
        self.name, self.size, self.version, self.changed = reader.name, reader.size, reader.version, reader.changed

    @property
    def waits(self) -> bool:
        """See `Reader.waits`."""
        return self._reader.waits

    def read(self, offset: int, length: int) -> bytes:
        """See `Reader.read`."""
        self._check()
        return self._reader.read(offset, length)

    def read_into(self, view: memoryview, offset: int) -> None:
        """See `Reader.read_into`."""
        self._check()
        self._reader.read_into(view, offset)

    def read_runs(self, view: memoryview, length: int, offsets: Sequence[int]) -> None:
        """See `Reader.read_runs`."""
        self._check()
        self._reader.read_runs(view, length, offsets)

    def will_read(self, offset: int, length: int) -> None:
        """See `Reader.will_read`."""
        self._reader.will_read(offset, length)

    def count_in(self, meter: Meter) -> None:
        """See `Reader.count_in`."""
        self._reader.count_in(meter)

    def close(self) -> None:
        """See `Reader.close`."""
        self._reader.close()
