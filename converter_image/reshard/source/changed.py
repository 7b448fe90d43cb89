"""Source files that changed after their headers were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reshard.errors import DataError

if TYPE_CHECKING:
    from reshard.checkpoint.inventory import Inventory
    from reshard.storage.protocol import ReadStore


def source_changed(path: str, how: str = "changed", *, indexed: bool = False) -> DataError:
    """Return the error for a file that is not the one that the plan was created for.

    Args:
        path: path of the file.
        how: verb that describes the change.
        indexed: whether an index describes the source.
    """
    return DataError(
        "SourceChanged",
        f"the file {how} since the {'source was indexed' if indexed else 'plan was made'}",
        where=path,
        fix=f"wait until training has finished writing, then {'create the index' if indexed else 'run'} again",
    )


def refuse_changed(store: ReadStore, inventory: Inventory) -> None:
    """Refuse files that changed after their headers were read, so that no other error is reported for them.

    Raises:
        DataError: a file does not exist, or has another version.
    """
    there = store.stats([file.path for file in inventory.files])
    for file in inventory.files:
        if (found := there.get(file.path)) is None:
            raise source_changed(file.path, "was deleted")
        if found.version != file.version:
            raise source_changed(file.path)
