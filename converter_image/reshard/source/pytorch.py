"""PyTorch checkpoints in a store. They can be inspected, but no transform reads them yet."""

# ruff: noqa: PLC0415 - every command imports this module, and only an inspection of such a checkpoint needs the readers

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from reshard.errors import RequestError
from reshard.formats.torch.names import ENDINGS, metadata_files
from reshard.source.listing import is_candidate, preview

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.formats.torch.archive import Archive
    from reshard.model import Checkpoint
    from reshard.storage.protocol import ReadStore


def read_pytorch(store: ReadStore, chosen: str | None) -> Checkpoint | Archive | None:
    """Return the content of a PyTorch checkpoint: a distributed checkpoint, or one file of `torch.save`.

    Args:
        store: folder of the checkpoint.
        chosen: name of the file in it. None: the folder is the checkpoint.

    Returns:
        The content. None: by the names of the files, this is not a PyTorch checkpoint.

    Raises:
        DataError: the checkpoint is damaged, or contains something that is not supported.
        MissingInputError: a file that the metadata lists does not exist.
    """
    if chosen is not None:
        if not chosen.endswith(ENDINGS):
            return None
        from reshard.formats.torch.archive import read_archive

        with closing(store.open(chosen)) as reader:
            return read_archive(reader)
    from reshard.formats.torch.dcp import check_files, read_metadata
    from reshard.formats.torch.unpickle import LIMITS

    names = _files(store)
    documents = [] if any(map(is_candidate, names)) else metadata_files(names)
    if not documents:
        return None
    found = read_metadata([(f"{store.url}/{name}", store.read(name, LIMITS.nbytes)) for name in documents])
    sizes = {path: stat.size for path, stat in store.stats(found.files).items()}
    check_files(found, sizes, store.url)
    return found


def refuse_pytorch(url: str, names: Sequence[str], chosen: str | None = None) -> None:
    """Refuse a PyTorch checkpoint as the source of a transform.

    Args:
        url: URL of the folder.
        names: names of the files in it.
        chosen: name of the requested file.

    Raises:
        RequestError: by the names of the files, this is a PyTorch checkpoint.
    """
    files = [name for name in names if name.endswith(ENDINGS)] if chosen is None else [chosen]
    if chosen is None and metadata_files(names):
        what, path = "PyTorch distributed checkpoints (DCP) cannot be transformed yet", url
    elif files and files[0].endswith(ENDINGS):
        what, path = f"files of torch.save, such as {preview(files)}, cannot be transformed yet", f"{url}/{min(files)}"
    else:
        return
    raise RequestError(
        "UnsupportedSource",
        what,
        where=url,
        fix=f"run `reshard inspect {path}` to list its tensors, or convert the checkpoint to safetensors with PyTorch",
    )


def _files(store: ReadStore) -> list[str]:
    return [entry.name for entry in store.list("") if not entry.is_folder]
