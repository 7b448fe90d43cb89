"""What one process is to carry out, with every place resolved. Frozen, validated data. Pure."""

from __future__ import annotations

import os
import re
from functools import cache
from reprlib import repr as shortened
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from reshard.errors import UsageError
from reshard.spec.access import Accesses
from reshard.spec.keys import Encryption
from reshard.spec.urls import normalized

OutputFormat = Literal["Source", "Ckpt", "Safetensors"]
OutputKind = Literal["PerRank", "Stage", "Unified", "Same", "Index"]
SourceOnly = Literal["Drop", "Keep"]
Replicas = Literal["Identical", "LowestRank"]
Verification = Literal["None", "Sample", "Full"]
Overwrite = Literal["Never", "Replace"]
CopyMode = Literal["Client", "Server"]
ParameterPattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1 << 10)]
AllowInconsistent = Annotated[tuple[ParameterPattern, ...], msgspec.Meta(max_length=1 << 10)]
Stages = Annotated[int, msgspec.Meta(ge=1, le=65536)]

# A higher level checks all that a lower one does.
STRICTNESS: dict[Verification, int] = {"None": 0, "Sample": 1, "Full": 2}
_LONGEST_PREFIX_BYTES = 128
_LONGEST_NAME = 1 << 14


def check_prefix(prefix: str) -> None:
    """The beginning of file names.

    Raises:
        UsageError: no file can be named so, or it would not be found again.
    """
    problem = None
    if "/" in prefix or not prefix.isprintable():
        problem = "it cannot be the start of a file name"
    elif len(prefix.encode()) > _LONGEST_PREFIX_BYTES:
        problem = f"it is longer than {_LONGEST_PREFIX_BYTES} bytes"
    elif prefix.startswith("."):
        problem = "hidden files are not recognized as checkpoint files"
    elif re.search(r"-[0-9]+_$", prefix):
        problem = "the ranks that follow it would be read as training steps"
    if problem is not None:
        fix = "use another prefix, such as checkpoint_"
        raise UsageError("InvalidPrefix", f"{prefix!r}: {problem}", where="file_prefix", fix=fix)


class RenameRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one parameter, or all those that match a pattern, are called at the target.

    Attributes:
        to: the new name, with as many stars as the pattern has: each stands for what that star stood for. None: it is left out.
        name: the one parameter's in the source.
        pattern: text in which each star stands for any characters, as few as will do.

    Raises:
        UsageError: it cannot be carried out.
    """

    to: str | None
    name: str | None = msgspec.field(default=None, name="from")
    pattern: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be carried out."""
        problem = None
        texts = [text for text in (self.to, self.name, self.pattern) if text is not None]
        if (self.name is None) == (self.pattern is None):
            problem = "a rule requires either a name or a pattern"
        elif not all(isinstance(text, str) and 0 < len(text) <= _LONGEST_NAME for text in texts):
            problem = f"a name must have 1 to {_LONGEST_NAME} characters"
        elif any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            problem = "a name must be encodable as UTF-8"
        elif self.pattern is not None and self.to is not None and self.pattern.count("*") != self.to.count("*"):
            problem = "the new name and the pattern have different numbers of `*`"
        if problem is not None:
            old = self.name if self.pattern is None else self.pattern
            raise UsageError(
                "InvalidRename",
                f"{shortened(old)} to {shortened(self.to)}: {problem}",
                where="rename",
                fix="correct this rename rule",
            )


