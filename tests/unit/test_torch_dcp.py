"""Distributed checkpoints written by PyTorch and Megatron-core, read without either: each tensor has the recorded contents."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from torch_checkpoints import describe, read
from torch_files import DATA, FileReader, document, metadata

from reshard.errors import DataError, MissingInputError
from reshard.formats.torch.archive import read_archive
from reshard.formats.torch.dcp import read_metadata
from reshard.formats.torch.names import is_metadata, metadata_files
from reshard.formats.torch.reader import check_files
from reshard.formats.torch.unpickle import Limits
from reshard.model import Boxes, Grid

RECORDED = ("placements", "items", "per_rank", "fsdp2", "fsdp2_tp", "megatron")


@pytest.mark.parametrize("name", RECORDED)
def test_each_tensor_equals_the_one_in_the_checkpoint(name: str) -> None:
    folder = DATA / name
    expected = json.loads((folder / "expected.json").read_text())
    found = read(folder)
    assert describe(folder, found) == expected
    assert found.version == "1.0.0"


def test_shards_are_as_they_were_placed() -> None:
    cuts = {tensor.name: tensor.shards.tiling for tensor in read(DATA / "placements").tensors}
    assert cuts["shard0"] == Grid.equal((8, 6), (4, 1))
    assert cuts["shard1"] == Grid.equal((4, 8), (1, 4))
    assert cuts["uneven"] == Grid(((0, 3, 6, 9, 10), range(0, 4, 3)))
    assert cuts["empty_shards"] == Grid.equal((2, 3), (2, 1))
    assert cuts["grid"] == Grid(((0, 3, 5), range(0, 7, 3)))
    assert cuts["twice"] == Grid(((0, 3, 5, 7, 9), range(0, 3, 2)))
    assert cuts["hsdp"] == Grid.equal((6, 2), (2, 1))
    assert [len(cuts[name]) for name in ("scalar", "nothing", "plain", "replicated")] == [1, 0, 1, 1]
    strided = {tensor.name: tensor.shards.tiling for tensor in read(DATA / "fsdp2_tp").tensors}
    assert strided["model.a.weight"] == Grid(((0, 3, 5, 8, 10), range(0, 7, 6)))


def test_keys_of_nested_values_are_kept_as_far_as_they_differ_from_names() -> None:
    found = read(DATA / "fsdp2")
    assert found.keys["optim.param_groups.0.lr"] == ("optim", "param_groups", 0, "lr")
    assert read(DATA / "per_rank").keys == {}
    assert read(DATA / "megatron").keys == {}


def test_objects_are_named_and_never_loaded() -> None:
    objects = {found.name: found.places for found in read(DATA / "placements").objects}
    assert {"rank_local", "options.lr", "options.betas", "options.none"} <= set(objects)
    assert Counter(map(len, objects.values())) == {1: len(objects)}


def test_replicas_that_ranks_wrote_by_themselves_are_copies_of_one_tile() -> None:
    found = read(DATA / "per_rank")
    copies = {
        tensor.name: [len(list(tensor.shards.places(t))) for t in range(len(tensor.shards.tiling))] for tensor in found.tensors
    }
    assert copies == {"shard0": [1] * 4, "uneven": [1] * 4, "replicated": [4], "plain": [4]}
    assert [len(each.places) for each in found.objects] == [4]


def test_a_column_major_tensor_is_known() -> None:
    folder = DATA / "placements"
    found = read(folder)
    (tensor,) = (tensor for tensor in found.tensors if tensor.name == "column_major")
    (place,) = tensor.shards.places(0)
    (stored,) = read_archive(FileReader(folder / found.files[place.file]), place.offset, place.length).tensors
    assert (stored.shape, stored.strides, stored.row_major) == ((4, 3), (1, 4), False)


def test_the_names_of_metadata_files() -> None:
    assert metadata_files(["__10.metadata", "__2.metadata", "__0_0.distcp"]) == ["__2.metadata", "__10.metadata"]
    assert metadata_files(["__0.metadata", ".metadata"]) == [".metadata"]
    assert metadata_files(["metadata.json"]) == []
    assert [is_metadata(name) for name in (".metadata", "__1.metadata", "x.metadata")] == [True, True, False]


def test_irregular_boxes_and_old_metadata() -> None:
    windmill = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1)), ((1, 1), (1, 1))]
    found = read_metadata([document({"w": ((3, 3), windmill)}, version=False)])
    assert isinstance(found.tensors[0].shards.tiling, Boxes)
    assert (found.version, found.files) == (None, ("f",))


WHOLE = ((2, 3), [((0, 0), (1, 3)), ((1, 0), (1, 3))])


@pytest.mark.parametrize(
    ("documents", "reason", "where"),
    [
        ([document({"w": ((3, 3), WHOLE[1])})], "ShardsDoNotCover", "tensor w"),
        ([document({"w": ((2, 3), [((0, 0), (2, 3)), ((1, 0), (1, 3))])})], "ShardsOverlap", "tensor w"),
        ([document({"w": ((1, 3), WHOLE[1])})], "ShardOutside", "tensor w"),
        ([document({"w": WHOLE}, stored={"w": WHOLE[1][:1]})], "ShardMissing", "m: tensor w"),
        ([document({"w": WHOLE}, file="../w")], "PathOutside", "m"),
        ([document({"w": WHOLE}, file="/etc/passwd")], "PathOutside", "m"),
        ([document({"w": WHOLE}, file="a//b")], "PathOutside", "m"),
        ([document({"w": WHOLE}, file="")], "PathOutside", "m"),
        ([document({"w": WHOLE}, transforms=["stream.zstd/1"])], "TransformNotSupported", "m"),
        ([document({"w": WHOLE}, dtype="qint8")], "UnknownType", "m: tensor w"),
        ([document({"w": WHOLE}, dtype="uint3")], "UnknownType", "m: tensor w"),
        ([document({"w": WHOLE}, dtype="load")], "PickleNotAllowed", "m"),
        ([document({"w": WHOLE}, offset=-1)], "MetadataInvalid", "m"),
        ([document({"w": WHOLE}, offset=1 << 62)], "MetadataInvalid", "m"),
        ([document({"w": WHOLE}, offset=1 << 64)], "PickleInvalid", "m"),
        ([document({"w": ((1 << 63, 3), WHOLE[1])})], "MetadataInvalid", "m"),
        ([document({"w": ((1,) * 33, WHOLE[1])})], "MetadataInvalid", "m"),
        ([document({"w": ((2, 3), [((0,), (1,))])})], "MetadataInvalid", "m"),
        ([document({"w": WHOLE}), document({"w": ((2, 4), [((0, 0), (2, 4))])})], "RanksDisagree", "m: tensor w"),
        ([("m", b"\x80\x04N.")], "MetadataInvalid", "m"),
        ([("m", b"")], "PickleInvalid", "m"),
    ],
)
def test_metadata_that_contradicts_itself_is_refused(documents: list[tuple[str, bytes]], reason: str, where: str) -> None:
    with pytest.raises(DataError) as caught:
        read_metadata(documents)
    assert (caught.value.reason, caught.value.where) == (reason, where)
    assert caught.value.fix
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (document({"bad": ((3, 3), WHOLE[1])}), "ShardsDoNotCover"),
        (document({"bad": ((2, 3), [((0, 0), (2, 3)), ((1, 0), (1, 3))])}), "ShardsOverlap"),
        (document({"bad": WHOLE}, stored={"bad": WHOLE[1][:1]}), "ShardMissing"),
        (document({"bad": WHOLE}, dtype="qint8"), "UnknownType"),
        (document({"bad": WHOLE}, offset=-1), "MetadataInvalid"),
        (document({"bad": ((1 << 63, 3), WHOLE[1])}), "MetadataInvalid"),
        (document({"bad": ((2, 3), [((0,), (1,))])}), "MetadataInvalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_not_wanted_are_not_checked(bad: tuple[str, bytes], reason: str) -> None:
    good = document({"w": WHOLE})
    with pytest.raises(DataError) as caught:
        read_metadata([good, bad])
    assert caught.value.reason == reason
    assert reason == "MetadataInvalid" or "--exclude" in caught.value.fix
    (found,), (alone,) = (read_metadata([good, bad], wanted="w".__eq__).tensors, read_metadata([good]).tensors)
    assert (found.name, found.dtype, found.shape) == (alone.name, alone.dtype, alone.shape)
    assert [list(found.shards.places(tile)) for tile in range(2)] == [list(alone.shards.places(tile)) for tile in range(2)]
    assert read_metadata([good, bad], wanted=lambda _: False).tensors == ()


def test_objects_that_are_not_wanted_are_left_out() -> None:
    content = (DATA / "placements" / ".metadata").read_bytes()
    found = read_metadata([("m", content)])
    assert len(found.objects) > 1
    some = read_metadata([("m", content)], wanted=lambda name: name in {"shard0", "rank_local"})
    assert ([each.name for each in some.tensors], [each.name for each in some.objects]) == (["shard0"], ["rank_local"])
    assert some.objects[0] in found.objects


def test_metadata_of_the_tests_is_read() -> None:
    (tensor,) = read_metadata([document({"w": WHOLE})]).tensors
    assert (tensor.name, tensor.dtype, tensor.shape, len(tensor.shards.tiling)) == ("w", "Float32", (2, 3), 2)


def test_files_that_are_missing_or_short_are_refused() -> None:
    found = read_metadata([document({"w": WHOLE})])
    with pytest.raises(MissingInputError, match="FileMissing: d/f"):
        check_files(found, {}, "d")
    with pytest.raises(DataError, match="Truncated: d/f"):
        check_files(found, {"f": 19}, "d")
    check_files(found, {"f": 20}, "d")


def test_large_metadata_is_refused_by_its_length() -> None:
    with pytest.raises(DataError, match="PickleTooLarge"):
        read_metadata([document({"w": WHOLE})], Limits(nbytes=100))


def test_tensors_with_equal_shards_share_their_tiles() -> None:
    found = read_metadata([("m", metadata({f"layers.{i}.w": WHOLE for i in range(50)}))])
    assert len({id(tensor.shards.tiling) for tensor in found.tensors}) == 1
    assert [tensor.shards.offsets.tolist() for tensor in found.tensors[:2]] == [[0, 10], [20, 30]]
