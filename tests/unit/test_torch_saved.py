"""Files of `torch.save` as sources: whole tensors in one or several files, and what cannot be read, refused with a way out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from local_folder import LocalFolder, content_of
from torch_files import DATA, archive, name, sha256_of, tensor, text

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.errors import RequestError, ReshardError
from reshard.formats.registry import detect, source_format

if TYPE_CHECKING:
    from pathlib import Path

FILES = DATA / "files"
SAVE = source_format("torch-save")
INDEX = "pytorch_model.bin.index.json"
ROW_MAJOR = archive(b"\x80\x02" + tensor() + b".")


def one(*names: str, content: bytes = bytes(24)) -> bytes:
    """A file of a state dict with these tensors, which share a storage."""
    return archive(b"\x80\x02}(" + b"".join(text(name) + tensor() for name in names) + b"u.", {"data/0": content})


@pytest.mark.parametrize("file", ["types.pt", "shared.pt"])
def test_each_tensor_of_a_file_is_found_exactly(file: str) -> None:
    folder = LocalFolder(FILES, [file])
    assert detect(folder.names) == SAVE
    found = SAVE.read(folder)
    held = {each.name: (each.dtype, each.shape, sha256_of(content_of(FILES, found, each))) for each in found.tensors}
    recorded = json.loads((FILES / "expected.json").read_text())[file]
    assert held == {
        name: (BY_TORCH_NAME[each["dtype"]].name, tuple(each["shape"]), each["sha256"]) for name, each in recorded.items()
    }


def test_the_reads_of_tensors_are_known_when_a_file_is_opened() -> None:
    """Over a network, many of them are fetched at a time. The structure of the archive takes a few reads before."""
    folder = LocalFolder(FILES, ["types.pt"])
    tensors = SAVE.read(folder).tensors
    assert folder.unforeseen < 10 < len(tensors)
    assert folder.reads >= folder.unforeseen + len(tensors)


def test_the_files_of_an_index_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(one("a", "b", content=b"x" * 24))
    (tmp_path / "pytorch_model-00002-of-00002.bin").write_bytes(one("c", content=b"y" * 24))
    (tmp_path / "training_args.bin").write_bytes(b"")
    files = {name: f"pytorch_model-0000{1 + (name == 'c')}-of-00002.bin" for name in "abc"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 72}, "weight_map": files}))
    found = SAVE.read(LocalFolder(tmp_path), workers=2)
    assert {each.name: content_of(tmp_path, found, each) for each in found.tensors} == {
        "a": b"x" * 24, "b": b"x" * 24, "c": b"y" * 24
    }  # fmt: skip
    assert found.documents == (INDEX,)
    (tmp_path / INDEX).unlink()
    (tmp_path / "training_args.bin").unlink()
    assert SAVE.read(LocalFolder(tmp_path)).documents == ()


def test_tensors_in_a_namespace_are_found(tmp_path: Path) -> None:
    namespace = name("argparse", "Namespace") + b")\x81}(" + text("scale") + tensor() + text("lr") + b"K\1ub"
    (tmp_path / "a.pt").write_bytes(archive(b"\x80\x02}(" + text("args") + namespace + text("w") + tensor() + b"u."))
    assert [tensor.name for tensor in SAVE.read(LocalFolder(tmp_path)).tensors] == ["args.scale", "w"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.pt": ROW_MAJOR, "b.pt": ROW_MAJOR}, "AmbiguousFiles"),
        ({"m-00001-of-00003.bin": one("a"), "m-00003-of-00003.bin": one("b")}, "AmbiguousFiles"),
        ({"m-00001-of-00002.bin": one("a"), "m-00002-of-00002.bin": one("a")}, "ParameterTwice"),
        ({"a.pt": ROW_MAJOR[:-1]}, "Truncated"),
        ({INDEX: b"{}", "a.bin": ROW_MAJOR}, "MapInvalid"),
        ({INDEX: b"[" * 100_000, "a.bin": ROW_MAJOR}, "MapInvalid"),
        ({INDEX: b'{"weight_map": {"a": "../a.bin"}}', "a.bin": ROW_MAJOR}, "MapInvalid"),
        ({INDEX: b'{"weight_map": {"a": "b.bin"}}', "a.bin": ROW_MAJOR}, "FileMissing"),
        ({INDEX: b'{"weight_map": {"b": "a.bin"}}', "a.bin": one("a")}, "MapMismatch"),
        ({INDEX: b'{"weight_map": {"a": "a.bin"}}', "a.bin": one("a"), "pytorch_model.bin": one("a")}, "AmbiguousFiles"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(files: dict[str, bytes], reason: str, tmp_path: Path) -> None:
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    folder = LocalFolder(tmp_path)
    found = detect(folder.names)
    assert found is not None
    with pytest.raises(ReshardError) as caught:
        found.read(folder)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("names", "name", "helps"),
    [
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"], "deepspeed", "zero_to_fp32.py"),
        (["bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"], "deepspeed", "zero_to_fp32.py"),
        (["latest", "zero_to_fp32.py"], "deepspeed", "zero_to_fp32.py"),
        (["latest_universal"], "deepspeed", "zero_to_fp32.py"),
        (["_CHECKPOINT_METADATA", "commit_success.txt"], "orbax", "safetensors"),
        (["_METADATA", "manifest.ocdbt", "_sharding"], "orbax", "safetensors"),
        (["model_optim_rng.pt"], "megatron-legacy", "torch_dist"),
        (["model_world_size_2_rank_0.pt", "optim_world_size_2_rank_0.pt"], "fsdp-ranks", "verl.model_merger"),
    ],
)
def test_formats_that_cannot_be_read_are_refused_by_name(names: list[str], name: str, helps: str, tmp_path: Path) -> None:
    found = detect(names)
    assert found is not None
    assert found.name == name
    with pytest.raises(RequestError, match=f"UnsupportedSource: .*{helps}"):
        found.read(LocalFolder(tmp_path, names))


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors", "optimizer.pt", "training_args.bin", "zero_to_fp32.py", "latest"],
        ["net_rank0.ckpt", "x.bin"],
        ["config.json"],
        [],
    ],
)
def test_folders_with_files_of_whole_tensors_are_not_mistaken(names: list[str]) -> None:
    assert detect(names) is None