class Options(msgspec.Struct, frozen=True):
    """How to transform, apart from where. The defaults are those of the resource.

    Raises:
        UsageError: a value is none of those that there are.

    Attributes:
        format: the format of the target's files.
        output: what is written. "PerRank": one file for each rank, as the target's strategy cuts the parameters; "Stage": the
            same, with the parameters of one pipeline stage of the source; "Unified": whole parameters in files of bounded size;
            "Same": the source's files, each by itself and under its own name; "Index": an index of the source only.
        max_file_size_bytes: the largest size of a unified file, which only a single larger parameter exceeds. None: 3 GiB.
        hugging_face_index: whether unified files are ones that Hugging Face's libraries load, by an index beside them.
        file_prefix: their names are the prefix, the rank and the format's extension.
        numbered: whether the rank is in the names, beside those of the folders.
        step: the training step whose files are read.
        files: the shell pattern that the names of the files match, or their paths in the source if there is a `/` in it.
        allow_single_rank: whether to read the file of one rank as a whole checkpoint although other ranks are next to it.
        allow_equal_slices: whether ranks may hold equal content where the source's strategy gives them different slices.
        stages: how many pipeline stages there are, where the source is one of them; None: as many as it has ranks for.
        ranks: the target ranks that are wanted, such as "0,2-5".
        source_only: what happens to parameters that only the source's strategy names.
        allow_missing: whether to leave out what only the target's strategy names.
        remove_redundancy: whether of the target ranks that hold the same slice of a parameter one writes it, instead of all.
        rename: what parameters are called at the target.
        allow_inconsistent: patterns of the source's names of parameters that no strategy names and whose copies may differ
            between source ranks, or that may be slices in MindSpore's `hyper_param.safetensors`. `*` matches any characters.
            Target rank r gets the copy of source rank r modulo their number.
        replicas: what to do with slices that the source's strategy gives to several ranks. "Identical": refuse a source whose
            replicas differ, and read any of them; "LowestRank": read each slice from the lowest rank that holds it.
        crc: whether to write the CRC32 that MindSpore checks.
        file_mode: permission bits of files; folders also get search permission for everyone who may read. None: 0666 and 0777,
            less the umask.
        verification: how much of what was written is compared with the source.
        overwrite: whether another checkpoint at the target may be replaced.
        copy_mode: whether an object store copies by itself what it can.
    """

    format: OutputFormat = "Source"
    output: OutputKind = "PerRank"
    max_file_size_bytes: Annotated[int, msgspec.Meta(ge=1 << 10)] | None = None
    hugging_face_index: bool = False
    file_prefix: str = "checkpoint_"
    numbered: bool = True
    step: int | None = None
    files: str | None = None
    allow_single_rank: bool = False
    allow_equal_slices: bool = False
    stages: Stages | None = None
    ranks: str | None = None
    source_only: SourceOnly = "Drop"
    allow_missing: bool = False
    remove_redundancy: bool = False
    rename: tuple[RenameRule, ...] = ()
    allow_inconsistent: AllowInconsistent = ()
    replicas: Replicas = "Identical"
    crc: bool = False
    file_mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] | None = None
    verification: Verification = "Sample"
    overwrite: Overwrite = "Never"
    copy_mode: CopyMode = "Client"

    def __post_init__(self) -> None:
        """Refuse what a type checker would have refused: a wrong word must not be taken for another."""
        for name, field in _declared().items():
            value = getattr(self, name)
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                raise UsageError("InvalidOption", f"{value!r}: {error}", where=name, fix=_fix(field.type)) from error
        check_prefix(self.file_prefix)
        if not (self.file_prefix or self.numbered):
            raise UsageError(
                "InvalidPrefix",
                "the prefix is required, because these files have no number",
                where="file_prefix",
                fix="use a prefix such as checkpoint_",
            )
        _check_rules(self.rename)
        for name, (output, what) in _ONLY_WITH.items():
            if self.output != output and getattr(self, name) != _default(name):
                fix = f"omit it, or add --output {output.lower()} (spec.target.output: {output})"
                raise UsageError("InvalidOption", what, where=name, fix=fix)
        if self.output == "Unified" and self.format == "Ckpt":
            raise UsageError("InvalidOption", "unified checkpoints are always safetensors", where="format", fix="omit it")
        if self.output in ("Unified", "Same") and self.file_prefix != _default("file_prefix"):
            raise UsageError("InvalidOption", "these files have fixed names", where="file_prefix", fix="omit it")
        if self.output == "Index" and (other := [name for name in _OF_FILES if getattr(self, name) != _default(name)]):
            raise UsageError("InvalidOption", "the output Index writes no rank files", where=other[0], fix="omit it")

    @property
    def most_bytes(self) -> int:
        """The largest size of a unified file in bytes."""
        return self.max_file_size_bytes or 3 << 30


@cache
def _declared() -> dict[str, msgspec.structs.FieldInfo]:
    """What is declared of each option."""
    return {field.name: field for field in msgspec.structs.fields(Options)}


def _default(option: str) -> object:
    return _declared()[option].default


def _fix(kind: object) -> str:
    """What to do where a value is none of this type: the words are listed where there are some."""
    return f"use one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else "correct the value, or omit it"


# Options that go with one kind of output only.
_ONLY_WITH: dict[str, tuple[OutputKind, str]] = {
    "hugging_face_index": ("Unified", "only unified checkpoints have an index file"),
    "max_file_size_bytes": ("Unified", "only unified checkpoints have a maximum file size"),
    "stages": ("Stage", "the number of stages applies only to the output Stage"),
}
# Says something about files of ranks only.
_OF_FILES = ("format", "file_prefix", "ranks", "remove_redundancy", "crc", "copy_mode")
# Decides what of a source is read, and is therefore settled in its index.
SETTLED_BY_INDEX = (
    "allow_single_rank",
    "allow_equal_slices",
    "source_only",
    "allow_missing",
    "rename",
    "allow_inconsistent",
    "replicas",
)
_OF_THE_SOURCE = ("step", "files", *SETTLED_BY_INDEX)


