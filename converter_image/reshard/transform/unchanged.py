"""Determine from listings and the manifest whether a request is already complete. The listing must identify the source."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reshard.engine.task import key_of
from reshard.source.files import listing_digest
from reshard.spec.ranks import parse_ranks
from reshard.spec.request import STRICTNESS
from reshard.target.snapshot import TaskRecord
from reshard.transform.commit import recorded
from reshard.transform.documents import changed_documents, expected_documents
from reshard.transform.inputs import listing_identifies

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import Manifest
    from reshard.progress import Cancellation
    from reshard.target.folder import TargetFolder
    from reshard.target.snapshot import TargetSnapshot
    from reshard.transform.inputs import Inputs


class Complete(NamedTuple):
    """A complete checkpoint that is the result of a request.

    Attributes:
        target: folder of the checkpoint.
        snapshot: state of the target at one moment.
        manifest: manifest of the checkpoint.
        ranks: requested ranks.
    """

    target: TargetFolder
    snapshot: TargetSnapshot
    manifest: Manifest
    ranks: tuple[int, ...]


def find_complete(inputs: Inputs, target: TargetFolder, cancellation: Cancellation, *, thorough: bool) -> Complete | None:
    """Return the complete checkpoint that is the result of a request, without reading the source's files.

    Return None if only the headers of the source's files can show whether such a checkpoint exists.

    Args:
        inputs: inputs of the request.
        target: target of the request.
        cancellation: object that cancels the work from another thread.
        thorough: whether finished files are read again, to find changes since.

    Raises:
        ReshardError: the request is invalid, or a location cannot be read.
    """
    request = inputs.request
    if not listing_identifies(request, inputs.opened.store):
        return None
    snapshot = target.observe()
    manifest = snapshot.manifest
    if manifest is None or not manifest.source.listing or snapshot.unfinished:
        return None
    strategies, found = inputs.strategies, inputs.files
    paths = list(found.by_rank.values())
    versions = {path: (stat.size, stat.version) for path, stat in inputs.store.stats(paths).items() if stat.version}
    if not versions.keys() >= set(paths):
        return None
    if listing_digest(key_of(request, *strategies), found, versions) != manifest.source.listing:
        return None
    asked, every = request.options.only_ranks, tuple(range(manifest.target_ranks))
    ranks = every if asked is None else tuple(sorted({*parse_ranks(asked, manifest.target_ranks)}))
    document = TaskRecord(manifest.digest, {}, staged=False)
    known = recorded(target, document, snapshot, ranks, cancellation, thorough=thorough)
    wanted = STRICTNESS[request.options.verification]
    finished = all(rank in known and STRICTNESS[known[rank].verified] >= wanted for rank in ranks)
    if not finished or changed_documents(target.store, expected_documents(manifest)):
        return None
    return Complete(target, snapshot, manifest, ranks)
