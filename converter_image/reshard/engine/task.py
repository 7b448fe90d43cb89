"""The task of a transform: everything that is decided before data is moved."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.checkpoint.blockcipher import BlockCipher, cipher_of
from reshard.checkpoint.dtypes import DTYPES, INT4, OBJECT
from reshard.checkpoint.encryption import sealed_size
from reshard.checkpoint.output import OutputTensor
from reshard.engine.gather import SourceFiles
from reshard.engine.notes import notes_of
from reshard.engine.verify_entries import Known
from reshard.errors import RequestError
from reshard.formats.registry import requested_output
from reshard.plan import Planner, Role, summarize
from reshard.source.index import Selected
from reshard.spec.outputs import Refusal
from reshard.spec.ranks import parse_ranks
from reshard.spec.request import Request, request_key
from reshard.storage import address_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from reshard.checkpoint.inventory import Keys, SourceFile
    from reshard.checkpoint.output import Piece
    from reshard.formats.protocol import OutputFormat
    from reshard.mesh.file import LayoutFile
    from reshard.mesh.scale import Scale
    from reshard.plan import Kind, Model, Parameter, Summary
    from reshard.spec.layout import LayoutDocument
    from reshard.spec.outputs import Output
    from reshard.storage.protocol import ReadStore
    from reshard.storage.traffic import Meter
    from reshard.strategy import Strategy

    Strategies = tuple[Strategy | None, Strategy | None]  # source strategy and target strategy


# A target contains a checkpoint and at most one replacement for it. Any higher number of names is sufficient.
_NAMESAKES = 8


@dataclass(frozen=True, slots=True)
class Task:
    """A transform task.

    Attributes:
        request: request of the transform.
        source: store of the source's files, decrypted.
        planner: planner of all target ranks.
        digest: digest of source, strategies and options. Equal digests mean equal content.
        key: fields of the request that determine the result, to find a started task without reading the source.
        output: format of the target's files.
        stage: pipeline stage of the source whose files the task writes. None means all stages.
        whole: digest of the checkpoint, which the tasks of all its stages share. It is the digest of the task if there are no
            stages.
        selected: result of the selection of the source's files.
        strategies: source strategy and target strategy.
        notes: messages for the user.
        cipher: cipher of the target's files. None means that they are not encrypted.
        indexed: whether an index describes the source's files.
        listing: digest of the source's listing, see `SourceRecord.listing`.
        carried: content of each file of `Inventory.carried`, by its path. Empty if the task was already started.
        layout: layout file of the target, if there is one.
        planned: whether a plan in the target describes the source's files.
        known: entries of files, for the verification of ranks.
    """

    request: Request
    source: ReadStore
    planner: Planner
    digest: str
    key: dict[str, Any]
    output: OutputFormat
    stage: int | None
    whole: str
    selected: Selected
    strategies: Strategies
    notes: tuple[str, ...] = ()
    cipher: BlockCipher | None = None
    indexed: bool = False
    listing: str = ""
    planned: bool = False
    layout: LayoutDocument | None = None
    carried: Mapping[str, bytes] = field(default_factory=dict)
    known: Known = field(default_factory=Known, compare=False)
    _sizes: dict[int, int] = field(default_factory=dict, compare=False)  # before encryption, by `Planner.alike`
    # Of the last rank, by the same and the metadata.
    _last_pieces: dict[tuple[object, ...], tuple[Piece, ...]] = field(default_factory=dict, compare=False)

    @property
    def model(self) -> Model:
        """The parameters and their source and target layouts."""
        return self.planner.model

    @property
    def versions(self) -> str:
        """Digest that changes if the source's files are written, copied or replaced."""
        return self.model.inventory.versions

    @property
    def namesakes(self) -> Iterator[Task]:
        """The task with each of its possible identities, the usual one first. They differ for sources with equal samples."""
        yield self
        for number in range(1, _NAMESAKES):
            digest = _identity([self.digest, number])
            yield replace(self, digest=digest, whole=digest if self.stage is None else self.whole)

    @property
    def kind(self) -> Output:
        """Kind of output."""
        return self.request.options.kind

    @property
    def shape(self) -> tuple[str, int]:
        """Kind of output, and number of target ranks."""
        return self.kind.name, self.model.target_ranks

    @property
    def ranks(self) -> tuple[int, ...]:
        """Target ranks that get a file."""
        return self.kind.ranks(self.model.target_ranks, lambda rank: bool(self.planner.parameters(rank)))

    @property
    def scope(self) -> tuple[int, ...]:
        """Requested target ranks that get a file."""
        asked = self.request.options.only_ranks
        if asked is None:
            return self.ranks
        wanted = set(parse_ranks(asked, self.model.target_ranks))
        return tuple(rank for rank in self.ranks if rank in wanted)

    def metadata(self, rank: int) -> dict[str, str]:
        """Return the metadata of a target rank's safetensors file: the source's metadata, or the entries that MindSpore expects.

        MindSpore reads an entry with the name of a tensor as that tensor's type, and fails to load the whole file
        (mindspore/train/serialization.py, safetensors_to_mstype). `safetensors.torch.save_model` writes such entries, from each
        name that it leaves out to the equal tensor that it keeps. An entry whose tensor is not in the file has no effect.
        transformers before version 5 refuses unknown formats. MindSpore accepts all formats.
        """
        inventory, removed = self.model.inventory, self.planner.remove_redundancy
        own = self.own_file(rank)
        structure = inventory.structures[own.structure if own is not None else 0]
        found = dict(structure.metadata)
        mentioned = {*found, *found.values(), "format", "remove_redundancy"}
        held = {p.name: p.dtype for p in self.planner.parameters(rank) if p.name in mentioned}
        gone = {entry.name for entry in structure.tensors if entry.name in mentioned} - held.keys()
        found = {key: text for key, text in found.items() if text not in gone} or {"format": "ms"}
        if own is None and (removed or "remove_redundancy" in found):
            found["remove_redundancy"] = str(removed)
        return {key: text for key, text in found.items() if held.get(key, INT4) == INT4}

    def tensors(self, rank: int) -> tuple[OutputTensor, ...]:
        """Return the tensors of a target rank's file, in the order of the file and of the rank's plan.

        Raises:
            RequestError: the file would contain no tensors, and MindSpore cannot load such a file.
        """
        emptied = self.planner.remove_redundancy or self.kind.each_file  # MindSpore writes such files too
        if not (self.output.can_be_empty or emptied or self.planner.parameters(rank)):
            raise RequestError(
                "NothingToWrite",
                f"the file would contain no parameters, and MindSpore cannot load such a .{self.output.name} file",
                where=self.path(rank),
                fix="write safetensors files, or use a target strategy that assigns parameters to every rank",
            )
        return output_tensors(self.planner, rank)

    def pieces(self, rank: int, crc: int | None = None) -> Iterator[Piece]:
        """Yield the pieces of a target rank's file before encryption, see `OutputFormat.pieces`.

        Spans refer to the tensors of the rank's plan.

        Raises:
            DataError, OutputError, RequestError: the file cannot be created, see `file_size` and `tensors`.
        """
        if crc is not None or not self.output.one_header:
            return self.output.pieces(self.tensors(rank), self.metadata(rank), crc)
        metadata = self.metadata(rank)
        key = self.planner.alike(rank), *sorted(metadata.items())
        found = self._last_pieces.get(key)
        if found is None:
            found = tuple(self.output.pieces(self.tensors(rank), metadata))
            self._last_pieces.clear()
            self._last_pieces[key] = found
        return iter(found)

    def file_size(self, rank: int) -> int:
        """Return the size of a target rank's file in bytes.

        Raises:
            DataError, OutputError, RequestError: the file cannot be created.
        """
        alike = self.planner.alike(rank)
        plain = self._sizes.get(alike)
        if plain is None:
            if self.output.one_header and not self.request.options.crc:
                plain = sum(len(piece) if isinstance(piece, bytes) else piece.length for piece in self.pieces(rank))
            else:
                plain = self.output.file_size(self.tensors(rank), self.metadata(rank), crc=self.request.options.crc)
            self._sizes[alike] = plain
        return plain if self.cipher is None else sealed_size(self.cipher, plain)

    def file_sizes(self, ranks: Iterable[int]) -> dict[int, int]:
        """Return the file size of several target ranks."""
        return {rank: self.file_size(rank) for rank in ranks}

    def release(self) -> None:
        """Release the memory of what ranks that are written share."""
        self._last_pieces.clear()
        self.known.clear()
        self.planner.release()

    def path(self, rank: int) -> str:
        """Return the path of a target rank's file, relative to the target."""
        options, own = self.request.options, self.own_file(rank)
        stem = self.kind.path(
            rank,
            f"{options.file_prefix}{rank if options.numbered else ''}",
            stage=self.stage,
            source="" if own is None else own.path.removesuffix(f".{self.model.inventory.format}"),
            is_hyper=self._is_hyper,
        )
        return self.output.path(rank, self.model.target_ranks, stem)

    def own_file(self, rank: int) -> SourceFile | None:
        """Return the source file that a target rank's file is converted from, if files are converted one by one."""
        return self.model.inventory.file_of(rank) if self.kind.each_file else None

    def _is_hyper(self, rank: int) -> bool:
        """Return whether a file of whole parameters holds those that no strategy names: the last one, if there are any."""
        last = rank == self.model.target_ranks - 1
        return last and any(p.role is Role.REPLICATED for p in self.planner.parameters(rank))

    def source_files(self, content: Meter | None = None) -> SourceFiles:
        """Return the source's files for reading. `content` counts what is fetched of their tensors."""
        return SourceFiles(self.source, self.model.inventory, content, indexed=self.indexed, planned=self.planned)


