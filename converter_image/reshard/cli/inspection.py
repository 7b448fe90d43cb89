"""`reshard inspect`: the files and parameters of a checkpoint, as tables or JSON."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

import msgspec

from reshard.checkpoint.manifest import MANIFEST_NAME
from reshard.cli import console
from reshard.cli.arguments import matching
from reshard.cli.foreign import show_foreign
from reshard.engine.memory import default_workers
from reshard.errors import MissingInputError
from reshard.pictures.captions import shape, size, some_ranks, source_layout
from reshard.plan import build_model
from reshard.source.cuts import recorded_strategy
from reshard.source.encrypted import as_plain
from reshard.source.files import Files, open_source
from reshard.source.finding import find_files
from reshard.source.foreign import read_foreign
from reshard.source.index import read_index
from reshard.source.reading import read_inventory
from reshard.source.selection import epoch_and_step
from reshard.source.strategies import read_strategy
from reshard.spec.ranks import format_ranks
from reshard.target.folder import TargetFolder
from reshard.target.parts import losses_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reshard.checkpoint.inventory import Inventory
    from reshard.checkpoint.manifest import Manifest
    from reshard.spec.keys import Encryption
    from reshard.spec.storage_options import StorageOptions
    from reshard.storage.protocol import ReadStore
    from reshard.strategy import Strategy

_SHOWN_PARAMETERS, _SHOWN_SIZES = 40, 32
_BAR = 32
_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")


@dataclass(frozen=True, slots=True)
class ListedParameter:
    """A parameter, and the ranks that hold it.

    Attributes:
        name: name in the files. If one line describes several parameters, the numbers that differ are in braces.
        dtype: name of the type in MindSpore.
        shape: shape of the whole tensor, in elements. None means that the sharding is unknown.
        slice_shape: shape of one rank's slice, in elements.
        layout: description of the layout. None means that it is unknown.
        ranks: ranks that hold the parameter, in ascending order.
        nbytes: size of one rank's slice in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    slice_shape: tuple[int, ...]
    layout: str | None
    ranks: tuple[int, ...]
    nbytes: int


def inspect(  # noqa: PLR0913 - one for each option
    path: str,
    *,
    strategy: str | None,
    step: int | None,
    pattern: str | None,
    parameters: Sequence[str],
    every: bool,
    as_json: bool,
    storage_options: StorageOptions | None = None,
    decryption: Encryption | None = None,
) -> None:
    """Print the files and parameters of a checkpoint, either all of them or a limited number.

    Only headers are read, so the content of encrypted files is not authenticated.
    """
    store, chosen, _ = open_source(path, storage_options)
    manifest = TargetFolder(store, 0).manifest() if chosen is None else None
    plain, anything = as_plain(store, decryption, check=False), step is None and pattern is None
    if anything and strategy is None and (foreign := read_foreign(store, chosen)) is not None:
        complete = None if manifest is None else _complete(manifest)
        show_foreign(foreign, path, parameters, complete=complete, every=every, as_json=as_json)
        return
    how = read_strategy(strategy, storage_options) if strategy else None
    notes: tuple[str, ...] = ()
    if manifest is not None and manifest.index is not None and anything:
        index = read_index(store.url, storage_options)
        inventory, how = index.inventory, how or index.strategies()[0]
    else:
        if manifest is not None and manifest.stages and anything:
            inventory = _read_stages(plain, manifest)
        else:
            ranks = None if how is None else how.numbers
            found = find_files(
                store, chosen, step=step, pattern=pattern, ranks=ranks, each=how is None, storage_options=storage_options
            )
            inventory, notes = read_inventory(plain, found, workers=default_workers()), found.notes
        if how is None and manifest is not None and not inventory.unified:
            how = recorded_strategy(manifest, f"{store.url}/{MANIFEST_NAME}")
    if not inventory.files:
        raise MissingInputError(
            "SourceMissing", "no checkpoint files found", where=path, fix="specify a checkpoint directory or file"
        )
    listed = list_parameters(inventory, how)
    if parameters:
        names = set(matching((p.name for p in listed), parameters))
        listed = [p for p in listed if p.name in names]
    if as_json:
        console.out_json(_document(inventory, listed, complete=manifest is not None))
        return
    for note in notes:
        console.out(f"note: {note}")
    _show_head(inventory, listed, how, manifest)
    _show_parameters(listed, inventory, every=every)
    _show_sizes(inventory, every=every)


