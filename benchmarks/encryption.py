"""Compare encrypted files read and written here with the encryption library on whole blocks of the same bytes.

Every round runs both in turn, on one core, with the file in the page cache. All figures, ratios too, are medians.
With AES-GCM the library authenticates while it decrypts; here that is a separate pass, made by the plan.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from rich.console import Console
from rich.table import Table

from reshard.checkpoint import ckpt_output, encryption
from reshard.checkpoint.blockcipher import cipher_of
from reshard.checkpoint.output import OutputTensor
from reshard.source.encrypted import DecryptingReader
from reshard.spec.keys import KEY_BYTES
from reshard.storage.local import LocalReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from reshard.spec.keys import Mode

ROUNDS = 7
BLOCK = 64 << 20  # MindSpore's
TILE = 1 << 20  # bytes that a transform reads at a time
KEY = bytes(16)
MIB = {"AES-GCM": 256, "AES-CBC": 256, "SM4-CBC": 64}


def library(mode: Mode, iv: bytes) -> Cipher[Any]:
    """The library's cipher of a block."""
    algorithm = algorithms.SM4(KEY) if mode == "SM4-CBC" else algorithms.AES(KEY)
    return Cipher(algorithm, modes.GCM(iv[:12]) if mode == "AES-GCM" else modes.CBC(iv))


def contestants(path: Path, mode: Mode) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Ours and the library's way to do one thing."""
    cipher = cipher_of(mode, KEY)
    plain = memoryview(bytearray(os.urandom(BLOCK)))
    head = next(ckpt_output.pieces([OutputTensor("x", "UInt8", (BLOCK,), BLOCK)]))
    assert isinstance(head, bytes)  # noqa: S101 - and no content yet
    plain[: len(head)] = head
    iv, block, into = bytes(16), memoryview(bytearray(BLOCK)), memoryview(bytearray(BLOCK + 32))
    encryption.BLOCK_BYTES, usual = BLOCK, encryption.BLOCK_BYTES
    with path.open("wb") as file:
        encryptor = encryption.Encryptor(cipher, lambda part: _all(file.write, part))
        for _ in range(MIB[mode] * (1 << 20) // BLOCK):
            encryptor.update(plain)
        encryptor.finish()
    encryption.BLOCK_BYTES = usual
    source = LocalReader(str(path))
    blocks = encryption.read_table(source, cipher)
    reader = DecryptingReader(source, cipher, blocks, remote=False)
    sealed = os.open(path, os.O_RDONLY)

    def raw_read() -> None:
        for number, begin in enumerate(blocks.contents(cipher)):
            os.preadv(sealed, [block], begin)
            library(mode, blocks.iv(number)).decryptor().update_into(block, into)

    def read() -> None:
        for at in range(0, reader.size, TILE):
            reader.read_into(into[:TILE], at)

    def raw_write() -> None:
        context = library(mode, iv).encryptor()
        context.update_into(plain, into)
        context.finalize()

    def write() -> None:
        encryptor = encryption.Encryptor(cipher, lambda _: None)
        for at in range(0, BLOCK, TILE):
            encryptor.update(plain[at : at + TILE])
        encryptor.finish()

    found = {"decrypt": (read, raw_read), "encrypt": (write, raw_write)}
    if cipher.tag_bytes:
        found["check"] = (lambda: encryption.check_tags(source, cipher, blocks), raw_read)
    return found


def _all(write: Callable[[memoryview], int], part: memoryview) -> None:
    while part:
        part = part[write(part) :]


def seconds(act: Callable[[], None]) -> float:
    """Return the duration of a call in seconds."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    table = Table("mode", "what", "library", "Reshard", "of the library's speed")
    with tempfile.TemporaryDirectory() as folder:
        for mode in KEY_BYTES:
            for what, (ours, raw) in contestants(Path(folder) / "file", mode).items():
                nbytes = BLOCK if what == "encrypt" else MIB[mode] << 20
                rounds = [(seconds(ours), seconds(raw)) for _ in range(ROUNDS)]
                rates = [f"{nbytes / 1e9 / statistics.median(taken):.2f} GB/s" for taken in zip(*rounds, strict=True)]
                table.add_row(mode, what, rates[1], rates[0], f"{statistics.median(r / o for o, r in rounds):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