def output_tensors(planner: Planner, rank: int) -> tuple[OutputTensor, ...]:
    """Return the tensors of a target rank's file, in the order of the planner's model."""
    described: dict[Kind, tuple[str, tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]] = {}
    for kind in planner.members(rank):
        box, dtype = kind.box(rank % planner.model.target_devices), kind.target_dtype
        described[kind] = (dtype, box.shape, box.size * DTYPES[dtype].itemsize, box.start, kind.target_shape)
    parameters, nested = planner.parameters(rank), planner.model.inventory.keys
    if not nested:
        return tuple([OutputTensor(p.name, *described[p.kind]) for p in parameters])
    return tuple([OutputTensor(p.name, *described[p.kind], keys_of(planner.model, p)) for p in parameters])


def keys_of(model: Model, parameter: Parameter) -> Keys:
    """Return the keys that lead to a parameter in nested dicts and lists. Empty means that its name is the only key."""
    keys = model.inventory.keys
    return keys.get(parameter.name, ()) if keys and parameter.name == parameter.source_name else ()


def task_of(  # noqa: PLR0913 - independent results of reading the source
    request: Request,
    store: ReadStore,
    model: Model,
    strategies: Strategies,
    *,
    described: tuple[Strategy | LayoutFile | None, Strategy | LayoutFile | Scale | None] | None = None,
    key: bytes | None = None,
    selected: Selected | None = None,
    notes: tuple[str, ...] = (),
    layout: LayoutDocument | None = None,
) -> Task:
    """Return the task that creates a model's target ranks, encrypted with a key if the request contains one.

    Args:
        request: request of the transform.
        store: store of the source's files, decrypted.
        model: parameters and their layouts.
        strategies: source strategy and target strategy.
        described: strategies or layout files of the request, if they are not the strategies.
        key: encryption key of the target.
        selected: result of the selection of the source's files.
        notes: messages about the source's files.
        layout: layout file of the target, if there is one. The manifest contains it, so it is a part of the identity.

    Raises:
        RequestError: files of the target's format cannot be encrypted.
    """
    decides, kind = key_of(request, *(described or strategies)), request.options.kind
    if request.options.remove_redundancy and (model.target_ranks == 1 or not kind.replicates):
        raise RequestError(
            "NoReplicas",
            "removing redundancy requires more than one target rank",
            where="remove redundancy",
            fix="specify the target strategy, or omit --remove-redundancy (spec.target.removeRedundancy)",
        )
    output = requested_output(request_key(request), model.inventory.format)
    cipher = _cipher(request, output, key)
    if kind.writes_files:  # an index serves files of either format, and loading into memory
        model = _arranged(model, output)
    else:
        model = replace(model, parameters=tuple(p for p in model.parameters if p.dtype != OBJECT))
    decisive = _digests(*strategies) | request_key(request) | {"format": output.name}
    decisive |= {} if layout is None else {"layout": layout.digest}
    # An index refers to versions of files, so they are part of its identity.
    identified = model.inventory.identity if kind.writes_files else model.inventory.pinned
    identity = whole = _identity([decisive, identified])
    stage, selected = None, selected or Selected()
    if kind.one_stage:
        stage, whole = model.first_stage, _identity([decisive | {"sourceStrategy": None}, selected.step])
    planner = Planner(model, remove_redundancy=request.options.remove_redundancy, once=output.once)
    task = Task(
        request, store, planner, identity, decides, output, stage, whole, selected, strategies, cipher=cipher, layout=layout
    )
    own = notes_of(model, request, strategies, output, planner, task.scope)
    return replace(task, notes=(*notes, *own))