def _read_stages(store: ReadStore, manifest: Manifest) -> Inventory:
    """Return the inventory of a checkpoint with stage files. A rank may have several of them."""
    records = manifest.files
    inventory = read_inventory(store, Files({n: record.path for n, record in enumerate(records)}), workers=default_workers())
    files = tuple(msgspec.structs.replace(file, rank=records[file.rank].rank) for file in inventory.files)
    return msgspec.structs.replace(inventory, files=files)


def list_parameters(inventory: Inventory, strategy: Strategy | None) -> list[ListedParameter]:
    """Return all parameters, in the order of the files.

    Raises:
        DataError: the strategy does not match the files.
    """
    ranks = _ranks_by_structure(inventory)
    if (strategy is None or strategy.uneven) and not inventory.unified:
        return _list_slices(inventory, ranks)
    model = build_model(inventory, strategy, None, incomplete=True)  # show what there is
    found = []
    for p in model.parameters:
        parts = p.source.parts if p.source is not None else (1,) * len(p.shape)
        slice_shape = tuple(n // k for n, k in zip(p.shape, parts, strict=True))
        where = tuple(sorted({rank for structure in p.structures for rank in ranks[structure]}))
        found.append(ListedParameter(p.name, p.dtype, p.shape, slice_shape, source_layout(p), where, p.nbytes // prod(parts)))
    return found


def _list_slices(inventory: Inventory, ranks: list[tuple[int, ...]]) -> list[ListedParameter]:
    where: dict[tuple[str, str, tuple[int, ...], int], list[int]] = defaultdict(list)
    for structure, holding in zip(inventory.structures, ranks, strict=True):
        for tensor in structure.tensors:
            where[tensor.name, tensor.dtype, tensor.shape, tensor.nbytes] += holding
    return [
        ListedParameter(name, dtype, None, shape, None, tuple(sorted(found)), nbytes)
        for (name, dtype, shape, nbytes), found in where.items()
    ]


def _ranks_by_structure(inventory: Inventory) -> list[tuple[int, ...]]:
    ranks: list[list[int]] = [[] for _ in inventory.structures]
    for file in inventory.files:
        ranks[file.structure].append(file.rank)
    return [tuple(found) for found in ranks]


def imbalance(inventory: Inventory) -> float:
    """Return the ratio of the largest rank to the mean, in bytes of files."""
    sizes = _sizes(inventory).values()
    return max(sizes) * len(sizes) / max(sum(sizes), 1)


def _sizes(inventory: Inventory) -> Counter[int]:
    """Return the bytes of each rank's files."""
    sizes: Counter[int] = Counter()
    for file in inventory.files:
        sizes[file.rank] += file.size
    return sizes


def merge_numbered(listed: Iterable[ListedParameter]) -> list[ListedParameter]:
    """Merge parameters whose names differ only in numbers, such as layer numbers, to names such as layers.{0-31}.weight.

    Parameters are merged only if every combination of the numbers exists, so that the merged name is exact.
    """
    alike: dict[tuple[object, ...], list[ListedParameter]] = defaultdict(list)
    for each in listed:
        alike[_NUMBER.sub("\x00", each.name), replace(each, name="")].append(each)
    lines = []
    for group in alike.values():
        numbers = [sorted({int(n) for n in column}) for column in zip(*(_NUMBER.findall(p.name) for p in group), strict=True)]
        if len(group) > 1 and prod(map(len, numbers)) == len({p.name for p in group}):
            texts = iter(str(n[0]) if len(n) == 1 else f"{{{format_ranks(tuple(n))}}}" for n in numbers)
            lines.append(replace(group[0], name=_NUMBER.sub(lambda _, texts=texts: next(texts), group[0].name)))  # type: ignore[misc]  # a lambda with a default
        else:
            lines += group
    return lines


def _document(inventory: Inventory, listed: list[ListedParameter], *, complete: bool) -> dict[str, Any]:
    step = epoch_and_step(inventory.files[0].path)
    return {
        "format": inventory.format,
        "complete": complete,
        "epoch": step and step[0],
        "step": step and step[1],
        "ranks": format_ranks(tuple(sorted(_sizes(inventory)))),
        "size": sum(f.size for f in inventory.files),
        "imbalance": imbalance(inventory),
        "files": [
            {"rank": f.rank, "path": f.path, "size": f.size, "crc": f.crc, "structure": f.structure} for f in inventory.files
        ],
        "parameters": [
            {
                "name": p.name,
                "dtype": p.dtype,
                "shape": p.shape and list(p.shape),
                "slice_shape": list(p.slice_shape),
                "layout": p.layout,
                "ranks": format_ranks(p.ranks),
                "bytes": p.nbytes,
            }
            for p in listed
        ],
        "structures": [
            {
                "ranks": format_ranks(ranks),
                "metadata": structure.metadata,
                "tensors": [
                    {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes} for t in structure.tensors
                ],
            }
            for structure, ranks in zip(inventory.structures, _ranks_by_structure(inventory), strict=True)
        ],
    }


def _show_head(inventory: Inventory, listed: list[ListedParameter], strategy: Strategy | None, manifest: Manifest | None) -> None:
    ranks = tuple(sorted(_sizes(inventory)))
    of = "" if strategy is None or strategy.ranks == len(ranks) else f" of {strategy.ranks}"
    step = epoch_and_step(inventory.files[0].path)
    rows = [
        ("format", f"unified {inventory.format}" if inventory.unified else inventory.format),
        *([] if inventory.unified else [("ranks", f"{len(ranks)}{of} ({format_ranks(ranks)})")]),
        *([("step", f"{step[1]} of epoch {step[0]}")] if step else []),
        ("size", f"{size(sum(file.size for file in inventory.files))} in {len(inventory.files)} files"),
        ("parameters", f"{len({p.name for p in listed}):,}"),
    ]
    if all(p.layout is not None for p in listed) or len(ranks) == 1:
        rows.append(("elements", f"{sum(prod(p.slice_shape if p.shape is None else p.shape) for p in listed):,}"))
    if strategy is not None and len(strategy.stages) > 1:
        rows.append(("pipeline", f"{len(strategy.stages)} stages of {strategy.devices} ranks"))
    if manifest is not None and manifest.index is not None:
        rows.append(("index", f"of {manifest.source.url}, for {manifest.target_ranks} ranks"))
    elif manifest is not None:
        rows.append(("complete", _complete(manifest)))
        if losses := losses_of(manifest):
            changed = sum(loss.rounded for loss in losses.values())
            rows.append(("changed by casts", f"{changed:,} elements of {len(losses):,} parameters"))
    console.table([("", "left"), ("", "left")], rows)
    if strategy is None and len(ranks) > 1 and not inventory.unified:
        console.out("the sharding is unknown; specify it with --strategy")
    if strategy is not None and strategy.uneven:
        console.out("slices have different lengths, so each length is listed separately")


def _complete(manifest: Manifest) -> str:
    return f"ranks {manifest.ranks} of {manifest.target_ranks}, from {manifest.source.url}"


def _show_parameters(listed: list[ListedParameter], inventory: Inventory, *, every: bool) -> None:
    lines = listed if every or len(listed) <= _SHOWN_PARAMETERS else merge_numbered(listed)
    shown = lines if every else lines[:_SHOWN_PARAMETERS]
    known = any(p.layout is not None for p in listed)
    some = any(len(p.ranks) < len(_sizes(inventory)) for p in listed)
    holder = "file" if inventory.unified else "rank"
    left, right = "left", "right"
    columns = [("parameter", left), ("type", left), *([("shape", right)] if known else []), ("slice", right)]
    columns += [*([("layout", left)] if known else []), *([(f"{holder}s", left)] if some else []), (f"per {holder}", right)]
    rows = [
        (
            *(p.name, p.dtype),
            *([shape(p.shape or ())] if known else []),
            shape(p.slice_shape),
            *([p.layout or ""] if known else []),
            *([some_ranks(p.ranks)] if some else []),
            size(p.nbytes),
        )
        for p in shown
    ]
    console.out()
    console.table(columns, rows)
    if len(lines) > len(shown):
        console.out(f"... and {len(lines) - len(shown)} more; use --all to list all, or --parameter 'PATTERN' to select some")


def _show_sizes(inventory: Inventory, *, every: bool) -> None:
    """Print the size of each rank. Adjacent ranks of equal size share a line."""
    sizes = sorted(_sizes(inventory).items())
    runs = [(nbytes, tuple(rank for rank, _ in run)) for nbytes, run in groupby(sizes, key=lambda size: size[1])]
    most = max(1, *(nbytes for nbytes, _ in runs))
    shown = runs if every else runs[:_SHOWN_SIZES]
    holder = "file" if inventory.unified else "rank"
    rows = [(format_ranks(ranks), size(nbytes), "█" * round(_BAR * nbytes / most)) for nbytes, ranks in shown]
    console.out()
    console.table([(holder, "left"), ("size", "right"), ("", "left")], rows)
    if len(runs) > len(shown):
        console.out(f"... and {len(runs) - len(shown)} more; use --all to list all")
    if len(sizes) > 1:
        console.out(f"imbalance {imbalance(inventory):.2f} (largest rank / mean)")
