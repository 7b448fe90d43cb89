"""Checkpoints for measurements: shapes and layouts of real models, with random content."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from reshard.checkpoint.dtypes import DTYPES
from reshard.checkpoint.output import OutputTensor, Span
from reshard.formats.registry import output_format
from reshard.layout import Layout
from reshard.strategy import StrategyFile, dump

Axes = tuple[int, ...]
# Default folder of the cases, and of what is written to measure them.
FOLDER = Path(os.environ.get("RESHARD_CACHE", "/tmp/reshard")) / "bench"  # noqa: S108 - not secret


@dataclass(frozen=True)
class Tensor:
    """One parameter: which of its dimensions the source and the target cut over all their ranks (-1: none)."""

    name: str
    shape: Axes
    source: int
    target: int
    dtype: str = "Float32"

    def layout(self, ranks: int, dimension: int, replicas: int = 1) -> Layout:
        """Return the layout over this number of ranks. Each slice is on `replicas` of them."""
        return Layout((replicas, ranks // replicas), tuple((0,) if i == dimension else () for i in range(len(self.shape))))


@dataclass(frozen=True)
class Case:
    """A checkpoint, and the transform to measure.

    Attributes:
        replicas: number of target ranks that hold each slice.
        work: `reshard` to other ranks, `unify` to unified safetensors, `load` from those to ranks, and from a distributed
            checkpoint of PyTorch to Hugging Face (`dcp-huggingface`), to one for other ranks (`dcp-dcp`) or to the files of
            ranks (`dcp-ranks`). `workers`: to other ranks, with different numbers of workers.
        peers: whether other programs do the same work, and are measured where they are installed.
    """

    name: str
    what: str
    tensors: tuple[Tensor, ...]
    source_ranks: int
    target_ranks: int
    format: str = "safetensors"
    work: Literal["reshard", "unify", "load", "dcp-huggingface", "dcp-dcp", "dcp-ranks", "workers"] = "reshard"
    replicas: int = 1
    peers: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the whole tensors in bytes."""
        return sum(prod(t.shape) * DTYPES[t.dtype].itemsize for t in self.tensors)


def llama(layers: int, hidden: int, ffn: int, vocabulary: int) -> tuple[Tensor, ...]:
    """A LLaMA-shaped model under tensor parallelism: row and column cuts mixed, norms on every rank."""
    rows, columns, none = 0, 1, -1
    tensors = [Tensor("model.embedding.weight", (vocabulary, hidden), rows, rows)]
    for i in range(layers):
        prefix = f"model.layers.{i}"
        tensors += [
            Tensor(f"{prefix}.{name}.weight", shape, cut, cut)
            for name, shape, cut in (
                ("attention.wq", (hidden, hidden), rows),
                ("attention.wk", (hidden, hidden), rows),
                ("attention.wv", (hidden, hidden), rows),
                ("attention.wo", (hidden, hidden), columns),
                ("feed_forward.w1", (ffn, hidden), rows),
                ("feed_forward.w3", (ffn, hidden), rows),
                ("feed_forward.w2", (hidden, ffn), columns),
                ("attention_norm", (hidden,), none),
                ("ffn_norm", (hidden,), none),
            )
        ]
    return (
        *tensors,
        Tensor("model.norm.weight", (hidden,), none, none),
        Tensor("lm_head.weight", (vocabulary, hidden), rows, rows),
    )


def mixture(layers: int, experts: int) -> tuple[Tensor, ...]:
    """A mixture of experts with the two moments of Adam: many names, most of them of small tensors."""
    weights = [f"layers.{i}.mlp.experts.{j}.{w}" for i in range(layers) for j in range(experts) for w in ("w1", "w2", "w3")]
    weights += [f"layers.{i}.attention.{w}" for i in range(layers) for w in ("wq", "wk", "wv", "wo")]
    return tuple(Tensor(f"{prefix}{name}.weight", (192, 2), 0, 0) for prefix in ("", "adam_m.", "adam_v.") for name in weights)


