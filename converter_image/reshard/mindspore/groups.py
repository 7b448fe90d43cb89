"""Which ranks hold the same: what MindSpore notes down of its communication groups."""

from __future__ import annotations

from reshard.source.strategies import read_restore_ranks


def restore_group_info_list(group_info_file_name: str) -> list[int]:
    """The ranks whose checkpoints can replace that of the rank that wrote a file of communication groups (GROUP_INFO_FILE).

    Unlike MindSpore's: a file without such a list is an error, where MindSpore means to refuse it and returns no ranks.

    Args:
        group_info_file_name: the file.

    Raises:
        DataError: it is damaged, or has no such list.
        MissingInputError: there is no such file.
    """
    return list(read_restore_ranks(group_info_file_name))
