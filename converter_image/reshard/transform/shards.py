"""Compare the copies of shards that several files hold, and refuse differences that the user has not accepted."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reshard.checkpoint.dtypes import OBJECT
from reshard.errors import DataError
from reshard.parallel import parallel
from reshard.plan.copies import SMALL_BYTES
from reshard.storage.ahead import files_at_once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reshard.model import Place
    from reshard.plan import Model
    from reshard.spec.request import Options
    from reshard.storage.protocol import Reader, ReadStore

_BLOCK_BYTES = 16 << 10
_COMPARED_BYTES = 1 << 20
# Shards that are compared by samples. Each takes up to three reads of two files.
_MOST_SHARDS = 4096
_MOST_REMOTE_SHARDS = 64


class _Copies(NamedTuple):
    """The places of one shard, or of one value that is not a tensor."""

    name: str
    what: str
    places: tuple[Place, ...]


def check_shards(store: ReadStore, model: Model, options: Options, *, workers: int) -> frozenset[str]:
    """Compare copies of shards: small ones whole, others whole with `verification: Full`, otherwise by blocks of some of them.

    Args:
        store: store of the source.
        model: parameters with their shards.
        options: options of the request.
        workers: number of files read at a time.

    Returns:
        The names of the parameters whose copies differ, which the request accepts.

    Raises:
        DataError: copies differ, and the request does not accept that.
    """
    small: list[_Copies] = []
    large: list[_Copies] = []
    for copies in _copies(model):
        (small if max(place.length for place in copies.places) <= SMALL_BYTES else large).append(copies)
    full = options.verification == "Full"
    most = len(large) if full else 0 if options.verification == "None" else _MOST_REMOTE_SHARDS if store.remote else _MOST_SHARDS
    if store.remote and not full:
        small = small[:_MOST_REMOTE_SHARDS]
    chosen = large if most >= len(large) else [large[i * len(large) // most] for i in range(most)]
    files, compared = {file.rank: file.path for file in model.inventory.files}, (*small, *chosen)
    at_once = files_at_once(workers, remote=store.remote)
    with ExitStack() as stack:
        needed = sorted({place.file for copies in compared for place in copies.places})
        opened = parallel(lambda file: store.open(files[file]), needed, at_once=at_once)
        readers = {file: stack.enter_context(closing(reader)) for file, reader in zip(needed, opened, strict=True)}

        def differing(copies: _Copies) -> Place | None:
            """Return the first copy that differs."""
            first, *others = copies.places
            reader = readers[first.file]
            return next((o for o in others if not _equal(reader, first, readers[o.file], o, full=full)), None)

        found = zip(compared, parallel(differing, compared, at_once=at_once), strict=True)
        differ = [(copies, other) for copies, other in found if other is not None]
    if differ and not model.lowest_replica:
        copies, other = differ[0]
        raise _differ(copies, files[copies.places[0].file], files[other.file])
    return frozenset(copies.name for copies, _ in differ)


def _copies(model: Model) -> Iterator[_Copies]:
    """Yield the shards and objects that have several places."""
    objects: defaultdict[str, list[Place]] = defaultdict(list)
    if model.inventory.objects:
        from reshard.model import Place  # noqa: PLC0415 - sources without objects start faster without it
    for each in model.inventory.objects:
        objects[each.name].append(Place(each.file, each.offset, each.length))
    for parameter in model.of_kinds(lambda kind: kind.dtype == OBJECT or kind.placement is not None):
        if parameter.dtype == OBJECT:
            if len(places := objects[parameter.source_name]) > 1:
                yield _Copies(parameter.name, "the value", tuple(places))
        elif parameter.shards is not None:
            for tile in np.flatnonzero(np.diff(parameter.shards.first) > 1).tolist():
                start = list(parameter.shards.tiling.box(tile).start)
                yield _Copies(parameter.name, f"the shard at {start}", tuple(parameter.shards.places(tile)))


def _equal(reader: Reader, place: Place, other_reader: Reader, other: Place, *, full: bool) -> bool:
    """Compare two copies completely, or at the start, in the middle and at the end."""
    if place.length != other.length:
        return False
    size = _COMPARED_BYTES if full or place.length <= SMALL_BYTES else _BLOCK_BYTES
    if full or place.length <= 3 * size:
        starts = list(range(0, place.length, size))
    else:
        starts = [0, (place.length - size) // 2, place.length - size]
    return all(
        reader.read(place.offset + at, min(size, place.length - at))
        == other_reader.read(other.offset + at, min(size, place.length - at))
        for at in starts
    )


def _differ(copies: _Copies, first: str, other: str) -> DataError:
    return DataError(
        "ReplicasDiffer",
        f"{copies.what} differs between {first} and {other}, which both contain it",
        where=f"parameter {copies.name}",
        fix="exclude the parameter, or use the copy in the first file with --replicas lowest-rank"
        " (spec.source.replicas: LowestRank)",
    )
