"""The task of a transform: everything that is decided before data is moved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from reshard import checkpoint
from reshard.checkpoint import OutputTensor, can_hold, content_order
from reshard.checkpoint.blockcipher import BlockCipher, cipher_of
from reshard.checkpoint.dtypes import DTYPES, INT4
from reshard.checkpoint.encryption import sealed_size
from reshard.checkpoint.unified import HYPER_NAME, part_name
from reshard.engine.gather import SourceFiles
from reshard.errors import RequestError
from reshard.plan import Planner, Role, summarize, unmatched
from reshard.plan.copies import equal_files
from reshard.plan.rename import NamePattern
from reshard.source.index import Selected
from reshard.spec.ranks import format_ranks, parse_ranks
from reshard.spec.request import Request, request_key
from reshard.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reshard.checkpoint import Span
    from reshard.checkpoint.inventory import Format, SourceFile
    from reshard.engine.gather import ReadCount
    from reshard.plan import Model, Summary
    from reshard.storage.protocol import ReadStore
    from reshard.strategy import Strategy


# A target contains a checkpoint and at most one replacement for it. Any higher number of names is sufficient.
_NAMESAKES = 8


@dataclass(frozen=True, slots=True)
class Job:
    """A transform task.

    Attributes:
        request: request of the transform.
        source: store of the source's files, decrypted.
        planner: planner of all target ranks.
        digest: identifies source, strategies and options. Equal digests mean equal files.
        key: fields of the request that determine the result, to find a started task without reading the source.
        format: format of the target's files.
        stage: pipeline stage of the source whose files the task writes. None: all stages.
        whole: identifies the checkpoint by what the tasks of all its stages share. Without stages: the digest.
        selected: result of the selection of the source's files.
        strategies: source strategy and target strategy.
        notes: messages for the user.
        cipher: cipher of the target's files. None: they are not encrypted.
        indexed: whether an index describes the source's files.
        listing: digest of the source's listing, see `SourceRecord.listing`.
        planned: whether a plan in the target describes the source's files.
    """

    request: Request
    source: ReadStore
    planner: Planner
    digest: str
    key: dict[str, Any]
    format: Format
    stage: int | None
    whole: str
    selected: Selected
    strategies: tuple[Strategy | None, Strategy | None]
    notes: tuple[str, ...] = ()
    cipher: BlockCipher | None = None
    indexed: bool = False
    listing: str = ""
    planned: bool = False

    @property
    def model(self) -> Model:
        """The parameters and their source and target layouts."""
        return self.planner.model

    @property
    def versions(self) -> str:
        """Changes if the source's files are written, copied or replaced."""
        return self.model.inventory.versions

    @property
    def namesakes(self) -> Iterator[Job]:
        """The task under each identity that it can have, starting with the usual one, for sources with equal samples."""
        yield self
        for number in range(1, _NAMESAKES):
            digest = _identity([self.digest, number])
            yield replace(self, digest=digest, whole=digest if self.stage is None else self.whole)

    @property
    def shape(self) -> tuple[str, int]:
        """Kind of output, and number of target ranks."""
        return self.request.options.output, self.model.target_ranks

    @property
    def ranks(self) -> tuple[int, ...]:
        """Target ranks that get a file: all except those without parameters of the stage, or none for an index."""
        if self.request.options.output == "Index":
            return ()
        every = range(self.model.target_ranks)
        return tuple(rank for rank in every if self.stage is None or self.planner.parameters(rank))

    @property
    def scope(self) -> tuple[int, ...]:
        """Ranks among them that were requested."""
        asked = self.request.options.ranks
        if asked is None:
            return self.ranks
        wanted = set(parse_ranks(asked, self.model.target_ranks))
        return tuple(rank for rank in self.ranks if rank in wanted)

    def metadata(self, rank: int) -> dict[str, str]:
        """Return the metadata of a target rank's safetensors file: that of the source, or what MindSpore expects.

        MindSpore reads an entry with the name of a tensor as that tensor's type, and fails to load the whole file
        (mindspore/train/serialization.py, safetensors_to_mstype). `safetensors.torch.save_model` writes such entries, from each
        name that it leaves out to the equal tensor that it keeps. An entry whose tensor is not in the file has no effect.
        transformers before version 5 refuses unknown formats. MindSpore reads all.
        """
        names = {p.name for p in self.planner.parameters(rank) if p.dtype != INT4}
        inventory, removed = self.model.inventory, self.planner.remove_redundancy
        own = self.own_file(rank)
        structure = inventory.structures[own.structure if own is not None else 0]
        gone = {entry.name for entry in structure.tensors} - {p.name for p in self.planner.parameters(rank)}
        found = {key: text for key, text in structure.metadata.items() if text not in gone} or {"format": "ms"}
        if self.request.options.hugging_face_index:
            found = {"format": "pt"}
        elif own is None and (removed or "remove_redundancy" in found):
            found["remove_redundancy"] = str(removed)
        return {key: text for key, text in found.items() if key not in names}

    def tensors(self, rank: int) -> tuple[OutputTensor, ...]:
        """Return the tensors of a target rank's file, in the order of the file and of the rank's plan.

        Raises:
            RequestError: there are none, and MindSpore does not read such a file.
        """
        found = self.planner.parameters(rank)
        if self.format == "ckpt" and not found and not self.planner.remove_redundancy and not self.model.same:
            raise RequestError(
                "NothingToWrite",
                "the file would contain no parameters, and MindSpore rejects such a .ckpt as damaged",
                where=self.path(rank),
                fix="write safetensors files, or use a target strategy that assigns parameters to every rank",
            )
        return tuple(OutputTensor(p.name, p.dtype, p.slice_shape, p.slice_nbytes) for p in found)

    def pieces(self, rank: int, crc: int | None = None) -> Iterator[bytes | Span]:
        """Yield a target rank's file before encryption, see `reshard.checkpoint.pieces`. Spans refer to its plan's tensors.

        Raises:
            DataError, OutputError, RequestError: the file cannot be created, see `file_size` and `tensors`.
        """
        return checkpoint.pieces(self.format, self.tensors(rank), self.metadata(rank), crc)

    def file_size(self, rank: int) -> int:
        """Return the size of a target rank's file in bytes.

        Raises:
            DataError, OutputError, RequestError: the file cannot be created.
        """
        plain = checkpoint.file_size(self.format, self.tensors(rank), self.metadata(rank), crc=self.request.options.crc)
        return plain if self.cipher is None else sealed_size(self.cipher, plain)

    def file_sizes(self, ranks: Iterable[int]) -> dict[int, int]:
        """Return the file size of several target ranks. It is calculated once for equal ranks."""
        known: dict[int, int] = {}
        sizes = {}
        for rank in ranks:
            alike = self.planner.alike(rank)
            if alike not in known:
                known[alike] = self.file_size(rank)
            sizes[rank] = known[alike]
        return sizes

    def path(self, rank: int) -> str:
        """Return the path of a target rank's file, relative to the target."""
        if self.model.unified:
            return part_name(rank, self.model.target_ranks, hyper=self._has_hyper)
        if (own := self.own_file(rank)) is not None:
            folder, _, name = own.path.rpartition("/")
            if folder and not folder.startswith("rank_"):  # in another spelling, or nested
                folder = f"rank_{rank}"
            return "/".join(part for part in (folder, f"{name.removesuffix(self.model.inventory.format)}{self.format}") if part)
        number = rank if self.request.options.numbered else ""
        suffix = "" if self.stage is None else f"_part{self.stage}"  # MindSpore's name
        return f"rank_{rank}/{self.request.options.file_prefix}{number}{suffix}.{self.format}"

    def own_file(self, rank: int) -> SourceFile | None:
        """Return the source file that a target rank's file is converted from, if files are converted one by one."""
        return self.model.inventory.file_of(rank) if self.model.same else None

    @property
    def _has_hyper(self) -> bool:
        return any(p.role is Role.REPLICATED for p in self.planner.parameters(self.model.target_ranks - 1))

    def source_files(self, count: ReadCount | None = None) -> SourceFiles:
        """Return the source's files for reading. `count` receives the number of bytes read."""
        return SourceFiles(self.source, self.model.inventory, count, indexed=self.indexed, planned=self.planned)


