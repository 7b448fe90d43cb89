"""Calculate the maximum memory of a transform, and divide it among concurrent ranks."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from dataclasses import dataclass, field
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

from reshard.checkpoint.dtypes import OBJECT
from reshard.checkpoint.encryption import BLOCK_BYTES
from reshard.plan.passes import Limits
from reshard.storage.ahead import GAP_BYTES, longest_request
from reshard.storage.buffers import ALIGNMENT, STAGE_BYTES, BufferPool
from reshard.storage.local.descriptors import writable_files
from reshard.target.task import RECORDS_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.plan import Model
    from reshard.storage.protocol import ReadStore, Store

# Bytes that are cut and cast at a time: few enough to stay in the CPU cache between these steps.
TILE_BYTES = (1 << 20) - ALIGNMENT
# Bytes of a rank's file that are produced, and handed to another thread, at a time. Smaller parts would take more processor time.
PART_BYTES = (2 << 20) - ALIGNMENT
BUFFER_BYTES = PART_BYTES + ALIGNMENT
# More concurrent ranks rarely make one machine faster, and each takes memory.
MOST_WORKERS = 8
# Upper bounds of the measurements in docs/performance.md: the interpreter with its libraries, and the buffers of each worker;
_BASE_BYTES = 64 << 20
_BYTES_PER_WORKER = 4608 << 10
# for each parameter name, in headers, strategies, inventory and manifest, and in the plans of concurrent ranks.
_BYTES_PER_NAME = 2560
_BYTES_PER_CHARACTER = 8
_BYTES_PER_NAME_AND_WORKER = 512
# For each tensor whose shards metadata locates, if none has the placement of another: once, and in the plans of concurrent ranks.
_BYTES_PER_SHARDED = 6144
_BYTES_PER_SHARDED_AND_WORKER = 4096
# For each shard that metadata locates: in the metadata of all ranks, and in the plans of concurrent ranks that read it.
_BYTES_PER_SHARD = 1280
_BYTES_PER_COPY = 1024
# For each value of the source that is not a tensor: in its metadata and, if it is written, in plans and documents of the target.
_BYTES_PER_OBJECT = 4096
_BYTES_PER_WRITTEN_OBJECT = 5120
# For each name that is not in the files, or whose metadata was not read.
_BYTES_PER_ABSENT_NAME = 768
# In a process that parses metadata of which the request excludes some: for each excluded name, and each byte of documents.
_BYTES_PER_EXCLUDED_NAME = 1024
_BYTES_PER_PARSED = 6
# In a commit: for each target rank, the record of its file, its entry in the manifest, for its parameters of each shape a digest
# of their fingerprints, and for each parameter one bit. The records that are read at the same time, encoded and decoded.
_BYTES_PER_RANK = 3 << 10
_BYTES_PER_RANK_AND_KIND = 320
_NAMES_PER_BYTE = 7
_RECORDS_BYTES = 6 * RECORDS_BYTES
# For each slice of the target whose location is in a document.
_BYTES_PER_LOCATED_SLICE = 768
# With an object store: its client, prefetched data, and data to upload, for all workers together.
_CLIENT_BYTES = 34 << 20
_AHEAD_BYTES = 56 << 20
_UPLOAD_BYTES = 48 << 20
# The start of a written file in an object store, which is prefetched to verify the headers.
HEADERS_AHEAD_BYTES = 8 << 20
# A pass over the source that writes several ranks: batches of a local source, tiles of all files, and data to upload for them.
# A batch that fills a tile of each of up to eight files takes fewer and longer copies.
_BATCHES_BYTES = 32 << 20
_SMALLEST_BATCH = 8 << 20
_LARGEST_BATCH = 16 << 20
_REMOTE_BATCHES = 4
_TILES_BYTES = 64 << 20
_LARGEST_TILE = PART_BYTES
_LARGEST_REMOTE_TILE = TILE_BYTES
_SMALLEST_TILE = 256 << 10
_PASS_UPLOAD_BYTES = 128 << 20
# The tensors and shards in the plans of all its files, each of which takes at most _BYTES_PER_COPY.
_PASS_TENSORS = 1 << 16
# Threads in addition to the workers: those that write local files, which wait for the disk, and those that write equal files.
_PASS_WRITES = 4
_EQUAL_WRITES = 4
_LOCAL_READERS = 2
_LOCAL_REQUEST = 1 << 20
# Shorter contiguous reads cost more than the copy in memory that a pass takes: as system calls, or as requests.
_SHORT_READ = 64 << 10
_SHORT_REQUEST = 4 << 20
_LOCAL_GAP = 16 << 10
# With a local disk: data that is prefetched past the page cache, and the number of threads that write at the same time, each of
# them one buffer: for one worker, and for all. More do not make disks faster.
_DISK_AHEAD_BYTES = 8 << 20
_ALL_DISK_AHEAD_BYTES = 16 << 20
_WRITES = 2
_ALL_WRITES = 8
# With casts: elements before and after, for each worker.
_CAST_BYTES_PER_WORKER = 8 << 20
# With encryption: its library.
_CIPHERS_BYTES = 16 << 20
_LEAST_AHEAD_BYTES = 8 << 20
_LEAST_UPLOAD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory and the threads of one rank for data on its way.

    Attributes:
        ahead: number of bytes to prefetch from an object store.
        upload: number of bytes that are buffered for uploads.
        disk_ahead: number of bytes to prefetch from a disk.
        writes: number of threads that write to a disk.
        windows: pool of the buffers for prefetched data, which ranks with the same budget share.
    """

    ahead: int = _AHEAD_BYTES
    upload: int = _UPLOAD_BYTES
    disk_ahead: int = _DISK_AHEAD_BYTES
    writes: int = _WRITES
    windows: BufferPool = field(default_factory=BufferPool, compare=False)


