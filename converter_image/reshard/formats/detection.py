"""Detection of the format of a folder by the names of its files. Importing this module loads no reader."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from reshard.errors import RequestError
from reshard.formats.torch.names import ENDINGS, metadata_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reshard.formats.protocol import Folder

# Patterns are compiled when there are names to match, so that a folder of ranks costs no time.
SHARD = r"shard-[0-9]{5,}-model-[0-9]{5,}-of-[0-9]{5,}\.safetensors"
HYPER_PARALLEL_METADATA = r"\.metadata|([0-9]{1,9})\.metadata|\.rank([0-9]{1,9})_metadata"
HYPER_PARALLEL_CONTENT = r"_rank([0-9]{1,9})_\.(?:safetensors|bytes)|[\s\S]+_rank([0-9]{1,9})\.bytes"
_WHOLE = r"[\s\S]+\.(?:safetensors|ckpt)|pytorch_model[\s\S]*\.bin"
_MINDFORMERS = r"(?:[\s\S]+-)?(?:model|opt)-[0-9]{7}-[0-9]{7}\.safetensors"


def is_hyper_parallel(names: Sequence[str]) -> bool:
    """Return whether HyperParallel wrote these files: metadata, and the tensors of each rank."""
    return _any(HYPER_PARALLEL_METADATA, names) and _any(HYPER_PARALLEL_CONTENT, names)


def is_mindformers(names: Sequence[str]) -> bool:
    """Return whether MindFormers wrote these files in its Checkpoint 2.0 format."""
    return "metadata.json" in names and _any(_MINDFORMERS, names)


def is_megatron(names: Sequence[str]) -> bool:
    """Return whether Megatron-core wrote these files with `dist_checkpointing`."""
    return "common.pt" in names and ("metadata.json" in names or bool(metadata_files(names)))


def is_sharded(names: Sequence[str]) -> bool:
    """Return whether PyTorch's HuggingFaceStorageWriter wrote shards of tensors into these files."""
    return _any(SHARD, names)


def is_distributed(names: Sequence[str]) -> bool:
    """Return whether these are the files of a distributed checkpoint of PyTorch, which lacks its metadata while it is written."""
    return bool(metadata_files(names)) or any(name.endswith(".distcp") for name in names)


def is_saved(names: Sequence[str]) -> bool:
    """Return whether `torch.save` wrote one of these files, and none is a checkpoint file of MindSpore or Hugging Face.

    Trainers keep other files that `torch.save` wrote next to a model in safetensors files.
    """
    return any(name.endswith(ENDINGS) for name in names) and not any(name.endswith((".safetensors", ".ckpt")) for name in names)


def _any(pattern: str, names: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A format that Reshard recognizes but cannot read. The error states how to convert the checkpoint.

    Attributes:
        name: name of the format.
        files: pattern of the names of its files.
        what: format, as the subject of a message.
        fix: remedy, in the imperative.
    """

    name: str
    files: str
    what: str
    fix: str
    one_file: ClassVar = True  # `read` refuses it in any case, and states how to convert it

    def detect(self, names: Sequence[str]) -> bool:
        """Return whether one of these files belongs to a checkpoint of this format, and none holds whole tensors.

        Trainers keep both in one folder.
        """
        return _any(self.files, names) and not _any(_WHOLE, names)

    def read(self, folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> NoReturn:
        """Refuse the checkpoint.

        Raises:
            RequestError: always.
        """
        raise RequestError("UnsupportedSource", f"{self.what} cannot be read", where=folder.url, fix=self.fix)


UNSUPPORTED = (
    Unsupported(
        "deepspeed",
        r"(?:bf16_)?zero_pp_rank_[\s\S]*\.pt|(?:layer_[0-9]+-)?mp_rank_[0-9]+_model_states\.pt|zero_to_fp32\.py|latest_universal",
        "a DeepSpeed checkpoint, whose optimizer state is in flat partitions,",
        "convert its weights with `python zero_to_fp32.py CHECKPOINT OUTPUT --safe_serialization`, which DeepSpeed saves next to"
        " the checkpoint, and use OUTPUT as the source",
    ),
    Unsupported(
        "orbax",
        r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt",
        "an Orbax checkpoint, whose arrays are compressed,",
        "restore it with Orbax and save it as safetensors, for example with `safetensors.flax.save_file`",
    ),
    Unsupported(
        "megatron-legacy",
        r"model_optim_rng\.pt|model_rng\.pt|distrib_optim\.pt",
        "a checkpoint of Megatron's format `torch`, which does not state how tensors are sharded,",
        "load it with Megatron-LM and save it with --ckpt-convert-format torch_dist --ckpt-convert-save OUTPUT",
    ),
    Unsupported(
        "fsdp-ranks",
        r"model_world_size_[0-9]+_rank_[0-9]+\.pt",
        "a checkpoint with a torch.save file of DTensors for each rank, as verl writes,",
        "merge it with `python -m verl.model_merger merge --backend fsdp --local_dir CHECKPOINT --target_dir OUTPUT`, and use"
        " OUTPUT as the source",
    ),
)
