"""Fuzz the names of files in a source, one a line."""

from __future__ import annotations

from reshard.errors import ReshardError
from reshard.formats.registry import detect
from reshard.source.listing import other_ranks, rank_folders, ranks_of_files, shards, total_of
from reshard.source.selection import select_files

SEEDS = (
    b"rank_0\nrank_1\ncheckpoint_0.ckpt\ncheckpoint_1-2_100.ckpt",
    b"llama-model-0000003-0000008.safetensors\nmodel-00001-of-00002.safetensors",
    b".metadata\n__0_0.distcp\nmetadata.json\ncommon.pt\na.bin\npytorch_model.bin.index.json",
)


def read(content: bytes) -> None:
    names = content.decode(errors="surrogateescape").split("\n")[:200]
    refused = []
    for act in (
        lambda: rank_folders(names, "fuzz"),
        lambda: [select_files({rank: found}) for rank, found in ranks_of_files(names).items()],
        lambda: select_files({0: names}),
        lambda: shards(names, "fuzz"),
        lambda: detect(names),
        lambda: [other_ranks(names[0], names, anywhere=True), total_of(names[0])],
    ):
        try:
            act()
        except ReshardError as error:
            refused.append(str(error))
    assert all(message.isprintable() for message in refused)
