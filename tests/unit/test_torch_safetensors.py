"""Shards of PyTorch in safetensors files: positions from the header, whole shapes from the shards, contradictions refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from local_folder import LocalFolder, content_of
from torch_files import metadata, safetensors

from reshard.cli import main
from reshard.errors import DataError
from reshard.formats.registry import detect, source_format

if TYPE_CHECKING:
    from pathlib import Path

FIRST, SECOND = "shard-00001-model-00001-of-00001.safetensors", "shard-00002-model-00001-of-00001.safetensors"
SHARDED, DCP = source_format("torch-safetensors"), source_format("torch-dcp")
WHOLE = bytes(range(24))


def info(**starts: tuple[int, ...]) -> dict[str, str]:
    found = {name: {"saved_offsets": start} for name, start in starts.items()}
    return {"DCP_SHARDING_INFO": json.dumps(found), "DCP_VERSION": "1.0", "format": "pt"}


def shards(path: Path, second: bytes | None = None) -> LocalFolder:
    """Two files: rows of `w`, an empty shard, and a scalar."""
    (path / FIRST).write_bytes(safetensors({"w": ("F32", (1, 3), WHOLE[:12]), "e": ("I8", (2,), b"xy")}, info(w=(0, 0), e=(0,))))
    standard = safetensors(
        {"w": ("F32", (1, 3), WHOLE[12:]), "s": ("I32", (), b"1234"), "e": ("I8", (0,), b"")}, info(w=(1, 0), s=(), e=(2,))
    )
    (path / SECOND).write_bytes(standard if second is None else second)
    return LocalFolder(path)


def test_shards_are_found_in_each_file(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    assert detect(folder.names) == SHARDED
    found = SHARDED.read(folder, workers=2)
    held = {each.name: (each.dtype, each.shape, content_of(tmp_path, found, each)) for each in found.tensors}
    assert held == {"w": ("Float32", (2, 3), WHOLE), "e": ("Int8", (2,), b"xy"), "s": ("Int32", (), b"1234")}
    assert [each.name for each in SHARDED.read(folder, wanted="w".__eq__).tensors] == ["w"]


def test_a_note_tells_that_a_missing_last_file_cannot_be_detected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first file alone is a valid checkpoint, with a shorter tensor."""
    source, said = tmp_path / "source", f"1 files were read, up to {FIRST}; check that each rank's files exist"
    source.mkdir()
    shards(source)
    (source / SECOND).unlink()
    target, options = str(tmp_path / "target"), ["--target-ranks", "2", "--format", "torch-safetensors"]
    for command in (["inspect", str(source)], ["transform", "--source", str(source), "--target", target, *options]):
        assert main(command) == 0
        assert said in "".join(capsys.readouterr())
    assert main(["inspect", target]) == 0
    assert "files were read" not in "".join(capsys.readouterr())


def test_files_of_whole_tensors_are_another_format(tmp_path: Path) -> None:
    assert detect(["model-00001-of-00002.safetensors", "model.safetensors.index.json"]) is None
    folder = shards(tmp_path, safetensors({"w": ("F32", (1, 3), WHOLE[12:])}))
    with pytest.raises(DataError, match=f"MetadataMissing: .*{SECOND}"):
        source_format("torch-safetensors").read(folder)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (safetensors({"w": ("F32", (1, 3), WHOLE[12:])}, info(w=(2, 0))), "ShardsDoNotCover"),
        (safetensors({"w": ("F32", (1, 3), WHOLE[12:])}, info(w=(0, 1))), "ShardsOverlap"),
        (safetensors({"w": ("I32", (1, 3), WHOLE[12:])}, info(w=(1, 0))), "RanksDisagree"),
        (safetensors({"w": ("F32", (3,), WHOLE[12:])}, info(w=(1,))), "RanksDisagree"),
        (safetensors({"w": ("F32", (1, 3), WHOLE[12:])}, info(w=(1,))), "RanksDisagree"),
        (safetensors({"w": ("F32", (1, 3), WHOLE[12:])}, info(w=(-1, 0))), "MetadataInvalid"),
        (safetensors({"w": ("F32", (1, 3), WHOLE[12:])}, info(w=(1 << 61, 0))), "ShardOutside"),
        (safetensors({"w": ("F32", (1, 3), WHOLE[12:])}, {"DCP_SHARDING_INFO": "[]"}), "MetadataInvalid"),
        (safetensors({"w": ("F32", (1, 3), WHOLE[12:])}, info(w=(1, 0)))[:-1], "Truncated"),
    ],
)
def test_shards_that_contradict_each_other_are_refused(second: bytes, reason: str, tmp_path: Path) -> None:
    folder = shards(tmp_path, second)
    with pytest.raises(DataError) as caught:
        SHARDED.read(folder)
    assert caught.value.reason == reason
    assert SECOND in str(caught.value) or "tensor w" in str(caught.value)


def test_distcp_files_that_are_safetensors_are_read(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(metadata({"w": ((2, 3), [((0, 0), (2, 3))]), "v": ((2,), [((0,), (2,))])}, step=0))
    (tmp_path / "f").write_bytes(
        safetensors({"v": ("F32", (2,), WHOLE[:8]), "w": ("F32", (2, 3), WHOLE)}, info(w=(0, 0), v=(0,)))
    )
    found = DCP.read(LocalFolder(tmp_path))
    assert [content_of(tmp_path, found, each) for each in found.tensors] == [WHOLE, WHOLE[:8]]
    for changed in (
        safetensors({"v": ("F32", (2,), WHOLE[:8])}),
        safetensors({"v": ("F32", (2,), WHOLE[:8]), "w": ("F32", (3, 2), WHOLE)}),
        safetensors({"v": ("F32", (2,), WHOLE[:8]), "w": ("I32", (2, 3), WHOLE)}),
        safetensors({"v": ("F32", (2,), WHOLE[:8]), "w": ("F32", (2, 3), WHOLE)}, info(w=(1, 0))),
    ):
        (tmp_path / "f").write_bytes(changed)
        with pytest.raises(DataError, match=r"MetadataMismatch: .*tensor w"):
            DCP.read(LocalFolder(tmp_path))
