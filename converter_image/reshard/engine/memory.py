"""Calculate the maximum memory of a transform, and divide it among concurrent ranks."""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.checkpoint.encryption import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reshard.plan import Model
    from reshard.storage.protocol import ReadStore, Store

# More concurrent ranks rarely make one machine faster, and each takes memory.
MOST_WORKERS = 8
# Upper bounds of the measurements in docs/performance.md: the interpreter with its libraries, and the buffers of each worker;
_BASE_BYTES = 64 << 20
_BYTES_PER_WORKER = 6 << 20
# for each parameter name, in headers, strategies, inventory and manifest, and in the plans of concurrent ranks.
_BYTES_PER_NAME = 4096
_BYTES_PER_CHARACTER = 8
_BYTES_PER_NAME_AND_WORKER = 512
# For each shard that metadata locates: in the metadata of all ranks, and in the plans of concurrent ranks that read it.
_BYTES_PER_SHARD = 768
_BYTES_PER_COPY = 1024
# With an object store: its client, prefetched data, and data to upload, for all workers together.
_CLIENT_BYTES = 32 << 20
_AHEAD_BYTES = 56 << 20
_UPLOAD_BYTES = 48 << 20
# With casts: elements before and after, for each worker.
_CAST_BYTES_PER_WORKER = 8 << 20
# With encryption: its library.
_CIPHERS_BYTES = 16 << 20
_LEAST_AHEAD_BYTES = 8 << 20
_LEAST_UPLOAD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """The memory of one rank for data from and to an object store.

    Attributes:
        ahead: number of bytes to prefetch.
        upload: number of bytes that are buffered for uploads.
    """

    ahead: int = _AHEAD_BYTES
    upload: int = _UPLOAD_BYTES


def default_workers() -> int:
    """Return the default number of concurrent ranks: the available processors, up to a maximum."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS))


def budget(workers: int) -> Budget:
    """Return the memory budget of each of `workers` concurrent ranks.

    >>> budget(2).ahead >> 20, budget(16).ahead >> 20
    (28, 8)
    """
    return Budget(max(_LEAST_AHEAD_BYTES, _AHEAD_BYTES // workers), max(_LEAST_UPLOAD_BYTES, _UPLOAD_BYTES // workers))


def memory_bytes(  # noqa: PLR0913 - independent quantities
    model: Model,
    workers: int,
    source: ReadStore,
    target: Store,
    sizes: Iterable[int],
    *,
    copies: int = 0,
    decrypts: bool = False,
    encrypts: bool = False,
) -> int:
    """Return the maximum memory of a process for this model, before it starts. docs/performance.md has the measurements.

    Args:
        model: parameters and their layouts.
        workers: number of concurrent ranks.
        source: store of the source.
        target: store of the target.
        sizes: sizes of the target's files in bytes.
        copies: largest number of shards that one target rank reads, if metadata locates the shards.
        decrypts: whether the source is encrypted.
        encrypts: whether the target will be encrypted.
    """
    names = [tensor.name for structure in model.inventory.structures for tensor in structure.tensors]
    names += [tensor.name for tensor in model.inventory.tensors]
    active = min(workers, model.target_ranks)
    each = _BYTES_PER_NAME + active * _BYTES_PER_NAME_AND_WORKER
    local = _BASE_BYTES + active * _BYTES_PER_WORKER + len(names) * each + sum(map(len, names)) * _BYTES_PER_CHARACTER
    local += active * _CAST_BYTES_PER_WORKER if any(parameter.cast for parameter in model.parameters) else 0
    shards = sum(tensor.count for tensor in model.inventory.tensors)
    local += shards * _BYTES_PER_SHARD + (active * copies * _BYTES_PER_COPY if shards else 0)
    share = budget(active)
    client = _CLIENT_BYTES if source.remote or target.remote else 0
    ahead = active * share.ahead if source.remote else 0
    ciphers = _CIPHERS_BYTES if decrypts or encrypts else 0
    ciphers += ahead if decrypts else 0  # ciphertext that waits for decryption takes the same again
    ciphers += active * BLOCK_BYTES if encrypts else 0
    return local + client + ahead + ciphers + active * target.write_cost(max(sizes, default=0), share.upload).memory


def peak_rss_bytes() -> int:
    """Return the peak memory of this process in bytes."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    # On systems other than Linux. This may include memory of the program that this process ran before.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
