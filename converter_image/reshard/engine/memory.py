"""How much memory a transform takes at most, and how it is divided among the ranks under way."""

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

# More ranks at a time hardly make one machine faster, and each takes memory.
MOST_WORKERS = 8
# Upper bounds of what docs/performance.md measures: the interpreter with its libraries, and the buffers of each worker;
_BASE_BYTES = 64 << 20
_BYTES_PER_WORKER = 4 << 20
# for each parameter name, in headers, strategies, inventory and manifest, and in the plans of the ranks under way.
_BYTES_PER_NAME = 4096
_BYTES_PER_CHARACTER = 8
_BYTES_PER_NAME_AND_WORKER = 512
# With an object store: its client, what all workers together fetch ahead, and what they have yet to send.
_CLIENT_BYTES = 32 << 20
_AHEAD_BYTES = 56 << 20
_UPLOAD_BYTES = 48 << 20
# With encryption: its library.
_CIPHERS_BYTES = 16 << 20
_LEAST_AHEAD_BYTES = 8 << 20
_LEAST_UPLOAD_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Budget:
    """What one rank may hold in memory of what comes from, and goes to, an object store.

    Attributes:
        ahead: bytes that are fetched before they are needed.
        upload: bytes that wait to be sent.
    """

    ahead: int = _AHEAD_BYTES
    upload: int = _UPLOAD_BYTES


def default_workers() -> int:
    """As many ranks at a time as this process may use processors, within reason."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS))


def budget(workers: int) -> Budget:
    """The part of each of so many ranks under way.

    >>> budget(2).ahead >> 20, budget(16).ahead >> 20
    (28, 8)
    """
    return Budget(max(_LEAST_AHEAD_BYTES, _AHEAD_BYTES // workers), max(_LEAST_UPLOAD_BYTES, _UPLOAD_BYTES // workers))


def memory_bytes(
    model: Model,
    workers: int,
    source: ReadStore,
    target: Store,
    sizes: Iterable[int],
    *,
    decrypts: bool = False,
    encrypts: bool = False,
) -> int:
    """The most memory that a process takes for this model, known before it starts; docs/performance.md has the measurements.

    Args:
        model: what is to be done.
        workers: how many ranks at a time.
        source: the storage that is read from.
        target: the storage that is written to.
        sizes: lengths of the target's files.
        decrypts: whether the source is encrypted.
        encrypts: whether the target is to be.
    """
    names = [tensor.name for structure in model.inventory.structures for tensor in structure.tensors]
    active = min(workers, model.target_ranks)
    each = _BYTES_PER_NAME + active * _BYTES_PER_NAME_AND_WORKER
    local = _BASE_BYTES + active * _BYTES_PER_WORKER + len(names) * each + sum(map(len, names)) * _BYTES_PER_CHARACTER
    share = budget(active)
    client = _CLIENT_BYTES if source.remote or target.remote else 0
    ahead = active * share.ahead if source.remote else 0
    ciphers = _CIPHERS_BYTES if decrypts or encrypts else 0
    ciphers += ahead if decrypts else 0  # as much again waits to be decrypted
    ciphers += active * BLOCK_BYTES if encrypts else 0
    return local + client + ahead + ciphers + active * target.write_cost(max(sizes, default=0), share.upload).memory


def peak_rss_bytes() -> int:
    """The most memory that this process has had so far."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    # Elsewhere than on Linux. It may count what the process was before it became this program.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
