"""Files that MindSpore has encrypted read here, and ours read by MindSpore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import modes
import numpy as np
import pytest
import rawfiles

from reshard import Encryption, Key, Options, Request, transform_checkpoint
from reshard.errors import AccessError
from reshard.source.keys import read_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LARGE = [(mode, 16) for mode in modes.MODES]


def encryption(mode: Any, length: int) -> Encryption:
    return Encryption(Key(modes.key(length)), mode)


def copy(source: Path, folder: Path, *, crc: bool = False, **keys: Encryption) -> Path:
    """Convert one file to the same tensors, decrypted or encrypted. The name states the result."""
    sealed = keys.get("encryption")
    name = f"{sealed.mode}.{len(read_key(sealed))}" if sealed else "plain"
    options = Options(format="Ckpt", file_prefix=f"{name}{'_crc' if crc else ''}.", crc=crc, verification="Full")
    transform_checkpoint(Request(str(source), str(folder), options=options, **keys))
    return next((folder / "rank_0").iterdir())


@pytest.mark.parametrize(("mode", "length"), modes.CASES)
def test_files_encrypted_by_mindspore_are_read(once: Callable[..., Path], tmp_path: Path, mode: str, length: int) -> None:
    source = once("encrypted") / f"{mode}.{length}.ckpt"
    found = rawfiles.read("ckpt", copy(source, tmp_path, decryption=encryption(mode, length)).read_bytes())
    assert found["small"].tobytes() == np.arange(3000, dtype=np.uint32).tobytes()
    assert found["one"].tobytes() == bytes(4)


@pytest.mark.parametrize(("mode", "length"), LARGE)
def test_blocks_of_the_usual_length_are_read(once: Callable[..., Path], tmp_path: Path, mode: str, length: int) -> None:
    source = once("encrypted") / f"{mode}.{length}.large.ckpt"
    found = rawfiles.read("ckpt", copy(source, tmp_path, decryption=encryption(mode, length)).read_bytes())
    assert np.array_equal(found["large"], np.arange((64 << 18) + 5, dtype=np.uint32))


def test_another_key_is_refused(once: Callable[..., Path], tmp_path: Path) -> None:
    for mode, length in modes.CASES:
        with pytest.raises(AccessError, match="WrongKey"):
            copy(
                once("encrypted") / f"{mode}.{length}.ckpt",
                tmp_path,
                decryption=Encryption(Key(bytes(length)), mode),
            )
    assert not list(tmp_path.rglob("*.ckpt"))


def test_mindspore_reads_our_encrypted_files(once: Callable[..., Path], oracle: Callable[..., Any], tmp_path: Path) -> None:
    """Files in every mode, with keys of every length, with a CRC, and with more blocks that are shorter than MindSpore's."""
    large = once("encrypted") / "AES-GCM.16.large.ckpt"
    made = {}
    for mode, length in modes.CASES:
        for source in (once("samples") / "all.ckpt", once("samples") / "all_crc.ckpt"):
            folder, crc = tmp_path / f"{mode}.{length}.{source.stem}", source.stem == "all_crc"
            made[copy(source, folder, crc=crc, encryption=encryption(mode, length))] = source
    for mode, length in LARGE:
        keys = {"decryption": encryption("AES-GCM", 16), "encryption": encryption(mode, length)}
        made[copy(large, tmp_path / f"{mode}.large", **keys)] = large
    found = oracle("load", *made, *set(made.values()))
    for ours, theirs in made.items():
        assert found[str(ours)] == found[str(theirs)], ours