def job_of(  # noqa: PLR0913 - independent results of reading the source
    request: Request,
    store: ReadStore,
    model: Model,
    source: Strategy | None,
    target: Strategy | None,
    *,
    key: bytes | None = None,
    selected: Selected | None = None,
    notes: tuple[str, ...] = (),
) -> Job:
    """Return the task that creates a model's target ranks, encrypted with a key if the request contains one.

    Raises:
        RequestError: files of the target's format cannot be encrypted.
    """
    decides = key_of(request, source, target)
    wanted = request.options.format
    if request.options.remove_redundancy and (model.target_ranks == 1 or request.options.output != "PerRank"):
        raise RequestError(
            "NoReplicas",
            "removing redundancy requires more than one target rank",
            where="remove redundancy",
            fix="specify the target strategy, or omit --remove-redundancy (spec.target.removeRedundancy)",
        )
    output: Format = "ckpt" if wanted == "Ckpt" else "safetensors"
    if wanted == "Source" and request.options.output != "Unified":
        output = model.inventory.format
    cipher = _cipher(request, output, key)
    if request.options.output != "Index":  # an index serves files of either format, and loading into memory
        model = _arranged(model, output)
    decisive = {name: decides[name] for name in ("sourceStrategy", "targetStrategy")} | request_key(request) | {"format": output}
    # An index refers to versions of files, so they are part of its identity.
    identified = model.inventory.pinned if request.options.output == "Index" else model.inventory.identity
    identity = whole = _identity([decisive, identified])
    stage, selected = None, selected or Selected()
    if request.options.output == "Stage":
        stage, whole = model.first_stage, _identity([decisive | {"sourceStrategy": None}, selected.step])
    planner = Planner(model, remove_redundancy=request.options.remove_redundancy)
    strategies = (source, target)
    job = Job(request, store, planner, identity, decides, output, stage, whole, selected, strategies, cipher=cipher)
    return replace(
        job,
        notes=(
            *notes,
            *_notes_on_strategies(strategies),
            *_notes(model, request),
            *_notes_on_types(model, output),
            *_notes_on_shares(job),
        ),
    )