def _check_rules(rules: tuple[RenameRule, ...]) -> None:
    """Two rules for one name, of which only one can be followed.

    Raises:
        UsageError: there are.
    """
    seen: dict[str, str | None] = {}
    for rule in rules:
        if rule.name is not None and seen.setdefault(rule.name, rule.to) != rule.to:
            raise UsageError(
                "InvalidOption",
                f"two rules rename {rule.name!r}, to {seen[rule.name]!r} and to {rule.to!r}",
                where="rename",
                fix="remove one of the rules",
            )


class Request(msgspec.Struct, frozen=True):
    """One transform, with every place resolved to a folder or to s3://bucket/prefix.

    Attributes:
        source: the folder with `rank_<r>/`, or one file.
        target: the folder to write to.
        source_strategy: a file or a folder of stages; None: the source is one whole rank.
        target_strategy: a file or a folder of stages for the target; None: it is to be one whole rank.
        options: all that decides how.
        index: the folder where `output: Index` has indexed this source; it is read instead of headers and strategies.
        access: the way to those of them that are in an object store.
        decryption: the key of the source's files; None: they are not encrypted.
        encryption: the key for the target's files; None: they are not to be encrypted.
    """

    source: str
    target: str
    source_strategy: str | None = None
    target_strategy: str | None = None
    options: Options = Options()
    access: Accesses = Accesses()
    index: str | None = None
    decryption: Encryption | None = None
    encryption: Encryption | None = None

    def __post_init__(self) -> None:
        """Take paths of any kind; never show what may be a key."""
        for name in ("decryption", "encryption"):
            if not isinstance(getattr(self, name), Encryption | None):
                raise UsageError(
                    "InvalidOption",
                    "the value must be a reshard.Encryption",
                    where=name,
                    fix="pass reshard.Encryption(reshard.Key(file=...))",
                )
        for name in ("source", "target", "source_strategy", "target_strategy", "index"):
            value: object = getattr(self, name)
            if isinstance(value, os.PathLike):
                value = os.fspath(value)
            if isinstance(value, str):
                msgspec.structs.force_setattr(self, name, normalized(value))
            elif value is not None or not name.endswith(("strategy", "index")):
                raise UsageError("InvalidOption", f"{value!r} is not a path", where=name, fix="pass a str or an os.PathLike")
        if self.target_strategy and self.options.output == "Unified":
            raise UsageError(
                "InvalidOption",
                "a unified checkpoint contains whole parameters",
                where="target strategy",
                fix="omit the strategy",
            )
        if (self.source_strategy or self.target_strategy) and self.options.output == "Same":
            raise UsageError(
                "InvalidOption",
                "the output Same accepts no strategy",
                where="source strategy" if self.source_strategy else "target strategy",
                fix="omit the strategy, or use another output",
            )
        if self.index is not None:
            _refuse_what_an_index_says(self)


def _refuse_what_an_index_says(request: Request) -> None:
    """Strategies, and options that were decided when the source was indexed.

    Raises:
        UsageError: one is given all the same.
    """
    said = [name for name in ("source_strategy", "target_strategy") if getattr(request, name) is not None]
    said += [name for name in _OF_THE_SOURCE if getattr(request.options, name) != _default(name)]
    if request.options.output in ("Unified", "Same", "Stage"):
        said.append("output")
    if said:
        raise UsageError(
            "InvalidOption", "the index already defines it", where=said[0], fix="omit it, or create the index again with it"
        )


def request_key(request: Request) -> dict[str, Any]:
    """What of a request decides what is written, wherever it is written and however it is checked. Keys are no part of it."""
    options = request.options
    encrypted = {"encryption": request.encryption.mode} if request.encryption is not None else {}
    return encrypted | {
        "format": options.format,
        "output": options.output,
        "maxFileSizeBytes": options.most_bytes if options.output == "Unified" else None,
        "huggingFaceIndex": options.hugging_face_index,
        "filePrefix": options.file_prefix,
        "numbered": options.numbered,
        "allowSingleRank": options.allow_single_rank,
        "allowEqualSlices": options.allow_equal_slices,
        "sourceOnly": options.source_only,
        "allowMissing": options.allow_missing,
        "removeRedundancy": options.remove_redundancy,
        "rename": [msgspec.to_builtins(rule) for rule in options.rename],
        "allowInconsistent": list(options.allow_inconsistent),
        "replicas": options.replicas,
        "crc": options.crc,
    }
