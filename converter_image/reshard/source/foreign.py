"""Read checkpoints whose metadata states the shards of their tensors, for `reshard inspect`."""

# ruff: noqa: PLC0415 - every command imports this module, and only an inspection of such a checkpoint needs the readers

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from reshard.formats.registry import detect
from reshard.formats.torch.names import ENDINGS, complete_metadata
from reshard.source.boxed import find_boxed
from reshard.source.listing import is_candidate

if TYPE_CHECKING:
    from reshard.formats.torch.archive import Archive
    from reshard.model import Checkpoint
    from reshard.storage.protocol import ReadStore


class Foreign(NamedTuple):
    """A checkpoint of a format in `reshard.formats`.

    Attributes:
        format: name of the format.
        content: tensors of the checkpoint, or of one `torch.save` file.
    """

    format: str
    content: Checkpoint | Archive


def read_foreign(store: ReadStore, chosen: str | None) -> Foreign | None:
    """Return the content of a checkpoint as far as its metadata states it.

    A transform reads more of a distributed checkpoint of PyTorch, and refuses more: the head of each tensor in its files.

    Args:
        store: folder of the checkpoint.
        chosen: name of the file in it. None: the folder is the checkpoint.

    Returns:
        The content. None: by the names of the files, this is not a checkpoint of these formats.

    Raises:
        DataError: the checkpoint is damaged, or contains something that is not supported.
        MissingInputError: a file that the metadata lists does not exist.
        RequestError: the format is known but not supported, or the folder contains other checkpoint files too.
    """
    names = [chosen] if chosen is not None else [entry.name for entry in store.list("") if not entry.is_folder]
    found = detect(names)
    if found is None:
        return None
    if chosen is not None and chosen.endswith(ENDINGS):
        from reshard.formats.torch.archive import read_archive

        with closing(store.open(chosen)) as reader:
            return Foreign(found.name, read_archive(reader))
    documents = [] if any(map(is_candidate, names)) else complete_metadata(names, store.url)
    if documents:
        return Foreign(found.name, _read_metadata(store, documents))
    boxed = find_boxed(store, names, one_file=chosen is not None)
    return Foreign(boxed.format, boxed.checkpoint) if boxed else None


def _read_metadata(store: ReadStore, documents: list[str]) -> Checkpoint:
    from reshard.formats.torch.dcp import read_documents, read_metadata
    from reshard.formats.torch.reader import check_files

    found = read_metadata(read_documents(store, documents))
    check_files(found, {path: stat.size for path, stat in store.stats(found.files).items()}, store.url)
    return found