@dataclass(frozen=True, slots=True)
class PassBudget:
    """The memory and the threads of a pass over the source that writes several ranks.

    Attributes:
        batch: number of bytes of the source that are fetched together.
        batches: number of batches in memory.
        gap: gaps of at most this many bytes between two ranges are fetched as well.
        longest: number of bytes of the longest request.
        grouped: total length of short reads that one thread makes one after the other.
        fetchers: number of threads that read.
        workers: number of threads that produce files.
        equal: number of other threads that write the parts of equal files, and verify them.
        tile: number of bytes of a file that are emitted at a time.
        upload: number of bytes that are buffered for the upload of each file.
    """

    batch: int
    batches: int
    gap: int
    longest: int
    grouped: int
    fetchers: int
    workers: int
    equal: int
    tile: int
    upload: int


def default_workers() -> int:
    """Return the default number of concurrent ranks: the available processors, up to a maximum."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS))


def budget(workers: int) -> Budget:
    """Return the memory budget of each of `workers` concurrent ranks.

    >>> budget(2).ahead >> 20, budget(16).ahead >> 20
    (28, 8)
    """
    return Budget(
        max(_LEAST_AHEAD_BYTES, _AHEAD_BYTES // workers),
        max(_LEAST_UPLOAD_BYTES, _UPLOAD_BYTES // workers),
        min(_DISK_AHEAD_BYTES, _ALL_DISK_AHEAD_BYTES // workers),
        max(1, min(_WRITES, _ALL_WRITES // workers)),
    )


def pass_limits(source: ReadStore, target: Store, size: int, *, encrypts: bool) -> Limits:
    """Return the limits of a pass that writes files of at most `size` bytes."""
    files = _TILES_BYTES // (BLOCK_BYTES if encrypts else _SMALLEST_TILE)
    if target.remote:
        files = min(files, max(1, _PASS_UPLOAD_BYTES // target.write_cost(size, 0).memory))
    run = _SHORT_REQUEST if source.remote else _SHORT_READ
    few = 1 if source.remote or target.remote else MOST_WORKERS
    equal = not (target.remote or encrypts)  # each file that is encrypted has content of its own
    return Limits(files, _PASS_TENSORS, equal=equal, few=few, run=run, ranks=sys.maxsize if target.remote else writable_files())


def pass_budget(files: int, workers: int, source: ReadStore, target: Store) -> PassBudget:
    """Return the budget of a pass that writes this number of different files."""
    largest = _LARGEST_REMOTE_TILE if target.remote else _LARGEST_TILE
    tile = max(_SMALLEST_TILE, min(largest, _TILES_BYTES // files // ALIGNMENT * ALIGNMENT))
    batch = max(_SMALLEST_BATCH, min(_LARGEST_BATCH, files * (tile + ALIGNMENT)))
    return PassBudget(
        batch=_AHEAD_BYTES // _REMOTE_BATCHES if source.remote else batch,
        batches=_REMOTE_BATCHES if source.remote else _BATCHES_BYTES // batch,
        gap=GAP_BYTES if source.remote else _LOCAL_GAP,
        longest=longest_request(_AHEAD_BYTES) if source.remote else _LOCAL_REQUEST,
        grouped=0 if source.remote else _LOCAL_REQUEST,
        fetchers=_AHEAD_BYTES // longest_request(_AHEAD_BYTES) if source.remote else _LOCAL_READERS,
        workers=workers if target.remote else workers + _PASS_WRITES,
        equal=_EQUAL_WRITES,
        tile=tile,
        upload=_PASS_UPLOAD_BYTES // files,
    )


def memory_bytes(  # noqa: PLR0913 - independent quantities
    model: Model,
    workers: int,
    source: ReadStore,
    target: Store,
    sizes: Iterable[int],
    *,
    files: int = 0,
    ranks: int = 0,
    copies: int = 0,
    decrypts: bool = False,
    encrypts: bool = False,
    locates: bool = False,
    parses: bool = False,
) -> int:
    """Return the maximum memory of a process for this model, before it starts. docs/performance.md has the measurements.

    Args:
        model: parameters and their layouts.
        workers: number of concurrent ranks.
        source: store of the source.
        target: store of the target.
        sizes: sizes of the target's files in bytes.
        files: largest number of files in a pass over the source, where equal files count as one, or 0 without passes. The bound
            holds for passes with fewer files too.
        ranks: largest number of ranks in such a pass.
        copies: largest number of shards that one target rank reads, if metadata locates the shards.
        decrypts: whether the source is encrypted.
        encrypts: whether the target will be encrypted.
        locates: whether documents of the target contain the location of each slice.
        parses: whether the process parses the metadata of the source, instead of an index or a plan.
    """
    inventory = model.inventory
    names = sum(len(structure.tensors) for structure in inventory.structures) + len(inventory.tensors)
    written = len(model.of_kinds(lambda kind: kind.dtype == OBJECT))
    common = _BASE_BYTES + _described_bytes(model, parses=parses) + written * _BYTES_PER_WRITTEN_OBJECT
    common += _CLIENT_BYTES if source.remote or target.remote else 0
    common += _CIPHERS_BYTES if decrypts or encrypts else 0
    encrypted = BLOCK_BYTES + (0 if target.remote else STAGE_BYTES)
    largest, casts = max(sizes, default=0), any(parameter.cast for parameter in model.parameters)

    active = min(workers, model.target_ranks)
    planned = min(active + 1, model.target_ranks)  # one more rank is verified
    share = budget(active)
    writes = 1 if target.remote else share.writes
    alone = active * (writes + 1) * BUFFER_BYTES + planned * (_BYTES_PER_WORKER + names * _BYTES_PER_NAME_AND_WORKER)
    alone += HEADERS_AHEAD_BYTES if target.remote and planned > active else 0
    alone += 0 if source.remote else active * share.disk_ahead
    alone += active * (_CAST_BYTES_PER_WORKER if casts else 0) + planned * len(inventory.tensors) * _BYTES_PER_SHARDED_AND_WORKER
    alone += planned * copies * _BYTES_PER_COPY if inventory.tensors or inventory.objects else 0
    # Ciphertext that waits for decryption takes the same again.
    alone += active * share.ahead * (1 + decrypts) if source.remote else 0
    alone += active * encrypted if encrypts else 0
    uploads = active * target.write_cost(largest, share.upload).memory  # a store keeps these buffers until it is closed

    slices = sum(prod(parameter.kind.target.parts) for parameter in model.parameters) if locates else 0
    kinds = len({(kind.target_shape, kind.target, kind.target_stages) for kind in model.kinds})
    alone = max(alone, commit_bytes(model.target_ranks, len(model.parameters), kinds, slices))
    if not files:
        return common + uploads + alone
    plans = min(_PASS_TENSORS, ranks * (names + copies)) * _BYTES_PER_COPY
    located = min(_PASS_TENSORS // 2, ranks * len(inventory.tensors))  # each counts with its shards
    plans += located * _BYTES_PER_SHARDED_AND_WORKER

    def of_pass(files: int) -> int:
        each = pass_budget(files, workers, source, target)
        together = plans + each.batch * each.batches * (1 + (decrypts and source.remote)) + files * each.tile
        together += (each.workers + each.equal) * _BYTES_PER_WORKER
        together += each.workers * _CAST_BYTES_PER_WORKER + files * each.tile if casts else 0
        together += files * encrypted if encrypts else 0
        return max(uploads, files * target.write_cost(largest, each.upload).memory) + max(alone, together)

    return common + max(map(of_pass, range(1, files + 1)))  # another pass, or another run, may have fewer files


def _described_bytes(model: Model, *, parses: bool) -> int:
    """Return the memory of what describes the source: parameters, other values, shards, and names that are not in the files."""
    inventory = model.inventory
    sharded, objects = inventory.tensors, [each.name for each in inventory.objects]
    names = [entry.name for structure in inventory.structures for entry in structure.tensors]
    names += [tensor.name for tensor in sharded]
    absent = [*model.not_in_files, *model.target_only, *model.in_other_stages, *inventory.unread]
    found = len(names) * _BYTES_PER_NAME + sum(map(len, chain(names, objects, absent))) * _BYTES_PER_CHARACTER
    found += len(objects) * _BYTES_PER_OBJECT + len(absent) * _BYTES_PER_ABSENT_NAME
    found += len(sharded) * _BYTES_PER_SHARDED + sum(tensor.count for tensor in sharded) * _BYTES_PER_SHARD
    if parses and inventory.unread:
        documents = inventory.files[len(inventory.files) - inventory.documents :]
        found += len(inventory.unread) * _BYTES_PER_EXCLUDED_NAME + sum(file.size for file in documents) * _BYTES_PER_PARSED
    return found


def commit_bytes(ranks: int, names: int, kinds: int, slices: int = 0) -> int:
    """Return the maximum memory of a commit, in addition to what each parameter takes.

    Args:
        ranks: number of target ranks.
        names: number of parameters.
        kinds: number of kinds of parameters, which have the same shape and layout in the target.
        slices: number of slices whose location is in a document.
    """
    each = _BYTES_PER_RANK + kinds * _BYTES_PER_RANK_AND_KIND + names // _NAMES_PER_BYTE
    return _RECORDS_BYTES + ranks * each + slices * _BYTES_PER_LOCATED_SLICE


def peak_rss_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    # On systems other than Linux. This may include memory of the program that this process ran before.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
