"""The formats that can be read and written.

Another package adds a `SourceFormat` by an entry point of the group `reshard.formats`, and an `OutputFormat` by one of the group
`reshard.output_formats`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from reshard.checkpoint.manifest import STRATEGY_NAME
from reshard.checkpoint.unified import MAP_NAME
from reshard.errors import RequestError
from reshard.formats import detection
from reshard.spec.outputs import output_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from importlib.metadata import EntryPoints

    from reshard.formats.protocol import Folder, OutputFormat, SourceFormat
    from reshard.model import Checkpoint

GROUP = "reshard.formats"
OUTPUT_GROUP = "reshard.output_formats"


@dataclass(frozen=True, slots=True)
class _Own:
    """A format of this package. Its module is imported only when it reads a checkpoint.

    Attributes:
        name: name of the format.
        detect: whether a folder with files of these names holds a checkpoint of the format.
        module: module with a function `read`, as of `SourceFormat`.
        one_file: see `SourceFormat.one_file`.
    """

    name: str
    detect: Callable[[Sequence[str]], bool]
    module: str
    one_file: bool = False

    def read(self, folder: Folder, workers: int = 1, wanted: Callable[[str], bool] | None = None) -> Checkpoint:
        """Return the tensors of a checkpoint, see `SourceFormat.read`."""
        found: Checkpoint = import_module(self.module).read(folder, workers, wanted)
        return found


# In the order of detection: the files of a format can be among those of a format above it.
_OWN = {
    own.name: own
    for own in (
        _Own("hyper-parallel", detection.is_hyper_parallel, "reshard.formats.hyper_parallel"),
        _Own("mindformers", detection.is_mindformers, "reshard.formats.mindformers"),
        _Own("megatron", detection.is_megatron, "reshard.formats.torch.megatron"),
        _Own("torch-safetensors", detection.is_sharded, "reshard.formats.torch.sharded"),
        _Own("torch-dcp", detection.is_distributed, "reshard.formats.torch.reader"),
        _Own("torch-save", detection.is_saved, "reshard.formats.torch.saved", one_file=True),
    )
}
# By the values of `Options.format`. Imported only when they are needed.
_OWN_OUTPUT = {
    "Ckpt": "reshard.checkpoint.ckpt_output:CKPT",
    "Safetensors": "reshard.checkpoint.safetensors_output:SAFETENSORS",
    "HuggingFace": "reshard.formats.huggingface.write:HUGGING_FACE",
    "TorchDcp": "reshard.formats.torch.write:DCP",
    "TorchSafetensors": "reshard.formats.torch.sharded:SHARDED_OUTPUT",
    "Megatron": "reshard.formats.torch.write:MEGATRON",
}
# What the value "Source" stands for, by the format of the source. All others can be written as safetensors only.
_SAME_AS_SOURCE = {"ckpt": "Ckpt", "safetensors": "Safetensors"}


def requested_output(options: Mapping[str, Any], source: str) -> OutputFormat:
    """Return the format that a request asks for.

    Args:
        options: options of the request by their names in manifests, of which `format` and `output` are read.
        source: format of the source.

    Raises:
        RequestError: no format has the requested name.
    """
    wanted = str(options.get("format", "Source"))
    if wanted == "Source":
        wanted = "Safetensors" if output_of(options).whole else _SAME_AS_SOURCE.get(source, "Safetensors")
    return output_format(wanted)


def document_names(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the documents that complete a checkpoint with these options of a manifest."""
    output = requested_output(options, "")
    names = (MAP_NAME,) if output_of(options).whole and not output.names_files else output.document_names
    return (*names, STRATEGY_NAME) if options.get("writeStrategy") else names


def source_format(name: str) -> SourceFormat:
    """Return a format that can be read by its name.

    Raises:
        RequestError: no format has this name, or the package that adds it cannot be imported.
    """
    if name in _OWN:
        return _OWN[name]
    found: SourceFormat = _of_another_package(name, _OWN, GROUP, "source format")
    return found


def added_outputs() -> tuple[str, ...]:
    """Return the names of the formats of other packages that can be written."""
    return tuple(sorted({entry.name for entry in _entries(OUTPUT_GROUP)}))


def output_format(name: str) -> OutputFormat:
    """Return a format that can be written by its name in `Options.format`.

    Raises:
        RequestError: no format has this name, or the package that adds it cannot be imported.
    """
    found: OutputFormat
    if name in _OWN_OUTPUT:
        module, _, attribute = _OWN_OUTPUT[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        found = _of_another_package(name, _OWN_OUTPUT, OUTPUT_GROUP, "output format")
    return found


def _of_another_package(name: str, own: Iterable[str], group: str, what: str) -> Any:  # noqa: ANN401 - of either protocol
    entries = _entries(group)
    for entry in entries:
        if entry.name == name:
            try:
                return entry.load()
            except Exception as error:  # another package may raise anything
                reason = f"the package that adds the {what} {name} cannot be imported: {type(error).__name__}: {error}"
                fix = f"correct or uninstall it: {entry.value}"
                raise RequestError("FormatBroken", reason, where=what, fix=fix) from error
    known = ", ".join(sorted({*own, *(entry.name for entry in entries)}))
    raise RequestError("UnknownFormat", f"{name} is not the name of a known {what}", where=what, fix=f"use one of these: {known}")


def detect(names: Sequence[str]) -> SourceFormat | None:
    """Return the format of a folder with these files. None: no format recognizes them.

    A format that Reshard recognizes but cannot read is returned too. Its `read` raises RequestError.
    """
    return next((found for found in _all(names) if found.detect(names)), None)


def _all(names: Sequence[str]) -> Iterator[SourceFormat]:
    yield from detection.UNSUPPORTED
    yield from _OWN.values()
    if names and MAP_NAME not in names:  # neither only folders of ranks, nor a unified checkpoint of MindSpore
        for entry in _entries(GROUP):
            yield source_format(entry.name)


def _entries(group: str) -> EntryPoints:
    from importlib.metadata import entry_points  # noqa: PLC0415 - functions of Python start faster without it

    return entry_points(group=group)
