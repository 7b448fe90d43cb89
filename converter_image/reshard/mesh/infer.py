"""Write the rules of a layout file from a strategy and its mesh, or from derived shardings. They lead to equal slices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import RequestError, ReshardError, listed
from reshard.layout import ALL_OF_GROUP
from reshard.layout.regroup import joinable
from reshard.mesh.drafts import Draft, drafted
from reshard.mesh.evidence import checked_mesh
from reshard.mesh.patterns import owner_of
from reshard.mesh.readings import MOST_AXES, Observation, candidates, intervals, slices_key
from reshard.mesh.resolve import resolve
from reshard.mesh.sharding import Sharding, Whole, optimizer_sharded
from reshard.mesh.stages import LayerStages, inferred_pipeline
from reshard.spec.layout import API_VERSION, MOST_RULES, LayoutDocument, LayoutRule, Zero

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reshard.layout import Layout
    from reshard.mesh.resolve import Resolved
    from reshard.spec.layout import Mesh
    from reshard.strategy import Strategy

_GENERATED = ("accu_grads", "inputs")  # names that only the compiler uses; no checkpoint has them


@dataclass(frozen=True, slots=True)
class Inferred:
    """A layout file that was inferred.

    Attributes:
        document: layout file.
        comments: comments on its rules, by the position of the rule.
        notes: what the strategy does not show, for the user.
    """

    document: LayoutDocument
    comments: Mapping[int, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter of the strategy: its layout, the stages that hold it, and a whole tensor that the layout divides."""

    layout: Layout
    stages: tuple[int, ...]
    whole: Whole

    @property
    def plain(self) -> Layout:
        return replace(self.layout, shard_size=0, shard_step=0)

    @property
    def is_sharded(self) -> bool:
        return bool(self.layout.shard_size and self.layout.shard_step)

    def divided(self, zero: Zero) -> Layout:
        return optimizer_sharded(self.plain, self.whole, zero)

    def has(self, layout: Layout) -> bool:
        return (layout.parts, layout.cells) == (self.layout.parts, self.layout.cells)


def infer(strategy: Strategy, mesh: Mesh, where: str, tensors: Mapping[str, Whole] | None = None) -> Inferred:
    """Return the layout file of a strategy. Applied to the same parameters, it leads to the same slices.

    Args:
        strategy: layouts of all pipeline stages.
        mesh: axes of its ranks.
        where: name of the strategy, for messages.
        tensors: whole parameters, by name. Others are ignored. Without them, the threshold of optimizer parallelism is unknown.

    Raises:
        DataError: the strategy contradicts itself.
        RequestError: the mesh does not explain the strategy, or a layout file cannot describe it.
    """
    sizes, stages = checked_mesh(strategy, mesh, where)
    found = _parameters(strategy, stages, tensors, where)
    prefixes, owners = _states(found)
    parameters = {name: each for name, each in found.items() if owners[name] == name}
    zero, notes = _zero(parameters, is_known=tensors is not None)
    pipeline = inferred_pipeline({name: each.stages for name, each in parameters.items()}, stages) if stages > 1 else None
    shardings = _all_readings(parameters, sizes, where)
    empty = LayoutDocument(API_VERSION, mesh, state=prefixes, rules=(LayoutRule("*"),), pipeline=pipeline, zero=zero)
    document, comments = _with_rules(empty, (), parameters, shardings, where)
    _check(document, found, where)
    return Inferred(document, comments, (*notes, *_ambiguous(mesh, shardings)))


def with_derived_rules(document: LayoutDocument, resolved: Resolved, tensors: Mapping[str, Whole], where: str) -> Inferred:
    """Return a layout file with rules in the place of `derive`. The other fields and rules stay as they are.

    Args:
        document: layout file with `derive`.
        resolved: layouts that it gives whole parameters.
        tensors: these parameters, by name.
        where: name of the file, for messages.

    Raises:
        RequestError: no rules describe the derived shardings.
    """
    found = _parameters(resolved.strategy, document.stages, tensors, where)
    prefixes, owners = _states(found)
    if document.state:
        prefixes = document.state
        owners = {name: owner if (owner := resolved.assigned[name].owner) in found else name for name in found}
    derived = {name: each for name, each in found.items() if resolved.assigned[name].rule is None and owners[name] == name}
    pipeline = document.pipeline
    if pipeline is None and document.stages > 1:
        pipeline = inferred_pipeline({name: each.stages for name, each in found.items()}, document.stages)
    shardings = {name: (resolved.assigned[name].sharding, *resolved.assigned[name].others) for name in derived}
    complete = msgspec.structs.replace(document, state=prefixes, pipeline=pipeline)
    made, comments = _with_rules(complete, document.rules, derived, shardings, where)
    _check(made, found, where)
    return Inferred(made, comments, _ambiguous(document.mesh, shardings))


def _ambiguous(mesh: Mesh, shardings: Mapping[str, tuple[Sharding, ...]]) -> tuple[str, ...]:
    """Return a note if a parameter has other readings."""
    if all(len(each) == 1 for each in shardings.values()):
        return ()
    return (f"rules with other readings in a comment are ambiguous in the mesh {mesh}: check them before you change the mesh",)


