"""Checkpoints that MindSpore's newer tools describe themselves: HyperParallel and MindFormers' Checkpoint 2.0."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from local_folder import LocalFolder, content_of
from torch_files import metadata, safetensors, sha256_of

from reshard.checkpoint.dtypes import BY_TORCH_NAME
from reshard.errors import DataError, ReshardError
from reshard.formats.registry import detect, source_format

DATA = Path(__file__).parent / "data"
RECORDED = DATA / "hyper_parallel"
HYPER_PARALLEL, MINDFORMERS = source_format("hyper-parallel"), source_format("mindformers")
STATE = "state_dict_metadata"
CONTENT = bytes(range(24))


@pytest.mark.parametrize("name", ["common", "per_rank"])
def test_tensors_of_hyper_parallel_equal_those_that_were_saved(name: str) -> None:
    path = RECORDED / name
    folder = LocalFolder(path)
    assert detect(folder.names) == HYPER_PARALLEL
    found = HYPER_PARALLEL.read(folder, workers=2)
    held = {each.name: (each.dtype, list(each.shape), sha256_of(content_of(path, found, each))) for each in found.tensors}
    recorded = json.loads((path / "expected.json").read_text())
    assert held == {key: (BY_TORCH_NAME[each["dtype"]].name, each["shape"], each["sha256"]) for key, each in recorded.items()}
    (epoch,) = found.objects
    assert {(path / found.files[place.file]).read_bytes()[place.offset :][: place.length] for place in epoch.places} == {
        b"\x80\x04K\x03."
    }
    assert len(found.documents) == (1 if name == "common" else 4)


@pytest.mark.parametrize("dtype", ["Float32", "torch.float32"])
def test_several_shards_of_a_rank_have_keys(dtype: str, tmp_path: Path) -> None:
    rows = [((0, 0), (1, 3)), ((1, 0), (1, 3))]
    keys = ["w.__dcp_chunk_0", "w.__dcp_chunk_1"]
    document = metadata({"w": ((2, 3), rows)}, file="_rank0_.safetensors", keys=keys, dtype=dtype, length=-1)
    (tmp_path / ".metadata").write_bytes(document)
    content = safetensors({key: ("F32", (1, 3), CONTENT[12 * i : 12 * i + 12]) for i, key in enumerate(keys)})
    (tmp_path / "_rank0_.safetensors").write_bytes(content)
    folder = LocalFolder(tmp_path)
    found = HYPER_PARALLEL.read(folder)
    assert content_of(tmp_path, found, found.tensors[0]) == CONTENT
    (tmp_path / "_rank0_.safetensors").write_bytes(safetensors({keys[0]: ("F32", (1, 3), CONTENT[:12])}))
    with pytest.raises(DataError, match=r"MetadataMismatch: .*tensor w"):
        HYPER_PARALLEL.read(folder)
    with pytest.raises(DataError, match="MetadataInvalid"):  # a place without bytes is none in a checkpoint of torch
        source_format("torch-dcp").read(folder)


def test_a_changed_or_missing_file_of_hyper_parallel_is_refused(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "common", tmp_path, dirs_exist_ok=True)
    folder = LocalFolder(tmp_path)
    file = tmp_path / "_rank2_.safetensors"
    file.write_bytes((tmp_path / "_rank3_.safetensors").read_bytes())
    with pytest.raises(DataError, match="MetadataMismatch"):
        HYPER_PARALLEL.read(folder)
    file.unlink()
    with pytest.raises(ReshardError, match="FileMissing"):
        HYPER_PARALLEL.read(folder)


def mindformers(path: Path, **changed: object) -> LocalFolder:
    """A matrix by rows on two ranks, and a scalar that both have, as MindFormers writes them."""
    files = [f"llama-model-000000{rank}-0000002.safetensors" for rank in (0, 1)]
    for rank, file in enumerate(files):
        tensors = {"w": ("F32", (1, 3), CONTENT[12 * rank : 12 * rank + 12]), "step": ("I32", (), b"1234")}
        (path / file).write_bytes(safetensors(tensors, {"format": "ms"}))
    properties = {"replica_id": 0, "allow_shape_mismatch": False, "allow_to_save": True}
    layout = {
        "device_matrix": [2],
        "tensor_map": [0, -1],
        "interleaved_parallel": False,
        "alias_name": ["dp"],
        "rank_list": [0, 1],
    }
    chunks = [{"global_offset": [rank], "local_shape": [1, 3]} for rank in (0, 1)]
    tensors = {
        "w": {
            "properties": {"dtype": "Float32", **properties}, "global_shape": [2, 3], "axis_fragmentations": [2, 1],
            "layout": layout, "chunk": chunks,
        },
        "step": {
            "properties": {"dtype": "Int32", **properties}, "global_shape": [], "axis_fragmentations": [],
            "layout": layout, "chunk": [{"global_offset": [0], "local_shape": []}],
        },
    }  # fmt: skip
    places = {f"('w', ({rank},))": [{"file_name": files[rank], "storage_rank": rank}] for rank in (0, 1)}
    places["('step', (0,))"] = [{"file_name": file, "storage_rank": rank} for rank, file in enumerate(files)]
    document = {STATE: tensors, "storage_data": places}
    for field, value in changed.items():
        at: dict[str, object] = document
        *outer, last = field.split("__")
        for key in outer:
            at = at[key] if isinstance(at, dict) else at[int(key)]
        at[last] = value
    (path / "metadata.json").write_text(json.dumps(document, indent=4))
    (path / "common.json").write_text("{}")
    return LocalFolder(path)


def test_tensors_of_mindformers_equal_those_that_were_saved() -> None:
    path = DATA / "mindformers" / "iteration_00000010"
    folder = LocalFolder(path)
    assert detect(folder.names) == MINDFORMERS
    found = MINDFORMERS.read(folder, workers=2)
    held = {each.name: (each.dtype, list(each.shape), sha256_of(content_of(path, found, each))) for each in found.tensors}
    recorded = json.loads((path / "expected.json").read_text())
    assert held == {key: (each["dtype"], each["shape"], each["sha256"]) for key, each in recorded.items()}
    copies = {
        each.name: [len(list(each.shards.places(tile))) for tile in range(len(each.shards.tiling))] for each in found.tensors
    }
    assert [copies[name] for name in ("grid", "columns", "whole")] == [[1] * 4, [2, 2], [4]]


def test_shards_of_mindformers_are_found(tmp_path: Path) -> None:
    folder = mindformers(tmp_path)
    assert detect(folder.names) == MINDFORMERS
    found = MINDFORMERS.read(folder, workers=2)
    held = {each.name: (each.dtype, each.shape, content_of(tmp_path, found, each)) for each in found.tensors}
    assert held == {"w": ("Float32", (2, 3), CONTENT), "step": ("Int32", (), b"1234")}
    assert [len(list(each.shards.places(0))) for each in found.tensors] == [1, 2]
    assert found.documents == ("metadata.json", "common.json")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({f"{STATE}__w__chunk": [{"global_offset": [1], "local_shape": [1, 3]}]}, "ShardsDoNotCover"),
        ({f"{STATE}__w__global_shape": [3, 3]}, "MetadataInvalid"),
        ({f"{STATE}__w__global_shape": [-2, 3]}, "MetadataInvalid"),
        ({f"{STATE}__w__global_shape": [1] * 33}, "MetadataInvalid"),
        ({f"{STATE}__w__global_shape": [2]}, "MetadataInvalid"),
        ({f"{STATE}__w__properties": {"dtype": "Int32"}}, "MetadataMismatch"),
        ({f"{STATE}__w__chunk": []}, "MetadataInvalid"),
        ({f"{STATE}__w__axis_fragmentations": [2]}, "MetadataInvalid"),
        ({f"{STATE}__w__axis_fragmentations": [1, 2]}, "MetadataInvalid"),
        ({f"{STATE}__w__layout__interleaved_parallel": True}, "UnsupportedSource"),
        ({f"{STATE}__w__chunk__0__local_shape": [1, 2]}, "MetadataInvalid"),
        ({f"{STATE}__w__chunk__0__global_offset": [2]}, "MetadataInvalid"),
        ({f"{STATE}__w__chunk__0__global_offset": [0, 0]}, "MetadataInvalid"),
        ({STATE: {}}, "MetadataMismatch"),
        ({STATE: []}, "MetadataInvalid"),
        ({"storage_data": {}}, "ShardMissing"),
        ({"storage_data__('w', (0,))": [{"file_name": "../x.safetensors"}]}, "MetadataInvalid"),
        ({"storage_data__('w', (0,))": [{"file_name": "x.safetensors"}]}, "FileMissing"),
    ],
)
def test_metadata_of_mindformers_that_contradicts_itself_is_refused(
    changed: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ReshardError) as caught:
        MINDFORMERS.read(mindformers(tmp_path, **changed))
    assert caught.value.reason == reason
    assert caught.value.fix


def test_tensors_that_the_metadata_does_not_list_have_to_be_excluded(tmp_path: Path) -> None:
    folder = mindformers(tmp_path)
    file = "llama-opt-0000000-0000002.safetensors"
    document = json.loads((tmp_path / "metadata.json").read_text())
    document["storage_data"]["('step', (0,))"].append({"file_name": file, "storage_rank": 0})
    (tmp_path / "metadata.json").write_text(json.dumps(document, indent=4))
    (tmp_path / file).write_bytes(safetensors({"adam.w": ("F32", (1, 3), CONTENT[:12])}))
    with pytest.raises(DataError, match=r"MetadataMismatch: .*opt-0000000.*adam\.w"):
        MINDFORMERS.read(folder)
    found = MINDFORMERS.read(folder, wanted=lambda name: not name.startswith("adam"))
    assert [each.name for each in found.tensors] == ["w", "step"]


@pytest.mark.parametrize(
    "changed",
    [{f"{STATE}__w__chunk": []}, {f"{STATE}__w__properties": 3}, {f"{STATE}__w__axis_fragmentations": [1, 2]}],
    ids=str,
)
def test_tensors_of_mindformers_that_are_excluded_are_not_checked(changed: dict[str, object], tmp_path: Path) -> None:
    folder = mindformers(tmp_path, **changed)
    with pytest.raises(ReshardError):
        MINDFORMERS.read(folder)
    assert [each.name for each in MINDFORMERS.read(folder, wanted=lambda name: name != "w").tensors] == ["step"]
