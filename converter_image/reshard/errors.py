"""The errors of the package.

Each message states in one line what is wrong, where, and how to fix it. An error has a stable `reason` to match on, an exit code
(sysexits.h, see docs/architecture.md), and states whether a retry can help. docs/errors.yaml is the catalogue of reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

DOCUMENTATION = "https://reshard.dev/docs"  # as in [project.urls] of pyproject.toml


class ReshardError(Exception):
    """Base class of all errors of this package.

    Args:
        reason: stable CamelCase name of the kind of failure.
        what: problem, as a clause without a full stop.
        where: file, parameter or option that has the problem.
        fix: remedy, in the imperative.
    """

    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, reason: str, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(reason, what, where, fix)
        self.reason = reason
        self.what = what
        self.where = where
        self.fix = fix

    @property
    def documentation(self) -> str:
        """Address of the entry of the reason in the error catalogue."""
        return documentation(self.reason)

    def __str__(self) -> str:
        """Return the message on one line, with control characters of quoted names escaped."""
        text = f"{self.reason}: "
        if self.where is not None:
            text += f"{self.where}: "
        text += self.what
        if self.fix is not None:
            text += f"; {self.fix}"
        return printable(text)


class UsageError(ReshardError):
    """An invalid command line, option or argument."""

    exit_code = 2


class DataError(ReshardError):
    """A damaged checkpoint or strategy file, or files that contradict each other."""

    exit_code = 65


class MissingInputError(ReshardError):
    """A missing file, rank or parameter."""

    exit_code = 66


class IncomparableError(ReshardError):
    """A file that cannot be compared with its record, because the record does not follow from the content."""

    exit_code = 69


class BugError(ReshardError):
    """A bug in this package."""

    exit_code = 70


class OutputError(ReshardError):
    """Output that cannot be created (no space, read-only)."""

    exit_code = 73
    retryable = True


class StorageError(ReshardError):
    """A failure of reading or writing."""

    exit_code = 74
    retryable = True


class LockedError(ReshardError):
    """A target that another run is writing to."""

    exit_code = 75
    retryable = True


class AccessError(ReshardError):
    """Access denied by a file system or an object store."""

    exit_code = 77


class RequestError(ReshardError):
    """A request that contradicts itself or the content of the target."""

    exit_code = 78


def documentation(reason: str) -> str:
    """Return the address of the entry of a reason in the error catalogue."""
    return f"{DOCUMENTATION}/errors/#{reason.lower()}"


def listed(items: Iterable[object], most: int = 5) -> str:
    """Return the first of some items, and the number of the others."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def printable(text: str) -> str:
    """Return `text` with characters that could move a cursor or forge a log line escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)