def _with_rules(
    document: LayoutDocument,
    rules: tuple[LayoutRule, ...],
    parameters: Mapping[str, _Parameter],
    shardings: Mapping[str, tuple[Sharding, ...]],
    where: str,
) -> tuple[LayoutDocument, dict[int, str]]:
    """Return a layout file with rules instead of `derive`, and comments on them by their positions.

    Args:
        document: layout file.
        rules: its first rules, which match none of the parameters.
        parameters: parameters that further rules describe.
        shardings: sharding of each of them, and then other readings of its layout.
        where: name of the file, for messages.
    """
    groups = drafted(_drafts(document, parameters, shardings, where))
    if len(rules) + len(groups) > MOST_RULES:
        _refuse([name for _, _, (name, *_) in groups], f"a layout file has at most {MOST_RULES} rules", where)
    made = (*rules, *(_rule(*group[:2]) for group in groups))
    comments = {len(rules) + i: _comment(names, shardings) for i, (_, _, names) in enumerate(groups)}
    return msgspec.structs.replace(document, rules=made, derive=None), comments


def _parameters(strategy: Strategy, stages: int, tensors: Mapping[str, Whole] | None, where: str) -> dict[str, _Parameter]:
    layouts: dict[str, dict[int, Layout]] = {}
    split, different = [], []
    for stage, names in enumerate(strategy.stages[:stages]):
        stated = strategy.shapes[stage] if strategy.shapes else {}
        for name, layout in names.items():
            if name.startswith(_GENERATED) or (tensors is not None and (name not in tensors or not tensors[name].shape)):
                continue
            if tensors is not None:
                layouts.setdefault(name, {})[stage] = strategy.layout(stage, name, tensors[name].shape, sliced=False)
                continue
            layouts.setdefault(name, {})[stage] = layout
            if name in stated and joinable(layout, stated[name]):
                split.append(name)
    _refuse(
        split, "the JSON form can contain several dimensions instead of one, so the shapes of a checkpoint are required", where
    )
    found = {}
    for name, each in layouts.items():
        layout, *others = each.values()
        if any((other.parts, other.cells) != (layout.parts, layout.cells) for other in others):
            different.append(name)
        whole = tensors[name] if tensors is not None else Whole("Float32", tuple(2 * n for n in layout.parts))
        found[name] = _Parameter(layout, tuple(each), whole)
    _refuse(different, "pipeline stages divide it differently", where)
    return found


