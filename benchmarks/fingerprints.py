"""`python benchmarks/fingerprints.py`: rate of fingerprints per processor, for the boxes that transforms write."""

from __future__ import annotations

import time
from math import prod

import numpy as np

from reshard.layout.box import Box
from reshard.layout.fingerprint import Fingerprints

_PART_BYTES = 2 << 20
_REPEATS = 15
# Shape of the tensor, start and lengths of the box, and length of an element in bytes.
_BOXES = {
    "rows of 8 KiB": ((8192, 4096), (512, 0), (256, 4096), 2),
    "columns, runs of 1 KiB": ((8192, 8192), (512, 512), (2048, 512), 2),
    "columns, runs of 1000 bytes": ((8192, 8000), (512, 500), (2048, 500), 2),
    "columns, runs of 128 bytes": ((1 << 20, 8192), (512, 64), (16384, 64), 2),
    "one dimension": ((1 << 30,), (1 << 20,), (1 << 20,), 2),
    "convolution": ((4096, 512, 3, 3), (0, 0, 0, 0), (227, 512, 3, 3), 2),
}


def main() -> None:
    """Print the best of several measurements, in GB/s of processor time."""
    memory, fingerprints = np.random.default_rng(0).integers(0, 256, _PART_BYTES, np.uint8), Fingerprints()
    for name, (shape, start, lengths, itemsize) in _BOXES.items():
        content = memory[: prod(lengths) * itemsize][None]
        print(f"{name}: {_rate(fingerprints, content, shape, Box(start, lengths), itemsize):.1f} GB/s")
    for length in (64, 512, 8192):
        content = memory.reshape(-1, length)
        shape = (length // 2,)
        print(f"tensors of {length} bytes: {_rate(fingerprints, content, shape, Box.whole(shape), 2):.1f} GB/s")


def _rate(fingerprints: Fingerprints, content: np.ndarray, shape: tuple[int, ...], box: Box, itemsize: int) -> float:
    seconds = []
    for _ in range(_REPEATS):
        started = time.thread_time()
        fingerprints.of_boxes(content, shape, box, itemsize)
        seconds.append(time.thread_time() - started)
    return content.nbytes / min(seconds) / 1e9


if __name__ == "__main__":
    main()
