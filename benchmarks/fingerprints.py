"""`python benchmarks/fingerprints.py`: rate of fingerprints per processor, and their share of transforms of 2.1 GB."""

from __future__ import annotations

import argparse
import sys
import time
from math import prod
from pathlib import Path

import numpy as np

from cases import CASES, FOLDER, make
from contestants import Settings, contestants
from reshard.layout.box import Box
from reshard.layout.fingerprint import Fingerprints
from run import Measured, processor_of, ratio, run

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


_TRANSFORMS = ("llama-safetensors", "llama-ckpt", "columns")
_WITHOUT = """
import sys
from reshard.engine.file_fingerprints import FileFingerprints
FileFingerprints.add = FileFingerprints.add_small = lambda *_: None
FileFingerprints.records = lambda _: ()
from reshard.cli import main
sys.exit(main(sys.argv[1:]))
"""


def main() -> None:
    """Print the rates, and then the shares of time of transforms with the source in the page cache, and without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each transform. 0: only the rates. Default: 9")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    rates()
    for name in _TRANSFORMS if options.rounds else ():
        shares(name, options.folder, options.rounds)


def shares(name: str, folder: Path, rounds: int) -> None:
    """Print how much longer a transform takes than one that calculates no fingerprints, in alternating rounds."""
    case = next(case for case in CASES if case.name == name)
    target = folder / "target"
    source, commands = contestants(case, make(case, folder), target, Settings(None, "sample"))
    both = {"with": commands["reshard"], "without": [sys.executable, "-c", _WITHOUT, *commands["reshard"][1:]]}
    for cold in (False, True):
        measured = {each: Measured() for each in both}
        for number in range(rounds + 1):
            for each in sorted(both, reverse=bool(number % 2)):
                if not run(both[each], source, target, measured[each] if number else Measured(), cold=cold):
                    sys.exit(f"{name} failed")
        elapsed = ratio(measured["with"], measured["without"])
        processor = ratio(measured["with"], measured["without"], processor_of)
        where = "from the disk" if cold else "from the page cache"
        print(f"{name}, {where}: time x {elapsed}, processor time x {processor}", flush=True)


def rates() -> None:
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
