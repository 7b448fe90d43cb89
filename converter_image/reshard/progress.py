"""The progress of a transform, reported to an observer."""

from __future__ import annotations

import threading
from typing import Protocol

from reshard.errors import ReshardError


class Progress(Protocol):
    """Receiver of progress. Its methods are called from several threads."""

    def begin(self, what: str, total: int, unit: str) -> None:
        """Start a phase with `total` steps of `unit` ("bytes", "files")."""

    def advance(self, count: int) -> None:
        """Add the steps completed since the last call."""

    def note(self, text: str) -> None:
        """Report a message for the user."""


class Silent:
    """A receiver that ignores progress."""

    def begin(self, what: str, total: int, unit: str) -> None:
        """See `Progress.begin`."""

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""

    def note(self, text: str) -> None:
        """See `Progress.note`."""


class CancelledError(ReshardError):
    """The work was cancelled. Unfinished files were removed."""

    exit_code = 143
    retryable = True

    def __init__(self) -> None:
        super().__init__("Terminated", "interrupted by a signal", fix="run the command again; finished ranks are kept")


class Cancellation:
    """Cancels work from another thread.

    Args:
        parent: cancellation that also cancels this one, but not vice versa.
    """

    def __init__(self, parent: Cancellation | None = None) -> None:
        self._event = threading.Event()
        self._parent = parent

    def cancel(self) -> None:
        """Cancel the work."""
        self._event.set()

    def check(self) -> None:
        """Return if the work may continue. Work calls this at least once per second.

        Raises:
            CancelledError: the work was cancelled.
        """
        if self._event.is_set():
            raise CancelledError
        if self._parent is not None:
            self._parent.check()