def _identity(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def _cipher(request: Request, output: Format, key: bytes | None) -> BlockCipher | None:
    """Return the cipher of the target's files. None: they are not encrypted."""
    if request.encryption is None:
        return None
    what = fix = None
    if output != "ckpt":
        what = "encrypted safetensors files are not supported by any reader, including MindSpore"
        fix = "write .ckpt files: --format ckpt (spec.target.format: Ckpt), or omit the encryption"
    elif request.options.output == "Index":
        what, fix = "an index contains nothing that can be encrypted", "omit the encryption"
    elif request.options.output == "Stage":
        what = "stage files cannot be encrypted, because the final commit compares them and has no key"
        fix = "omit the encryption, or transform all stages at once"
    if what is not None:
        raise RequestError("CannotEncrypt", what, where=request.target, fix=fix)
    if key is None:
        raise ValueError("the encryption key of the target is missing")
    return cipher_of(request.encryption.mode, key)


def _arranged(model: Model, output: Format) -> Model:
    """Return the parameters for the target's format: in its order, and without those that it cannot hold."""
    held = [p for p in model.parameters if can_hold(output, p.name, p.dtype, p.shape)]
    left_out = tuple(p.name for p in model.parameters if not can_hold(output, p.name, p.dtype, p.shape))
    order = content_order(output, [OutputTensor(p.name, p.dtype, p.slice_shape, p.slice_nbytes) for p in held])
    return replace(model, parameters=tuple(held[i] for i in order), zero_size=left_out)


def key_of(request: Request, source: Strategy | None, target: Strategy | None) -> dict[str, Any]:
    """Return the fields of a request that determine the result, to find a started task without reading the source."""
    return {
        "source": open_store(request.source, request.storage_options.source).url,
        "step": request.options.step,
        "files": request.options.files,
        "stages": request.options.stages,
        "sourceStrategy": source and hashlib.sha256(source.canonical()).hexdigest(),
        "targetStrategy": target and hashlib.sha256(target.canonical()).hexdigest(),
        **request_key(request),
    }


def _notes(model: Model, request: Request) -> tuple[str, ...]:
    rules = request.options.rename
    notes = []
    if rules and request.options.output != "Stage":  # only the last stage knows whether rules match
        notes = [f"the pattern {rule.pattern} matches no parameter" for rule in unmatched(model.source_names, rules)]
    if model.excluded:
        notes.append(f"rename rules exclude these parameters: {some(model.excluded)}")
    if model.source_only:
        notes.append(f"skipped parameters that are only in the source strategy: {some(model.source_only)}")
    if model.target_only:
        notes.append(f"skipped parameters that are only in the target strategy: {some(model.target_only)}")
    if model.not_in_files:
        notes.append(f"no source file contains these parameters of the source strategy: {some(model.not_in_files)}")
    if model.zero_size:
        notes.append(
            "skipped tensors of shape [0], which MindSpore would load from a .ckpt as scalars without a value:"
            f" {some(model.zero_size)}"
        )
    notes += _notes_on_foreign_files(model, request)
    if empty := model.inventory.empty_files:
        ranks = format_ranks(tuple(file.rank for file in empty))
        paths = some([file.path for file in empty])
        notes.append(
            f"the files of source ranks {ranks} contain no parameters; unless redundancy was removed, restore them: {paths}"
        )
    if alike := equal_files(model):
        notes.append(
            f"the files of source ranks {format_ranks(tuple(sorted(alike)))} look like files of lower ranks, although the"
            " strategy assigns them different slices; check that none was copied over another"
        )
    return (*notes, *_notes_on_copies(model, request))


def _notes_on_copies(model: Model, request: Request) -> list[str]:
    """Return notes about copies that differ, which the request accepts, and about patterns that match no parameter."""
    notes = []
    if accepted := sorted(model.inconsistent_replicas & model.per_rank):
        taken = (
            "the copy of the first rank is used"
            if model.unified
            else f"each target rank uses the copy of source rank {_nth(model)}"
        )
        notes.append(f"copies of these parameters differ between source ranks; {taken}: {some(accepted)}")
    if accepted := sorted(model.inconsistent_replicas - model.per_rank):
        notes.append(f"replicas of these parameters differ; those of the lowest ranks are used: {some(accepted)}")
    suspect = model.may_be_slices
    unnamed = [p.source_name for p in model.parameters if p.role is Role.REPLICATED or p.name in suspect]
    patterns = request.options.allow_inconsistent if request.options.output != "Stage" else ()
    unused = [pattern for pattern in patterns if not any(map(NamePattern(pattern).matches, unnamed))]
    return notes + [f"the pattern {pattern} matches no parameter that is in no strategy" for pattern in unused]


def _notes_on_foreign_files(model: Model, request: Request) -> Iterator[str]:
    """Warn of slices and CRCs in MindSpore's unified files."""
    inventory = model.inventory
    if slices := model.may_be_slices:
        yield (
            f"these parameters of MindSpore's {HYPER_NAME} are copied unchanged and may be rank 0's slices, because"
            f" MindSpore stores there what its choice_func rejects: {some(slices)}"
        )
    if inventory.foreign and request.options.verification == "Full":
        marked = [file.path for file in inventory.files if file.crc is not None]
        if marked:
            yield f"the CRC32 that MindSpore copied from a source rank's file is not checked in {some(marked)}"


def _notes_on_types(model: Model, output: Format) -> tuple[str, ...]:
    """Warn of types that MindSpore writes into a `.ckpt` file and cannot load from one."""
    if output != "ckpt":
        return ()
    found = [p for p in model.parameters if not DTYPES[p.dtype].loads_from_ckpt]
    if not found:
        return ()
    types, names = sorted({p.dtype for p in found}), some([p.name for p in found])
    return (f"MindSpore 2.10 cannot load the type {', '.join(types)} from a .ckpt file, which these parameters have: {names}",)


def _notes_on_strategies(strategies: tuple[Strategy | None, Strategy | None]) -> tuple[str, ...]:
    return tuple(note for strategy in strategies if strategy is not None for note in strategy.notes)


def _notes_on_shares(job: Job) -> tuple[str, ...]:
    """Warn of files without parameters, which MindSpore saves for ranks without any, and does not load."""
    if not job.planner.remove_redundancy:
        return ()
    ranks = tuple(rank for rank in job.scope if not job.planner.parameters(rank))
    if not ranks:
        return ()
    return (f"target ranks {format_ranks(ranks)} hold no parameters; MindSpore's load_checkpoint rejects their files",)


def _nth(model: Model) -> str:
    first = f"{model.first_rank} + " if model.first_rank else ""
    return f"{first}target rank modulo {model.source_ranks}"


def some(names: tuple[str, ...] | list[str]) -> str:
    """Return some of these names, and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def summary_of(job: Job) -> Summary:
    """Return a summary of the reads of the requested ranks."""
    return summarize(job.model, job.planner, job.scope)