def _states(found: Mapping[str, _Parameter]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the prefixes of optimizer states, and the parameter of each tensor: its own name if it is no state."""
    equal = {name: (each.layout, each.stages, each.whole.shape) for name, each in found.items()}
    owners = {name: owner_of(name, equal) for name in found}
    prefixes = {name.removesuffix(owner): None for name, owner in owners.items() if name != owner}
    complete = {
        prefix: None
        for prefix in prefixes
        if all(owners[name] == name.removeprefix(prefix) for name in found if name.startswith(prefix))
    }
    return tuple(sorted(complete)), {
        name: owner if name.removesuffix(owner) in complete else name for name, owner in owners.items()
    }


def _zero(parameters: Mapping[str, _Parameter], *, is_known: bool) -> tuple[Zero | None, tuple[str, ...]]:
    """Return the settings of optimizer parallelism, and what is unknown about them."""
    sharded = [each for each in parameters.values() if each.is_sharded]
    if not sharded:
        return None, ()
    sizes = {each.layout.shard_size for each in sharded}
    size = ALL_OF_GROUP if ALL_OF_GROUP in sizes else max(sizes)
    if not is_known:
        what = "the shapes are unknown, so `zero` has the threshold 0 and each rule states whether it applies"
        return Zero(0, size), (f"{what}: set the threshold of training before you change the mesh",)
    smallest = min(each.whole.nbytes for each in sharded)
    default = Zero(size=size)
    zero = default if default.threshold <= smallest else Zero(smallest, size)
    possible = [each.whole.nbytes for each in parameters.values() if not each.has(each.divided(Zero(0, size)))]
    least = max((n for n in possible if n < zero.threshold), default=-1) + 1
    return zero, (
        f"the threshold in `zero` is between {least} and {smallest} bytes unless rules with `zero: false` have other reasons",
    )


def _drafts(
    document: LayoutDocument, parameters: Mapping[str, _Parameter], shardings: Mapping[str, tuple[Sharding, ...]], where: str
) -> dict[str, Draft]:
    """Return the content of the rule of each parameter."""
    zero = document.zero if document.zero and not document.zero.axes else None
    layers = LayerStages(document.pipeline, document.stages) if document.pipeline else None
    drafts, other_stages, unexplained = {}, [], []
    for name, parameter in parameters.items():
        sharding = shardings[name][0]
        flags = [zero is not None and parameter.has(parameter.divided(zero)), parameter.has(parameter.plain)]
        stage = _stage(name, parameter.stages, layers, document.stages)
        if not any(flags):
            unexplained.append(name)
        elif stage == "":
            other_stages.append(name)
        else:
            shard = tuple((i, cuts) for i, cuts in enumerate(sharding.dims) if cuts)
            axes = document.axes if {*sharding.order} <= document.axes.keys() else document.expert_axes
            usual = replace(sharding, order=tuple(axis for axis in axes if axis in sharding.order))
            order = () if slices_key(usual) == slices_key(sharding) else sharding.order
            applies = None if all(flags) or zero is None else flags[0]
            if document.zero and document.zero.axes:
                applies = False  # its axes are in the sharding
            drafts[name] = Draft(shard, order, stage, applies)
    _refuse(unexplained, "its optimizer shards differ from those of other parameters", where)
    _refuse(other_stages, "neither its layer nor `first`, `last`, `all` or one number describes its pipeline stages", where)
    return drafts


def _all_readings(parameters: Mapping[str, _Parameter], sizes: Mapping[str, int], where: str) -> dict[str, tuple[Sharding, ...]]:
    """Return the readings of each parameter. The first one becomes its rule."""
    axes = [axis for axis, size in sizes.items() if size > 1]
    if len(axes) > MOST_AXES:
        _refuse(list(parameters), f"more than {MOST_AXES} axes have several ranks", where)
    readings: dict[Observation, tuple[Sharding, ...]] = {}
    found, unread = {}, []
    for name, parameter in parameters.items():
        observation = Observation(tuple((axis, sizes[axis]) for axis in axes), intervals(parameter.plain))
        if observation not in readings:
            readings[observation] = _readings(observation, axes)
        found[name] = readings[observation]
        unread += [] if found[name] else [name]
    _refuse(unread, "no block of axes of the mesh divides it as the strategy does", where)
    return found


def _readings(observation: Observation, axes: list[str]) -> tuple[Sharding, ...]:
    """Return the readings of a layout that differ in another mesh with the same axes. The first one has the order of the mesh."""
    found: dict[object, Sharding] = {}
    for reading in candidates([observation], axes, frozenset(), frozenset()):
        found.setdefault(slices_key(reading), reading)
    return tuple(found.values())


def _stage(name: str, found_in: tuple[int, ...], layers: LayerStages | None, stages: int) -> str | int | None:
    """Return the `stage` of a rule. An empty text means that no rule can describe the stages."""
    layer = layers.layer(name) if layers else None
    if stages == 1 or (layers and layer is not None and found_in == (layers.stage(layer),)):
        return None
    if len(found_in) > 1:
        return "all" if len(found_in) == stages else ""
    return {0: "first", stages - 1: "last"}.get(found_in[0], found_in[0])


def _rule(draft: Draft, patterns: tuple[str, ...]) -> LayoutRule:
    shard = {str(i): cuts[0] if len(cuts) == 1 else cuts for i, cuts in draft.shard}
    match = patterns[0] if len(patterns) == 1 else patterns
    return LayoutRule(match, shard, draft.order, draft.stage, draft.zero is not False)  # type: ignore[arg-type]  # checked by _stage


def _comment(names: tuple[str, ...], shardings: Mapping[str, tuple[Sharding, ...]]) -> str:
    """Return the number of parameters of a rule, and its other readings."""
    others = {(other.dims, other.order) for name in names for other in shardings[name][1:]}
    texts = dict.fromkeys(
        "{"
        + ", ".join(f"{i}: [{', '.join(cuts)}]" for i, cuts in enumerate(dims) if cuts)
        + f"}} in the order {', '.join(order)}"
        for dims, order in sorted(others)
    )
    count = f"{len(names)} parameter{'s' if len(names) > 1 else ''}"
    return f"{count}; other readings: {' or '.join(texts)}" if texts else count


def _check(document: LayoutDocument, found: Mapping[str, _Parameter], where: str) -> None:
    """Check that a layout file leads to the slices of the strategy.

    Raises:
        RequestError: it does not.
    """
    wholes = {name: each.whole for name, each in found.items()}
    try:
        stages = resolve(document, wholes, where).strategy.stages
    except ReshardError as error:
        raise RequestError(
            "LayoutNotDerivable",
            f"no layout file was found that describes the strategy: {error.what}",
            where=f"{where}: {error.where}",
            fix="write a layout file by hand, or use the strategy itself",
        ) from error
    different = [
        name
        for name, each in found.items()
        if each.whole.size > 1
        and [i for i, names in enumerate(stages) if name in names and each.has(names[name])] != [*each.stages]
    ]
    _refuse(different, "no layout file was found that describes its layout", where)


def _refuse(names: list[str], what: str, where: str) -> None:
    """Refuse parameters that a layout file cannot describe.

    Raises:
        RequestError: there are such parameters.
    """
    if names:
        raise RequestError(
            "LayoutNotDerivable",
            what,
            where=f"{where}: parameters {listed(names)}",
            fix="correct the mesh, exclude these parameters, or use the strategy itself",
        )
