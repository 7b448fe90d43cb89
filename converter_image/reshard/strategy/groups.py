"""Communication group files (MindSpore's GROUP_INFO_FILE), which list ranks with interchangeable checkpoints."""

from __future__ import annotations

from reshard.errors import DataError
from reshard.strategy.protobuf_form import decode_restore_ranks
from reshard.strategy.records import MalformedError


def restore_ranks(content: bytes, name: str) -> tuple[int, ...]:
    """Return the ranks whose checkpoints equal that of the rank that wrote a file, in file order.

    Args:
        content: content of the file, whose length the caller limits. The size of the result is limited here.
        name: name of the file, for messages.

    Raises:
        DataError: the content is not a communication group file, or has no list of ranks.
    """
    try:
        return decode_restore_ranks(content)
    except MalformedError as error:
        raise DataError(
            "GroupInfoInvalid", error.what, where=name, fix="use the file that MindSpore wrote to GROUP_INFO_FILE"
        ) from None
