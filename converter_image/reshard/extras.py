"""Dependencies that are installed with an extra, such as `reshard[s3]`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from reshard.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def needs_extra(extra: str, where: str) -> Iterator[None]:
    """Import packages of an extra in the body.

    Args:
        extra: name of the extra.
        where: feature that requires it, for the message.

    Raises:
        RequestError: the extra is not installed.
    """
    try:
        yield
    except ImportError as error:
        what = f"the package {error.name or error} is required but not installed"
        raise RequestError(
            "PackageMissing", what, where=where, fix=f"install the extra `{extra}`, as in `pip install '.[{extra}]'`"
        ) from error
