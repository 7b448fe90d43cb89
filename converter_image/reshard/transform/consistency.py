"""Compare copies that must be equal, and refuse differences that the user has not accepted."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import islice
from math import prod
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

from reshard.checkpoint.arrays import array_of
from reshard.checkpoint.dtypes import STRING
from reshard.checkpoint.unified import HYPER_NAME
from reshard.errors import DataError, MissingInputError, listed
from reshard.layout.box import Box
from reshard.plan.copies import Block, Copies, most_blocks, spread
from reshard.plan.rules import NamePattern
from reshard.source.copies import FileSet, Piece
from reshard.spec.ranks import format_ranks, parse_ranks
from reshard.transform.equal_slices import check_slices

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from reshard.checkpoint.inventory import Inventory
    from reshard.plan import Model, Parameter
    from reshard.plan.copies import Blocks
    from reshard.progress import Progress
    from reshard.source.copies import Difference
    from reshard.spec.request import Options
    from reshard.storage.protocol import ReadStore

# Maximum number of files, and of values, in an error message.
_MOST_FILES = 64
_MOST_VALUES = 3
_AGAIN = " and --overwrite, and transform all stages again"


def check_copies(
    store: ReadStore, model: Model, options: Options, progress: Progress, *, workers: int, single: bool = False
) -> frozenset[str]:
    """Compare the copies of parameters on source ranks, and slices that must differ.

    With `verification: Full`, all copies are compared completely, otherwise blocks of them, see `Copies.sample`. If files are
    converted one by one, nothing is compared.

    Args:
        store: store of the source.
        model: parameters and their layouts.
        options: options of the request.
        progress: receiver of the progress.
        workers: number of files read at a time.
        single: whether only one target rank is written, instead of the ranks in the options.

    Returns:
        The names of the parameters whose copies differ, which the request accepts.

    Raises:
        DataError: copies differ, or slices are equal, and the request does not accept that.
    """
    if options.kind.each_file:
        return frozenset()
    check_slices(store, model, options, workers=workers, single=single)
    copies, files = Copies(model), {file.rank: file.path for file in model.inventory.files}
    blocks: Blocks | None = None
    if options.verification == "Full":
        ranks = tuple(files)
        progress.begin("Comparing replicas", copies.nbytes, "bytes")
    else:
        most = most_blocks(_bytes_to_write(model, options, single=single), remote=store.remote)
        blocks = copies.sample(most, replicas=options.verification == "Sample")
        ranks = tuple(sorted(blocks))

    def pieces(rank: int) -> Iterator[Piece]:
        chosen = copies.of_rank(rank) if blocks is None else blocks[rank]
        return (Piece(block.parameter.source_name, block.box, *copies.at(rank, block)) for block in chosen)

    opened = FileSet(store, files, workers, progress.advance if blocks is None else lambda _: None)
    differing: dict[str, list[Difference]] = defaultdict(list)
    for difference in opened.compare(pieces, ranks):
        differing[difference.name].append(difference)
    refused = [p for p in copies.unnamed if p.source_name in differing and p.name not in model.per_rank]
    if refused:
        refused.sort(key=lambda p: p.nbytes)  # the smallest first: a training step is more informative than a weight
        found = _mismatch(opened, copies, refused, differing, "file" if model.inventory.unified else "source rank")
        raise ranks_disagree(found, unified=model.inventory.unified)
    refused = [p for p in copies.replicas if p.source_name in differing and not model.lowest_replica]
    if refused:
        raise replicas_differ(_mismatch(opened, copies, refused, differing, "source rank"))
    return frozenset(p.name for p in (*copies.unnamed, *copies.replicas) if p.source_name in differing)


def differing_copies(store: ReadStore, model: Model, progress: Progress, *, workers: int) -> Iterator[Mismatch]:
    """Compare every byte of all copies of parameters on source ranks, and yield a mismatch for each parameter that differs."""
    copies, files = Copies(model), {file.rank: file.path for file in model.inventory.files}
    progress.begin("Comparing replicas", copies.nbytes, "bytes")

    def pieces(rank: int) -> Iterator[Piece]:
        return (Piece(block.parameter.source_name, block.box, *copies.at(rank, block)) for block in copies.of_rank(rank))

    opened = FileSet(store, files, workers, progress.advance)
    differing: dict[str, list[Difference]] = defaultdict(list)
    for difference in opened.compare(pieces, tuple(files)):
        differing[difference.name].append(difference)
    for parameter in (*copies.unnamed, *copies.replicas):
        if parameter.source_name in differing:
            yield _mismatch(opened, copies, [parameter], differing, "file" if model.inventory.unified else "source rank")


def refuse_possible_slices(model: Model, settled: Collection[str], options: Options) -> None:
    """Refuse to read parameters as whole if MindSpore's `hyper_param.safetensors` may contain only rank 0's slice of them.

    Args:
        model: parameters and their layouts. If files are converted one by one, nothing is refused.
        settled: names that a manifest lists as possible slices. They were accepted when its files were written.
        options: options of the request.

    Raises:
        DataError: there are such parameters, and the request does not accept them.
    """
    if options.kind.each_file:
        return
    suspect = frozenset(model.may_be_slices)
    accepted = [NamePattern(pattern) for pattern in options.allow_inconsistent]
    names = dict.fromkeys(p.source_name for p in model.parameters if p.name in suspect and p.source_name not in settled)
    if refused := [name for name in names if not any(pattern.matches(name) for pattern in accepted)]:
        first, *others = refused
        more = f" (the same applies to {listed(others)})" if others else ""
        raise DataError(
            "MayBeSlice",
            f"MindSpore's {HYPER_NAME} may contain only rank 0's slice of the parameter{more}",
            where=f"parameter {first}",
            fix="use the files of the ranks as the source, or unify them with reshard (--output unified); if the parameter is"
            " whole, add"
            f" --allow-inconsistent {quote(first)} (spec.parameters.allowInconsistent)",
        )


class SharedParameter(NamedTuple):
    """A parameter that several pipeline stages hold: its name in the source, and whether strategies name it."""

    source_name: str
    named: bool


def check_stages(
    store: ReadStore, inventory: Inventory, shared: Mapping[str, SharedParameter], options: Mapping[str, Any]
) -> frozenset[str]:
    """Compare the parameters that the files of several stages of a checkpoint hold for one target rank.

    Large parameters are compared by blocks at the start, in the middle and at the end.

    Args:
        store: store of the target.
        inventory: file of the rank in each stage, by pipeline stage.
        shared: parameters that several stages hold, by their names in the target.
        options: options in the manifests, which list accepted differences.

    Returns:
        The names of the parameters that differ, which the request accepts.

    Raises:
        DataError: parameters differ, and the request does not accept that.
    """
    files = {file.rank: file.path for file in inventory.files}
    held = {
        file.rank: [e for e in inventory.structures[file.structure].tensors if e.name in shared and 0 not in e.shape]
        for file in inventory.files
    }
    count = Counter(e.name for tensors in held.values() for e in tensors)
    entries = {number: [e for e in tensors if count[e.name] > 1] for number, tensors in held.items()}

    def pieces(number: int) -> Iterator[Piece]:
        return (Piece(e.name, box, e, box) for e in entries[number] for box in spread(e.shape, e.dtype))

    opened = FileSet(store, files, workers=1)
    differing: dict[str, list[Difference]] = defaultdict(list)
    for difference in opened.compare(pieces, tuple(files)):
        differing[difference.name].append(difference)
    patterns = [NamePattern(pattern) for pattern in options["allowInconsistent"]]
    for name, found in differing.items():
        source_name, named = shared[name]
        if options["replicas"] == "LowestRank" if named else any(pattern.matches(source_name) for pattern in patterns):
            continue

        def elements(index: tuple[int, ...], name: str = name) -> dict[int, Piece]:
            box = Box(index, (1,) * len(index))
            return {n: Piece(name, box, e, box) for n, held in entries.items() for e in held if e.name == name}

        shown = replace(mismatch(opened, found, elements, "stage"), name=source_name)
        raise replicas_differ(shown, again=True) if named else ranks_disagree(shown, again=True)
    return frozenset(differing)


def _bytes_to_write(model: Model, options: Options, *, single: bool) -> int:
    """Return the approximate number of bytes that the transform writes. For an index: the bytes that all ranks load."""
    counts = Counter([parameter.kind for parameter in model.parameters])
    total = sum(kind.slice_nbytes * model.target_devices * len(kind.target_stages) * n for kind, n in counts.items())
    ranks = model.target_ranks
    if single:
        ranks = 1
    elif options.only_ranks is not None:
        ranks = len(parse_ranks(options.only_ranks, model.target_ranks))
    return total * ranks // model.target_ranks


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A difference between copies, in the form that an error shows.

    Attributes:
        name: name of the parameter in the files.
        index: index of the first differing element in the whole tensor.
        single: whether the tensor has only this element.
        values: values of the element, each with the files that hold it.
        others: names of other parameters whose copies differ.
    """

    name: str
    index: tuple[int, ...]
    single: bool
    values: str
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one clause."""
        element = "it" if self.single else f"element {list(self.index)}"
        more = f" (copies of other parameters also differ: {listed(self.others)})" if self.others else ""
        return f"{element} is {self.values}{more}"


def mismatch(
    files: FileSet, differences: Sequence[Difference], elements: Callable[[tuple[int, ...]], Mapping[int, Piece]], noun: str
) -> Mismatch:
    """Read the first differing element of one parameter from the files that hold it.

    Args:
        files: files to read.
        differences: differences of the parameter.
        elements: function that returns the location of an element, by index, in each file to show.
        noun: noun before the number of a file, such as "source rank".
    """
    index = files.first_element(differences)
    by_value: dict[bytes, list[int]] = defaultdict(list)
    for number, piece in elements(index).items():
        by_value[files.content(number, piece).tobytes()].append(number)
    entry = differences[0].pieces[0].entry
    texts = {content: _text(content, entry.dtype) for content in by_value}
    if len(set(texts.values())) < len(texts):  # such as positive and negative zero
        texts = {content: f"{text} (0x{content[::-1].hex()})" for content, text in texts.items()}
    said = [f"{texts[content]} on {_numbered(noun, numbers)}" for content, numbers in by_value.items()][:_MOST_VALUES]
    if rest := [number for numbers in list(by_value.values())[_MOST_VALUES:] for number in numbers]:
        said.append(f"another value on {_numbered(noun, rest)}")
    single = all(n == 1 for n in entry.shape) and differences[0].pieces[0].box.size == 1
    return Mismatch(differences[0].name, index, single, f"{', '.join(said[:-1])} and {said[-1]}")


def _mismatch(
    files: FileSet, copies: Copies, parameters: Sequence[Parameter], differing: Mapping[str, Sequence[Difference]], noun: str
) -> Mismatch:
    """Return the mismatch of the first of these parameters."""
    first, *others = parameters
    found = differing[first.source_name]

    def elements(index: tuple[int, ...]) -> dict[int, Piece]:
        element = Block(first, Box(index, (1,) * len(index)))
        holders = copies.holders_of(element)
        compared = (rank for difference in found for rank in difference.files)
        ranks = sorted({*islice(compared, _MOST_FILES // 2), *holders[: _MOST_FILES // 2]}.intersection(holders))
        return {rank: Piece(first.source_name, element.box, *copies.at(rank, element)) for rank in ranks}

    shown = mismatch(files, found, elements, noun)
    return replace(shown, single=prod(first.shape) == 1, others=tuple(p.source_name for p in others))


def _numbered(noun: str, numbers: Sequence[int]) -> str:
    return f"{noun}{'s' if len(numbers) > 1 else ''} {format_ranks(tuple(numbers))}"


def _text(content: bytes, dtype: str) -> str:
    """Return a readable form of an element."""
    if dtype == STRING:
        return repr(content.decode("utf-32-le", "replace"))
    try:
        return str(array_of(content, dtype, (1,))[0])
    except MissingInputError:  # the package with this type is not installed
        return f"0x{content[::-1].hex()}"


def ranks_disagree(found: Mismatch, *, unified: bool = False, again: bool = False) -> DataError:
    """Return the error for copies of a parameter that no strategy names.

    Args:
        found: copies that differ.
        unified: whether the files hold whole parameters, instead of the parameters of ranks.
        again: whether files were already written with other options than those that the error advises.
    """
    fix = "remove the file that does not belong to the checkpoint"
    if not unified:
        fix = "if the ranks are from different training steps, restore the files of one step; "
        if not found.single:
            fix += (
                "if each rank holds a slice, use a strategy that contains the parameter (by default MindSpore omits frozen"
                " parameters from strategy files: only_trainable_params); "
            )
        fix += f"if the copies may differ, add --allow-inconsistent {quote(found.name)} (spec.parameters.allowInconsistent)"
        fix += _AGAIN if again else ""
    return DataError(
        "RanksDisagree",
        f"no strategy contains the parameter, and its copies differ: {found}",
        where=f"parameter {found.name}",
        fix=fix,
    )


def replicas_differ(found: Mismatch, *, again: bool = False) -> DataError:
    """Return the error for replicas; see `ranks_disagree`."""
    return DataError(
        "ReplicasDiffer",
        f"replicas that the source strategy declares equal differ: {'' if found.single else 'in the whole tensor, '}{found}",
        where=f"parameter {found.name}",
        fix="if the ranks are from different training steps, restore the files of one step; if training let replicas drift apart,"
        " add --replicas lowest-rank (spec.source.replicas: LowestRank) to read the lowest rank of each"
        + (_AGAIN if again else ""),
    )
