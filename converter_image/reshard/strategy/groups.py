"""Files of communication groups (MindSpore's GROUP_INFO_FILE): which ranks' checkpoints can stand in for each other."""

from __future__ import annotations

from reshard.errors import DataError
from reshard.strategy.protobuf_form import decode_restore_ranks
from reshard.strategy.records import MalformedError


def restore_ranks(content: bytes, name: str) -> tuple[int, ...]:
    """The ranks whose checkpoints hold what that of the rank holds which wrote a file, in its order.

    Args:
        content: the content of the file. What is built from it is bounded, as its length is by the caller.
        name: the name of the file, for messages.

    Raises:
        DataError: it is no such file, or has no list of such ranks.
    """
    try:
        return decode_restore_ranks(content)
    except MalformedError as error:
        raise DataError(
            "GroupInfoInvalid", error.what, where=name, fix="use the file that MindSpore wrote to GROUP_INFO_FILE"
        ) from None