LLAMA_2_GB = llama(8, 2048, 5504, 32000)
SQUARES = tuple(f"w{i}" for i in range(8))
CASES = (
    Case("llama-safetensors", "2.1 GB LLaMA-shaped, 8 -> 4, safetensors", LLAMA_2_GB, 8, 4, peers=True),
    Case("llama-ckpt", "2.1 GB LLaMA-shaped, 8 -> 4, ckpt", LLAMA_2_GB, 8, 4, "ckpt", peers=True),
    Case("workers", "2.1 GB LLaMA-shaped, 16 -> 8, by the number of workers", LLAMA_2_GB, 16, 8, work="workers"),
    Case("llama-large", "8.6 GB LLaMA-shaped, 8 -> 4, safetensors", llama(32, 2048, 5504, 128000), 8, 4),
    Case("replicas", "2.1 GB LLaMA-shaped, 8 -> 32 with 4 replicas, 8.6 GB written", LLAMA_2_GB, 8, 32, replicas=4),
    Case("columns", "2.1 GB column cuts, 4 -> 8", tuple(Tensor(w, (8192, 8192), 1, 1) for w in SQUARES), 4, 8),
    Case(
        "rows-to-columns", "2.1 GB row cuts to column cuts, 4 -> 8", tuple(Tensor(w, (8192, 8192), 0, 1) for w in SQUARES), 4, 8
    ),
    Case("one-tensor", "one tensor of 6.4 GB, 4 -> 2, ckpt", (Tensor("w", (40000, 40000), 0, 1),), 4, 2, "ckpt"),
    Case(
        "long-rows", "2.1 GB row cuts in runs of 67 MB, 8 -> 4", tuple(Tensor(w, (16384, 8192), 0, 0) for w in SQUARES[:4]), 8, 4
    ),
    Case("many-names", "100,000 names, 4 -> 2", tuple(Tensor(f"model.layers.{i}.w", (8,), 0, 0) for i in range(100_000)), 4, 2),
    Case("mixture", "140,000 names of a mixture of experts with moments, 64 -> 48", mixture(60, 257), 64, 48),
    Case("unify", "2.1 GB LLaMA-shaped, 8 ranks to unified parts of 256 MiB", LLAMA_2_GB, 8, 1, work="unify", peers=True),
    Case("load", "2.1 GB LLaMA-shaped, unified parts to 4 ranks", LLAMA_2_GB, 8, 4, work="load", peers=True),
    Case("dcp-huggingface", "2.1 GB LLaMA-shaped, DCP of 8 ranks to Hugging Face", LLAMA_2_GB, 8, 1, work="dcp-huggingface"),
    Case("dcp-dcp", "2.1 GB LLaMA-shaped, DCP, 8 -> 4", LLAMA_2_GB, 8, 4, work="dcp-dcp"),
    Case(
        "dcp-names",
        "5,000 tensors, DCP of 8 ranks to 64 ranks",
        tuple(Tensor(f"model.layers.{i}.w", (64, 8 + i % 2), 0, 0) for i in range(5000)),
        8,
        64,
        work="dcp-ranks",
    ),
    Case("tiny-tensors", "10,000 tiny tensors, 8 -> 6", tuple(Tensor(f"t{i}", (24, 24), 0, 1) for i in range(10_000)), 8, 6),
)


def make(case: Case, folder: Path) -> Path:
    """Write the case's source and strategies to a folder of its own, or reuse those that exist there."""
    place = folder / case.name
    done = place / "done"
    if done.exists():
        return place
    print(f"making {case.what}", file=sys.stderr)
    place.mkdir(parents=True, exist_ok=True)
    sides = (("source", case.source_ranks, 1), ("target", case.target_ranks, case.replicas))
    for side, ranks, replicas in sides:
        layouts = {t.name: t.layout(ranks, getattr(t, side), replicas) for t in case.tensors}
        (place / f"{side}.ckpt").write_bytes(dump(StrategyFile(side, {0: layouts}), "protobuf"))
    noise = np.random.default_rng(0).bytes((64 << 20) + 8)
    tensors = []
    for t in case.tensors:
        shape = tuple(n // k for n, k in zip(t.shape, t.layout(case.source_ranks, t.source).parts, strict=True))
        tensors.append(OutputTensor(t.name, t.dtype, shape, prod(shape) * DTYPES[t.dtype].itemsize))
    output = output_format(case.format.capitalize())
    tensors = [tensors[i] for i in output.content_order(tensors)]
    cut = {t.name for t in case.tensors if t.source >= 0}
    shift = [104729 if t.name in cut else 0 for t in tensors]  # copies of one slice are equal
    for rank in range(case.source_ranks):
        path = place / "src" / f"rank_{rank}" / f"model-1_100.{case.format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in output.pieces(tensors, {"format": "ms"}):
                if isinstance(piece, bytes):
                    file.write(piece)
                    continue
                assert isinstance(piece, Span)  # noqa: S101 - neither format has checksums of content
                left, number = piece.length, piece.tensor
                while left:
                    rest = min(left, tensors[number].nbytes)
                    start = (number * 7919 + rank * shift[number]) % (32 << 20)
                    left, number = left - rest, number + 1
                    while rest:
                        n = min(rest, 32 << 20)
                        file.write(noise[start : start + n])
                        rest -= n
    done.touch()
    return place
