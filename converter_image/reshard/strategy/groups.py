"""Communication group files (MindSpore's GROUP_INFO_FILE): ranks whose checkpoints are interchangeable."""

from __future__ import annotations

from reshard.errors import DataError
from reshard.strategy.protobuf_form import decode_restore_ranks
from reshard.strategy.records import MalformedError


def restore_ranks(content: bytes, name: str) -> tuple[int, ...]:
    """Return the ranks whose checkpoints equal the one of the rank that wrote a file, in the order of the file.

    Args:
        content: the content of the file. What is built from it is bounded, as its length is by the caller.
        name: the name of the file, for messages.

    Raises:
        DataError: the content is not a communication group file, or has no list of ranks.
    """
    try:
        return decode_restore_ranks(content)
    except MalformedError as error:
        raise DataError(
            "GroupInfoInvalid", error.what, where=name, fix="use the file that MindSpore wrote to GROUP_INFO_FILE"
        ) from None
