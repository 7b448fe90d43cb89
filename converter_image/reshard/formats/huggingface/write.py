"""Write a checkpoint as transformers does: whole tensors in numbered safetensors files, and an index.

```
model.safetensors                        if there is one file
model-00001-of-00002.safetensors, ...    otherwise
model.safetensors.index.json             {"metadata": {"total_parameters", "total_size"}, "weight_map": {name: file}}
config.json, tokenizer.json, ...         copied from the source on request
```
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import msgspec

from reshard.checkpoint.dtypes import DTYPES, OBJECT
from reshard.checkpoint.safetensors_output import SafetensorsFormat
from reshard.checkpoint.unified import HF_INDEX_NAME, single_file_of
from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from reshard.checkpoint.output import OutputFile, OutputTensor, Piece

# transformers before version 5 refuses files without a format that it knows.
METADATA = {"format": "pt"}
# What `save_pretrained` of models, tokenizers and processors writes besides tensors.
_SETTINGS = frozenset(
    {
        *("config.json", "generation_config.json", "adapter_config.json"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json"),
        *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    }
)


class HuggingFaceFormat(SafetensorsFormat):
    """The format as `reshard.formats.protocol.OutputFormat`. Each file holds whole tensors."""

    name: str = "huggingface"
    outputs = ("Unified",)
    crc = None
    has_settings = True
    names_files = True
    document_names = (HF_INDEX_NAME,)

    def conflicting(self, ranks: int) -> tuple[str, ...]:
        """Return the file that Hugging Face libraries prefer to an index."""
        return (single_file_of(HF_INDEX_NAME),) if ranks > 1 else ()

    def path(self, rank: int, ranks: int, stem: str) -> str:
        """Return the name of a file."""
        return "model.safetensors" if ranks == 1 else f"model-{rank + 1:05d}-of-{ranks:05d}.safetensors"

    def can_hold(self, tensor: OutputTensor) -> bool:
        """Return whether the value is a tensor.

        Raises:
            DataError: safetensors or torch does not have the type.
        """
        if super().can_hold(tensor) and DTYPES[tensor.dtype].torch is None:
            raise DataError(
                "UnknownType",
                f"torch has no equivalent of the type {tensor.dtype}, so Hugging Face libraries cannot load it",
                where=f"parameter {tensor.name}",
                fix="exclude the parameter, or write safetensors files of MindSpore: --format safetensors"
                " (spec.target.format: Safetensors)",
            )
        return tensor.dtype != OBJECT

    def pieces(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], crc: int | None = None) -> Iterator[Piece]:
        """Yield a file with the metadata that transformers writes."""
        return super().pieces(tensors, METADATA)

    def file_size(self, tensors: Sequence[OutputTensor], metadata: Mapping[str, str], *, crc: bool = False) -> int:
        """Return the length of a file in bytes."""
        return super().file_size(tensors, METADATA)

    def documents(self, files: Iterable[OutputFile]) -> Mapping[str, bytes]:
        """Return the index of several files. A single file needs none, and transformers would not read it."""
        weights, paths, nbytes, parameters = {}, set(), 0, 0
        for file in files:
            paths.add(file.path)
            for tensor in file.tensors:
                weights[tensor.name] = file.path
                nbytes += tensor.nbytes
                parameters += prod(DTYPES[tensor.dtype].count_values(tensor.shape))
        if paths == {single_file_of(HF_INDEX_NAME)}:
            return {}
        index = {
            "metadata": {"total_parameters": parameters, "total_size": nbytes},
            "weight_map": dict(sorted(weights.items())),
        }
        return {HF_INDEX_NAME: msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"}

    def carried(self, names: Sequence[str], where: str, *, settings: bool) -> Sequence[str]:
        """Return the settings of the model, its tokenizer and its processors, if they are requested."""
        return sorted(_SETTINGS.intersection(names)) if settings else ()


HUGGING_FACE = HuggingFaceFormat()
