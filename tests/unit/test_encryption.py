"""Encrypted files, read and written in pieces, compared with the library's encryption of whole blocks; and malicious files."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rawfiles
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryReader

from reshard.checkpoint import encryption
from reshard.checkpoint.blockcipher import cipher_of
from reshard.errors import AccessError, DataError, ReshardError
from reshard.source.encrypted import decrypting
from reshard.spec.keys import KEY_BYTES

if TYPE_CHECKING:
    from reshard.checkpoint.blockcipher import BlockCipher
    from reshard.source.encrypted import DecryptingReader
    from reshard.spec.keys import Mode

CASES = [(mode, length) for mode, lengths in KEY_BYTES.items() for length in lengths]
MODES = list(KEY_BYTES)
KEY = bytes(range(16))
CONTENT = rawfiles.ckpt({"first": np.arange(900, dtype=np.uint32), "second": np.ones(5, np.int8)})


def cipher(mode: Mode, key: bytes = KEY) -> BlockCipher:
    return cipher_of(mode, key)


def sealed(mode: str, key: bytes = KEY, block: int = 512, content: bytes = CONTENT) -> MemoryReader:
    return MemoryReader("rank_0/a.ckpt", rawfiles.encrypted(content, mode, key, block))


def opened(content: bytes, mode: Mode, *, check: bool = True) -> DecryptingReader:
    return decrypting(MemoryReader("rank_0/a.ckpt", content), cipher(mode), remote=False, check=check)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(("mode", "length"), CASES)
def test_every_part_is_read_as_it_was(mode: Mode, length: int, *, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.source.encrypted._PIECE_BYTES", 64)
    key = os.urandom(length)

    @examples(40)
    @given(st.integers(64, 5000), st.data())
    def check(block: int, data: st.DataObject) -> None:
        reader = decrypting(sealed(mode, key, block), cipher(mode, key), remote=remote, check=True)
        assert reader.size == len(CONTENT)
        at = data.draw(st.integers(0, len(CONTENT)))
        n = data.draw(st.integers(0, len(CONTENT) - at))
        assert reader.read(at, n) == CONTENT[at : at + n]
        run = data.draw(st.integers(1, 40))
        offsets = sorted(data.draw(st.lists(st.integers(0, len(CONTENT) - run), min_size=1, max_size=9)))
        view = memoryview(bytearray(run * len(offsets)))
        reader.read_runs(view, run, offsets)
        assert bytes(view) == b"".join(CONTENT[o : o + run] for o in offsets)

    check()


@pytest.mark.parametrize("mode", MODES)
def test_a_part_costs_little_more_than_its_bytes(mode: Mode) -> None:
    content = rawfiles.ckpt({"x": np.zeros(1 << 20, np.uint8)})
    source = sealed(mode, block=100_000, content=content)
    reader = decrypting(source, cipher(mode), remote=False, check=False)
    heads = sum(n for _, n in source.reads)
    assert heads < 600 + 11 * 100  # a part of the first message, and a few dozen bytes for each block
    source.reads.clear()
    assert reader.read(523_457, 1000) == content[523_457:524_457]
    assert sum(n for _, n in source.reads) <= 1000 + 47
    with pytest.raises(DataError, match="Truncated"):
        reader.read(len(content) - 1, 1 << 60)


@pytest.mark.parametrize(("mode", "length"), CASES)
def test_written_bytes_equal_those_of_the_library(mode: Mode, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "BLOCK_BYTES", 512)
    key = os.urandom(length)

    @examples(40)
    @given(st.integers(0, 2100), st.integers(1, 700))
    def check(size: int, piece: int) -> None:
        content, made = os.urandom(size), bytearray()
        encryptor = encryption.Encryptor(cipher(mode, key), made.extend)
        for at in range(0, size, piece):
            encryptor.update(content[at : at + piece])
        encryptor.finish()
        assert rawfiles.decrypted(bytes(made), mode, key) == content
        assert encryption.sealed_size(cipher(mode, key), size) == len(made)

    check()


def test_a_key_check_distinguishes_keys_and_is_never_repeated() -> None:
    other = bytes([*KEY[:-1], KEY[-1] ^ 1])
    checks = {cipher("AES-GCM").key_check() for _ in range(20)}
    assert len(checks) == 20
    for check in checks:
        assert cipher("AES-CBC").has_key_of(check)
        assert not cipher("AES-GCM", other).has_key_of(check)
        assert KEY not in check
    check = checks.pop()
    for damaged in (b"", check[:16], check[:-1], check + b"x", bytes(32)):
        assert not cipher("AES-GCM").has_key_of(damaged)


def test_no_two_blocks_have_one_iv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "BLOCK_BYTES", 16)
    made = bytearray()
    for _ in range(2):
        encryptor = encryption.Encryptor(cipher("AES-GCM"), made.extend)
        encryptor.update(CONTENT[:160])
        encryptor.finish()
    blocks = [made[at : at + 64] for at in range(0, len(made), 64)]
    assert len({bytes(block[28:40]) for block in blocks}) == len(blocks) == 20


@pytest.mark.parametrize("mode", MODES)
def test_another_key_is_found_by_the_first_block(mode: Mode) -> None:
    source = sealed(mode, block=1024)
    for _ in range(50):
        source.reads.clear()
        with pytest.raises(AccessError, match="WrongKey"):
            decrypting(source, cipher(mode, os.urandom(16)), remote=False, check=True)
        assert all(offset < 1024 for offset, _ in source.reads)


def test_any_change_of_a_file_is_found_with_gcm() -> None:
    content = bytearray(sealed("AES-GCM").content)
    head = 48
    unused = {at + i for at in range(0, len(content), head + 512) for i in range(40, 44)}  # 12 bytes of the IV are the nonce
    for i in range(len(content)):
        content[i] ^= 0x20
        if i in unused:
            assert opened(bytes(content), "AES-GCM").read(0, len(CONTENT)) == CONTENT
        else:
            with pytest.raises(ReshardError) as caught:
                opened(bytes(content), "AES-GCM")
            assert caught.value.reason in {"NotAuthentic", "Damaged", "Truncated", "WrongKey", "NotEncrypted", "WrongMode"}
        content[i] ^= 0x20


def test_a_damaged_block_is_named() -> None:
    content = bytearray(sealed("AES-GCM").content)
    content[3 * (48 + 512) + 100] ^= 1
    with pytest.raises(DataError, match=r"NotAuthentic: rank_0/a.ckpt: block 3, at byte 1680,"):
        opened(bytes(content), "AES-GCM")


@pytest.mark.parametrize("mode", ["AES-CBC", "SM4-CBC"])
def test_cbc_detects_damage_of_the_padding_only(mode: Mode) -> None:
    content = bytearray(sealed(mode).content)
    content[-17] ^= 0x40  # changes the last byte of the padding
    with pytest.raises(DataError, match=r"Damaged: rank_0/a.ckpt: block 7, which ends at byte"):
        opened(bytes(content), mode)
    content[-17] ^= 0x40
    content[2000] ^= 1
    assert opened(bytes(content), mode).read(0, len(CONTENT)) != CONTENT  # docs/encryption.md says so


def broken(mode: str = "AES-GCM", **fields: int) -> bytes:
    """A file of two blocks, the second of which has a wrong header."""
    good = rawfiles.encrypted(CONTENT, mode, KEY, len(CONTENT))
    tag = b"" if mode != "AES-GCM" else bytes(16)
    found = {"magic": rawfiles.MAGIC[mode], "rest": 24 + 64, "iv_length": 16, "length": 64} | fields
    head = struct.pack("<I", found["magic"]) + tag + struct.pack("<ii", found["rest"], found["iv_length"])
    return good + head + bytes(16) + struct.pack("<i", found["length"]) + bytes(64)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xd8", "NotEncrypted"),
        (CONTENT, "NotEncrypted"),
        (rawfiles.encrypted(CONTENT, "AES-CBC", KEY, 512), "WrongMode"),
        (struct.pack("<I", rawfiles.MAGIC["AES-GCM"]), "Truncated"),
        (rawfiles.encrypted(CONTENT, "AES-GCM", KEY, 512)[:-1], "Truncated"),
        (rawfiles.encrypted(CONTENT, "AES-GCM", KEY, 512) + b"crc_num" + bytes(10), "Truncated"),
        (broken(magic=rawfiles.MAGIC["AES-CBC"]), "Damaged"),
        (broken(magic=0), "Damaged"),
        (broken(iv_length=12), "Damaged"),
        (broken(iv_length=-1), "Damaged"),
        (broken(length=-1), "Damaged"),
        (broken(length=0, rest=24), "Damaged"),
        (broken(rest=-1), "Damaged"),
        (broken(rest=23), "Damaged"),
        (broken(length=(1 << 31) - 1 - 24, rest=(1 << 31) - 1), "Truncated"),
        (broken(), "NotAuthentic"),
    ],
)
def test_malicious_files_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(content, "AES-GCM")
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_encrypted_to_nothing(mode: Mode, *, remote: bool) -> None:
    made = bytearray()
    encryption.Encryptor(cipher(mode), made.extend).finish()
    assert made == b""
    reader = decrypting(MemoryReader("rank_0/a.ckpt", b""), cipher(mode), remote=remote, check=True)
    assert reader.size == 0
    encryption.check_key(MemoryReader("rank_0/a.ckpt", b""), cipher(mode), reader.blocks)


@pytest.mark.parametrize("length", [1, 15, 17, 63])
def test_cbc_takes_whole_units_only(length: int) -> None:
    with pytest.raises(DataError, match=r"Damaged|Truncated"):
        opened(broken("AES-CBC", length=length, rest=24 + length), "AES-CBC")


def test_more_blocks_than_any_file_has_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "MAX_BLOCKS", 7)
    with pytest.raises(DataError, match="TooManyBlocks"):
        opened(sealed("AES-GCM").content, "AES-GCM")
