"""One tree of errors.

Every error that a user can meet says in one line what is wrong, where, and what to do; it has a stable `reason` to match on,
an exit code (sysexits.h, as tabled in docs/architecture.md), and says whether another try can help.
"""

from __future__ import annotations

from typing import ClassVar


class ReshardError(Exception):
    """The base of all errors of this package.

    Args:
        reason: a stable CamelCase word that names the kind of failure.
        what: what is wrong, as a clause without a final full stop.
        where: the file, parameter or option that it is about.
        fix: what the user can do about it.
    """

    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, reason: str, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(reason, what, where, fix)
        self.reason = reason
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        """The whole message on one line; whatever hostile names it quotes, no control character gets through."""
        text = f"{self.reason}: "
        if self.where is not None:
            text += f"{self.where}: "
        text += self.what
        if self.fix is not None:
            text += f"; {self.fix}"
        return printable(text)


class UsageError(ReshardError):
    """The command line cannot be understood."""

    exit_code = 2


class DataError(ReshardError):
    """A checkpoint or strategy file is damaged, or two of them contradict each other."""

    exit_code = 65


class MissingInputError(ReshardError):
    """A file, rank or parameter that the request needs is not there."""

    exit_code = 66


class IncomparableError(ReshardError):
    """A file is not known to differ from what was recorded, but what was recorded does not follow from its content."""

    exit_code = 69


class BugError(ReshardError):
    """A promise of this program does not hold: our fault, never the data's."""

    exit_code = 70


class OutputError(ReshardError):
    """The output cannot be created (no space, read-only)."""

    exit_code = 73
    retryable = True


class StorageError(ReshardError):
    """Reading or writing failed underway."""

    exit_code = 74
    retryable = True


class LockedError(ReshardError):
    """Another run is writing to the same target."""

    exit_code = 75
    retryable = True


class AccessError(ReshardError):
    """The file system or the object store denies access."""

    exit_code = 77


class RequestError(ReshardError):
    """The request contradicts itself, or what is at the target already."""

    exit_code = 78


def printable(text: str) -> str:
    """`text` with everything that could move a cursor or forge a log line written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in text)
