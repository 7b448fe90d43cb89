"""Git LFS pointers: what a clone holds in the place of a large file that was not downloaded."""

from __future__ import annotations

from reshard.errors import DataError

_BEGINNING = b"version https://git-lfs.github.com/spec/"
# A pointer has a version, a hash and a size, and is never longer.
LONGEST_POINTER = 1024


def refuse_pointer(beginning: bytes, where: str) -> None:
    """Refuse a pointer, given the beginning of a file.

    Raises:
        DataError: it is one.
    """
    if beginning.startswith(_BEGINNING):
        raise DataError(
            "GitLfsPointer",
            "the file is a Git LFS pointer, not the content itself",
            where=where,
            fix="run `git lfs pull` in its repository",
        )