def _identity(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()


def _cipher(request: Request, output: OutputFormat, key: bytes | None) -> BlockCipher | None:
    """Return the cipher of the target's files, or None if they are not encrypted."""
    if request.encryption is None:
        return None
    refusal = request.options.kind.not_encrypted
    if not output.can_encrypt:
        refusal = Refusal(
            f"encryption is defined only for .ckpt files, so no program could read encrypted files of the format {output.name}",
            "write .ckpt files: --format ckpt (spec.target.format: Ckpt), or omit the encryption",
        )
    if refusal is not None:
        raise RequestError("CannotEncrypt", refusal.what, where=request.target, fix=refusal.fix)
    if key is None:
        raise ValueError("the encryption key of the target is missing")
    return cipher_of(request.encryption.mode, key)


def _arranged(model: Model, output: OutputFormat) -> Model:
    """Return the parameters for the target's format: in its order, and without those that it cannot hold."""
    described: dict[Kind, tuple[str, tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]] = {}
    cannot_hold: set[Kind] = set()
    held, tensors, left_out = [], [], []
    for p in model.parameters:
        kind = p.kind
        if kind not in described:
            shape, whole = kind.slice_shape, kind.target_shape
            described[kind] = kind.target_dtype, shape, kind.written_nbytes, (0,) * len(shape), whole
            is_tensor = kind.dtype != OBJECT or model.inventory.format in output.objects_of
            if not (is_tensor and output.can_hold(OutputTensor(p.name, *described[kind]))):
                cannot_hold.add(kind)
        if kind in cannot_hold:
            left_out.append(p)
        else:
            held.append(p)
            tensors.append(OutputTensor(p.name, *described[kind]))
    objects = tuple(p.name for p in left_out if p.dtype == OBJECT)
    zero_size = tuple(p.name for p in left_out if p.dtype != OBJECT)
    ordered = tuple(held[i] for i in output.content_order(tensors))
    return replace(model, parameters=ordered, zero_size=zero_size, objects=objects)


def _digests(source: Strategy | LayoutFile | None, target: Strategy | LayoutFile | Scale | None) -> dict[str, str | None]:
    pairs = (("sourceStrategy", source), ("targetStrategy", target))
    return {name: None if each is None else each.digest for name, each in pairs}


def key_of(
    request: Request, source: Strategy | LayoutFile | None, target: Strategy | LayoutFile | Scale | None
) -> dict[str, Any]:
    """Return the fields of a request that determine the result, to find a started task without reading the source."""
    return {
        "source": address_of(request.source),
        "step": request.options.step,
        "files": request.options.files,
        "stages": request.options.stages,
        **_digests(source, target),
        **request_key(request),
    }


def summary_of(task: Task) -> Summary:
    """Return a summary of the reads of the requested ranks."""
    return summarize(task.model, task.planner, task.scope)
