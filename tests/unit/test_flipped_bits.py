"""`reshard verify` finds one flipped bit anywhere in a checkpoint: in headers, padding, data, documents and the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reshard.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import disk

OPTIONS = {
    "ckpt": ("--format", "ckpt", "--crc"),
    "strategy": ("--format", "safetensors", "--write-strategy"),
    "DCP": ("--format", "torch-dcp"),
    "Hugging Face": ("--format", "huggingface"),
    "unified": ("--output", "unified"),
    "encrypted": ("--encryption-key-file", "KEY"),
}
_FLIPS = 8  # in each file, evenly distributed, and in its last byte


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_any_flipped_bit_is_found(made: disk.Checkpoint, target: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    arguments = made.arguments(target, *(str(tmp_path / "key") if each == "KEY" else each for each in options))
    if {"huggingface", "unified"} & {*options}:
        at = arguments.index("--target-strategy")
        del arguments[at : at + 2]
    assert main(arguments) == 0
    assert main(["verify", str(target)]) == 0
    files = sorted(path for path in target.rglob("*") if path.is_file())
    assert "reshard-manifest.json" in {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        places = {*range(0, len(content), max(1, len(content) // _FLIPS)), len(content) - 1}
        for at in sorted(places):
            changed = bytearray(content)
            changed[at] ^= 1 << at % 8
            path.write_bytes(changed)
            assert main(["verify", str(target)]) in {65, 66}, (path, at)
        path.write_bytes(content)
    assert main(["verify", str(target)]) == 0
