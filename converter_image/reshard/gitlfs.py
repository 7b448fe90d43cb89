"""Git LFS pointers, which a clone contains instead of large files that were not downloaded."""

from __future__ import annotations

from reshard.errors import DataError

_BEGINNING = b"version https://git-lfs.github.com/spec/"
# A pointer consists of a version, a hash and a size, and is never longer.
LONGEST_POINTER = 1024


def refuse_pointer(beginning: bytes, where: str) -> None:
    """Refuse a pointer, given the first bytes of a file.

    Raises:
        DataError: the file is a pointer.
    """
    if beginning.startswith(_BEGINNING):
        raise DataError(
            "GitLfsPointer",
            "the file is a Git LFS pointer, not the content itself",
            where=where,
            fix="run `git lfs pull` in its repository",
        )
