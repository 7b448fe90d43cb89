"""Processes that end in the middle of a commit, as Ctrl-C or a lost node ends them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from reshard.target.folder import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.checkpoint.manifest import FileRecord


@contextmanager
def killed_after(files: int) -> Iterator[None]:
    """While the body runs, this process is interrupted once so many files have been put into their places."""
    usual, published = JobState.publish, []

    def publish(self: JobState, record: FileRecord) -> None:
        if len(published) == files:
            raise KeyboardInterrupt
        published.append(record)
        usual(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobState, "publish", publish)
        yield
