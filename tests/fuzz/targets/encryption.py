"""Fuzz encrypted files: their blocks fill the file, as they were expected to."""

from __future__ import annotations

import numpy as np
import rawfiles
from inputs import Reader

from reshard.checkpoint.blockcipher import cipher_of
from reshard.checkpoint.encryption import check_tags, read_table, table_reads, tag_reads

KEY = bytes(range(16))
PLAIN = rawfiles.ckpt({"a": np.arange(40, dtype=np.float32)}, crc=True)
CIPHERS = tuple(cipher_of(mode, KEY) for mode in ("AES-GCM", "AES-CBC", "SM4-CBC"))
SEALED = (rawfiles.encrypted(PLAIN, cipher.mode, KEY, 100) for cipher in CIPHERS)
SEEDS = [bytes([number]) + content for number, content in enumerate(SEALED)]


def read(content: bytes) -> None:
    cipher = CIPHERS[content[0] % len(CIPHERS) if content else 0]
    reader = Reader(content[1:], "fuzz.ckpt")
    assert all(0 <= at <= at + n <= reader.size for at, n in table_reads(reader, cipher))
    found = read_table(reader, cipher)
    starts = found.contents(cipher)
    assert not starts or starts[-1] + cipher.sealed(found.lengths[-1]) == reader.size, "the blocks do not fill the file"
    assert all(0 <= at <= at + n <= reader.size for at, n in tag_reads(cipher, found))
    check_tags(reader, cipher, found)
