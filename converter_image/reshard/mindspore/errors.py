"""Errors that also have the built-in types that MindSpore documents, so that `except` clauses of scripts still work."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from reshard.errors import AccessError, BugError, LockedError, MissingInputError, OutputError, ReshardError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Types = tuple[type[Exception], ...]

# The reason is more specific than the class of these errors.
_OF_REASON: dict[str, _Types] = {"InvalidType": (TypeError,), "PackageMissing": (ImportError,), "NotInStrategy": (KeyError,)}


def documented(folder_reason: str | None = None) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Make a function raise errors that also have the types that MindSpore documents for it.

    | error | also a |
    |---|---|
    | an argument of the wrong type | TypeError |
    | a folder that does not exist, where MindSpore documents it | NotADirectoryError, ValueError |
    | any other file that does not exist | FileNotFoundError, ValueError |
    | a damaged or contradictory input, or an argument with an invalid value | ValueError |
    | access is denied | PermissionError |
    | reading or writing fails, or another run holds the target | OSError |

    Args:
        folder_reason: reason of the error that MindSpore documents as NotADirectoryError.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return function(*args, **kwargs)
            except ReshardError as error:
                found = _rebuilt(type(error), _types(error, folder_reason), error.reason, error.what, error.where, error.fix)
                raise found.with_traceback(error.__traceback__) from error.__cause__

        return call

    return decorate


def _types(error: ReshardError, folder_reason: str | None) -> _Types:
    types: _Types = (ValueError,)
    match error:
        case ReshardError(reason=reason) if reason in _OF_REASON:
            types = _OF_REASON[reason]
        case BugError():
            types = ()
        case AccessError():
            types = (PermissionError,)
        case StorageError() | OutputError() | LockedError():
            types = (OSError,)
        case MissingInputError():
            types = (ValueError, NotADirectoryError if error.reason == folder_reason else FileNotFoundError)
    return types


_known: dict[tuple[Any, _Types], type[ReshardError]] = {}


def _class(kind: type[ReshardError], types: _Types) -> type[ReshardError]:
    """Return the class that combines this error class with these types."""
    if (found := _known.get((kind, types))) is not None:
        return found

    def reduce(self: ReshardError) -> tuple[Any, ...]:
        return _rebuilt, (kind, types, self.reason, self.what, self.where, self.fix)

    members = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": reduce}
    return _known.setdefault((kind, types), type(kind.__name__, (kind, *types), members))


def _rebuilt(kind: type[ReshardError], types: _Types, reason: str, what: str, where: str | None, fix: str | None) -> ReshardError:
    return _class(kind, types)(reason, what, where=where, fix=fix)
