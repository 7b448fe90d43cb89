"""How far a transform is: told to whoever wants to show it."""

from __future__ import annotations

import threading
from typing import Protocol

from reshard.errors import ReshardError


class Progress(Protocol):
    """Receives what happens. Called from several threads."""

    def begin(self, what: str, total: int, unit: str) -> None:
        """A phase begins: `total` of `unit` ("bytes", "files") lie ahead."""

    def advance(self, count: int) -> None:
        """So much of the phase is done since the last call."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int, unit: str) -> None:
        """See `Progress.begin`."""

    def advance(self, count: int) -> None:
        """See `Progress.advance`."""

    def note(self, text: str) -> None:
        """See `Progress.note`."""


class CancelledError(ReshardError):
    """The work was called off; what was half done is cleared away."""

    exit_code = 143
    retryable = True

    def __init__(self) -> None:
        super().__init__("Terminated", "interrupted by a signal", fix="run the command again; finished ranks are kept")


class Cancellation:
    """Cancels work from another thread.

    Args:
        parent: cancelling it cancels this one too, but not the other way round.
    """

    def __init__(self, parent: Cancellation | None = None) -> None:
        self._event = threading.Event()
        self._parent = parent

    def cancel(self) -> None:
        """Cancel the work."""
        self._event.set()

    def check(self) -> None:
        """Return if the work goes on. Work calls this at least once a second.

        Raises:
            CancelledError: the work is cancelled.
        """
        if self._event.is_set():
            raise CancelledError
        if self._parent is not None:
            self._parent.check()
