"""Processes that end during a commit, as by Ctrl-C or a lost node."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from reshard.storage.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def killed_after(files: int) -> Iterator[None]:
    """Interrupt this process, while the body runs, after a number of staged files were moved to their places."""
    usual, moved, lock = LocalStore.move, set[str](), threading.Lock()

    def move(self: LocalStore, path: str, to: str, **options: bool) -> None:
        with lock:
            if "/staging/" in path:
                if len(moved) == files:
                    raise KeyboardInterrupt
                moved.add(path)
            usual(self, path, to, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "move", move)
        yield
