"""The outputs of a transform: what each writes, what it takes of the source, and what does not apply to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OutputKind = Literal["PerRank", "Stage", "Unified", "Same", "Index"]
# Name of the file of parameters that no strategy names, without its suffix (MindSpore 2.10, parallel/transform_safetensors.py).
HYPER = "hyper_param"


class Refusal(NamedTuple):
    """The reason why something does not apply to an output, and the remedy."""

    what: str
    fix: str = "omit it"


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output. The attributes and methods of this class describe an output with one file for each rank.

    Attributes:
        name: value of `Options.output`.
        refused: fields of `Options` and `Request` that must keep their defaults.
        not_encrypted: why files cannot be encrypted. None: they can.
        one_stage: whether the source is one of several pipeline stages. Other runs write the others to the same target.
        each_file: whether each source file is converted by itself, with its slices.
        whole: whether files hold whole parameters, up to a maximum size. A file counts as a rank.
        writes_files: whether the target gets files of ranks. False: it gets only an index of the source.
        replicates: whether several target ranks may hold the same slice.
    """

    name: OutputKind
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    not_encrypted: Refusal | None = None
    one_stage: bool = False
    each_file: bool = False
    whole: bool = False
    writes_files: bool = True
    replicates: bool = False

    def ranks(self, count: int, has_parameters: Callable[[int], bool]) -> tuple[int, ...]:
        """Return the target ranks that get a file.

        Args:
            count: number of target ranks.
            has_parameters: whether the plan of a rank contains parameters.
        """
        return tuple(range(count))

    def path(self, rank: int, name: str, *, stage: int | None, source: str, is_hyper: Callable[[int], bool]) -> str:
        """Return the path of a rank's file without its suffix, for formats that do not determine the names of files.

        Args:
            rank: number of the target rank.
            name: name that the options give the file.
            stage: pipeline stage of the source, with `one_stage`.
            source: path of the source file without its suffix, with `each_file`.
            is_hyper: whether a file holds the parameters that no strategy names, with `whole`.
        """
        return f"rank_{rank}/{name}"


class _Stage(Output):
    def ranks(self, count: int, has_parameters: Callable[[int], bool]) -> tuple[int, ...]:
        """Return the ranks that hold parameters of the stage."""
        return tuple(rank for rank in range(count) if has_parameters(rank))

    def path(self, rank: int, name: str, *, stage: int | None, source: str, is_hyper: Callable[[int], bool]) -> str:
        """Return MindSpore's name for the file of one stage."""
        return f"rank_{rank}/{name}_part{stage}"


class _Unified(Output):
    def path(self, rank: int, name: str, *, stage: int | None, source: str, is_hyper: Callable[[int], bool]) -> str:
        """Return MindSpore's name for one of the files."""
        return HYPER if is_hyper(rank) else f"part{rank}"


class _Same(Output):
    def path(self, rank: int, name: str, *, stage: int | None, source: str, is_hyper: Callable[[int], bool]) -> str:
        """Return the path of the source file. Nested folders, and folders in another spelling, get the usual name."""
        folder, _, name = source.rpartition("/")
        return f"{folder if folder.startswith('rank_') else f'rank_{rank}'}/{name}" if folder else name


class _Index(Output):
    def ranks(self, count: int, has_parameters: Callable[[int], bool]) -> tuple[int, ...]:
        """Return no ranks."""
        return ()


_NO_STAGES = {
    "stages": Refusal(
        "the number of stages applies only to the output Stage", "omit it, or add --output stage (spec.target.output: Stage)"
    )
}
_FIXED_NAMES = {"file_prefix": Refusal("the output has fixed file names", "omit file_prefix")}
_NO_INDEX = {"index": Refusal("an index can be used only with the output PerRank", "omit the index or the output")}
_NO_STRATEGY = {"write_strategy": Refusal("the target gets a strategy file only with the output PerRank")}
_RANK_FILES = ("format", "file_prefix", "only_ranks", "remove_redundancy", "crc", "copy_mode", "link_replicas")


def _undivided(name: OutputKind) -> dict[str, Refusal]:
    refusal = Refusal(f"the output {name} has no ranks among which tensors are divided")
    return _NO_STRATEGY | {"target_ranks": refusal, "scale": refusal}


PER_RANK = Output(name="PerRank", refused=_NO_STAGES, replicates=True)
STAGE = _Stage(
    name="Stage",
    refused=_NO_INDEX | _undivided("Stage"),
    not_encrypted=Refusal(
        "stage files cannot be encrypted, because the final commit compares them and has no key",
        "omit the encryption, or transform all stages at once",
    ),
    one_stage=True,
)
UNIFIED = _Unified(
    name="Unified",
    refused=_NO_STAGES
    | _FIXED_NAMES
    | _NO_INDEX
    | _undivided("Unified")
    | {"target_strategy": Refusal("a unified checkpoint contains whole parameters", "omit the strategy")},
    whole=True,
)
SAME = _Same(
    name="Same",
    refused=_NO_STAGES
    | _FIXED_NAMES
    | _NO_INDEX
    | _undivided("Same")
    | dict.fromkeys(
        ("source_strategy", "target_strategy"),
        Refusal("the output Same accepts no strategy", "omit the strategy, or use another output"),
    )
    | {"pad": Refusal("the output Same does not know the whole shapes of parameters", "use another output")},
    each_file=True,
)
INDEX = _Index(
    name="Index",
    refused=_NO_STAGES
    | _NO_STRATEGY
    | {name: Refusal("the output Index writes no rank files", f"omit {name}") for name in _RANK_FILES},
    not_encrypted=Refusal("an index contains nothing that can be encrypted", "omit the encryption"),
    writes_files=False,
)
OUTPUTS: Mapping[str, Output] = {each.name: each for each in (PER_RANK, STAGE, UNIFIED, SAME, INDEX)}


def output_of(options: Mapping[str, Any]) -> Output:
    """Return the output in the options of a manifest."""
    return OUTPUTS.get(str(options.get("output")), PER_RANK)
