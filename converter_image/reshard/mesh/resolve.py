"""Apply a layout file to the parameters of a checkpoint.

Each parameter is matched by a rule or refused by name, so that no parameter gets a layout that nobody has written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reshard.errors import DataError, RequestError, ReshardError
from reshard.mesh.problems import Problems, raise_all
from reshard.mesh.sharding import Derived, Sharding, Whole, optimizer_sharded
from reshard.mesh.stages import LayerStages
from reshard.mesh.states import UndeclaredStates
from reshard.plan.rules import NamePattern, unmatched_patterns
from reshard.spec.layout import LayoutDocument, LayoutRule, Zero, axes_of, patterns_in
from reshard.strategy import Strategy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from reshard.layout import Layout
    from reshard.mesh.questions import Derivation


SHOWN = 5  # names quoted in one message
MOST_ELEMENT_BYTES = 16  # of complex numbers
_EXTREME_DTYPES = ("Int8", "Complex128")


@dataclass(frozen=True, slots=True)
class Assigned:
    """The rule and the sharding of one parameter.

    Attributes:
        rule: position of the rule in the document. None means that the sharding is derived from the source.
        owner: name of the parameter that decides: the parameter itself, or the one whose optimizer state it is.
        dtypes: type of that parameter. If it is absent: types of the smallest and largest elements that it can have.
        sharding: axes that divide it.
        zero: sharding of optimizer parallelism. None means none.
        stages: pipeline stages that hold it.
        others: other shardings that can be meant, see `Derived.others`.
    """

    rule: int | None
    owner: str
    dtypes: tuple[str, ...]
    sharding: Sharding
    zero: Zero | None
    stages: tuple[int, ...]
    others: tuple[Sharding, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """The layouts of all parameters.

    Attributes:
        strategy: layouts by stage and name. Scalars, and tensors with one element that no rule matches, are not in it: every rank
            holds them whole.
        assigned: rule and sharding of each parameter in the strategy, by name.
        notes: messages for the user, such as rules that match nothing.
        unmatched: patterns of the parameters that no rule matches. They are not in the strategy.
        refusals: refusal of these parameters, if there are any.
    """

    strategy: Strategy
    assigned: Mapping[str, Assigned]
    notes: tuple[str, ...]
    unmatched: tuple[str, ...] = ()
    refusals: Sequence[RequestError] = ()


class Rules:
    """The rules of a layout file, for the parameters of one checkpoint.

    Args:
        document: layout file.
        where: name of the file, for messages.
        derived: shardings that are derived from the source, for parameters that no rule matches.

    Raises:
        UsageError: pipeline stages contradict each other.
    """

    def __init__(self, document: LayoutDocument, where: str, derived: Mapping[str, Derived] | None = None) -> None:
        self.document, self._where, self._derived = document, where, derived or {}
        self._patterns = [[NamePattern(pattern) for pattern in rule.patterns] for rule in document.rules]
        self._states = [NamePattern(state if "*" in state else f"{state}*") for state in document.state]
        self._stages = document.stages
        self._layers = LayerStages(document.pipeline, self._stages) if document.pipeline else None
        self.sizes = document.axes
        self._expert_sizes = document.expert_axes

    def owner(self, name: str, tensors: Mapping[str, Whole]) -> str:
        """Return the name of the parameter whose layout a tensor has: its own, or that of the parameter whose state it is.

        A state of another shape, such as the factors of Adafactor, has a layout of its own.
        """
        owner = self._parameter(name)
        return owner if owner not in tensors or tensors[owner].shape == tensors[name].shape else name

    def _parameter(self, name: str) -> str:
        """Return the name of the parameter whose state a tensor is. A tensor that is no state is its own parameter."""
        return next((state.apply(name, "*") for state in self._states if state.matches(name)), name)

    def rule(self, owner: str) -> int | None:
        """Return the position of the first rule that matches a name, or None if none does."""
        return next((i for i, patterns in enumerate(self._patterns) if any(p.matches(owner) for p in patterns)), None)

    def layer_stage(self, name: str) -> int | None:
        """Return the pipeline stage of the layer in a name, or None if the name contains none.

        Raises:
            RequestError: the layer does not exist.
        """
        layer = self._layers.layer(self._parameter(name)) if self._layers else None
        if self._layers is None or layer is None:
            return None
        if layer >= self._layers.count:
            count = self._layers.count
            raise self._refused(f"its layer does not exist: there are {count} layers, and the first one is number 0", name)
        return self._layers.stage(layer)

    def assign(self, name: str, tensors: Mapping[str, Whole]) -> Assigned | None:
        """Return the rule and the sharding of a parameter, or None if no rule matches.

        Args:
            name: name of the parameter.
            tensors: all parameters, or their slices.

        Raises:
            RequestError: the rule does not apply to the shape, the pipeline stage is unknown, or only the absent owner has a
                rule.
        """
        owner = self.owner(name, tensors)
        is_orphan = owner not in tensors  # then a rule of the owner may not apply to the shape of the state
        dtypes = _EXTREME_DTYPES if is_orphan else (tensors[owner].dtype,)
        number = self.rule(name if is_orphan else owner)
        if number is None and is_orphan and self.rule(owner) is not None:
            raise self._orphan(name, "the rule of its parameter applies to this state if the shapes are equal")
        if number is None:
            derived = self._derived.get(name)
            if derived is None:
                return None
            return Assigned(None, owner, dtypes, derived.sharding, derived.zero, derived.stages, derived.others)
        rule = self.document.rules[number]
        zero = (self.document.zero if rule.zero is True else rule.zero) or None
        sharding = self._sharding(rule, number, name, tensors[name].shape, zero)
        return Assigned(number, owner, dtypes, sharding, None if zero and zero.axes else zero, self._stages_of(name, rule))

    def layout(self, assigned: Assigned, name: str, tensor: Whole) -> Layout:
        """Return the layout of a parameter.

        Args:
            assigned: its rule and sharding.
            name: its name.
            tensor: the parameter.

        Raises:
            DataError: the sharding does not divide the shape.
            RequestError: the unknown type of the parameter decides, or optimizer parallelism would divide an uneven slice.
        """
        layout = self.divided(assigned.sharding)
        try:
            layout.box(tensor.shape, 0)
        except DataError as error:
            raise DataError(
                error.reason,
                f"{self._named(assigned.rule)} does not fit the shape {list(tensor.shape)}: {error.what}",
                where=f"{self._where}: parameter {name}",
                fix="change the rule or the mesh, or pad the parameter with --pad; `uneven: true` divides it like torch.chunk,"
                " which MindSpore cannot load",
            ) from error
        if assigned.zero is None:
            return layout
        even = layout.evened(tensor.shape)
        if even is None:
            raise self._refused(
                f"{self._named(assigned.rule)} divides {list(tensor.shape)} unevenly, which optimizer parallelism (`zero`) cannot"
                " divide again",
                name,
                fix="set `zero: false` in its rule, or use axes in `zero`",
            )
        found = {optimizer_sharded(even, Whole(dtype, tensor.shape), assigned.zero) for dtype in assigned.dtypes}
        if len(found) > 1:
            raise self.orphan(name)
        return found.pop()

    def divided(self, sharding: Sharding) -> Layout:
        """Return the layout of a sharding by axes of the mesh, or of the experts' mesh."""
        return sharding.layout(self.sizes if set(sharding.order) <= self.sizes.keys() else self._expert_sizes)

    def expanded(self, axes: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return axes with aliases replaced by their axes."""
        aliases = self.document.aliases
        return tuple(inner for axis in axes_of(axes) for inner in (axes_of(aliases[axis]) if axis in aliases else (axis,)))

    def _sharding(self, rule: LayoutRule, number: int, name: str, shape: tuple[int, ...], zero: Zero | None) -> Sharding:
        dims: list[tuple[str, ...]] = [()] * len(shape)
        for dimension, axes in rule.shard.items():
            if int(dimension) >= len(shape):
                raise self._refused(
                    f"{self._named(number)} divides dimension {dimension}, but the parameter has {len(shape)} dimensions", name
                )
            dims[int(dimension)] = self.expanded(axes)
        if zero and zero.axes and zero.dim < len(shape):
            dims[zero.dim] += self.expanded(zero.axes)
        used = [axis for cuts in dims for axis in cuts]
        if twice := [axis for axis in used if used.count(axis) > 1]:
            raise self._refused(f"{self._named(number)} divides it twice by the axis {twice[0]}, or `zero` does so", name)
        order = self.expanded(rule.order)
        sizes = self.sizes if {*used, *order} <= self.sizes.keys() else self._expert_sizes
        if not {*used, *order} <= sizes.keys():
            both = ", ".join(sorted({*used, *order}))
            raise self._refused(f"{self._named(number)} has axes of both mesh and expertMesh: {both}", name)
        left = sorted(axis for axis, size in sizes.items() if size > 1 and axis not in order)
        if order and left:
            raise self._refused(f"the order in {self._named(number)} lacks {', '.join(left)}", name)
        if len({*order}) < len(order):
            raise self._refused(f"the order in {self._named(number)} names an axis twice", name)
        uneven = self.document.uneven if rule.uneven is None else rule.uneven
        return Sharding(tuple(dims), order or tuple(sizes), uneven)

    def _stages_of(self, name: str, rule: LayoutRule) -> tuple[int, ...]:
        stages, stage = self._stages, rule.stage
        if stage == "all" or (stages == 1 and not isinstance(stage, int)):
            return tuple(range(stages))
        if stage is not None:
            number = {"first": 0, "last": stages - 1}.get(str(stage), stage)
            if not isinstance(number, int) or number >= stages:
                raise self._refused(f"stage {number} does not exist; the number of stages is {stages}", name)
            return (number,)
        found = self.layer_stage(name)
        if found is None:
            raise RequestError(
                "LayerStageUnknown",
                f"the mesh has {stages} pipeline stages, and neither a layer in the name nor a rule determines the one of this"
                " parameter",
                where=f"{self._where}: parameter {name}",
                fix="add `stage: first`, `last`, `all` or a number to its rule, or correct `pipeline.layer`",
            )
        return (found,)

    def _named(self, number: int | None) -> str:
        if number is None:
            return "the sharding that is derived from the source"
        return f"rule {number + 1} ({', '.join(self.document.rules[number].patterns[:2])})"

    def _refused(self, what: str, name: str, fix: str = "correct the layout file") -> RequestError:
        return RequestError("RuleNotApplicable", what, where=f"{self._where}: parameter {name}", fix=fix)

    def orphan(self, name: str) -> RequestError:
        """Return the refusal of a state whose layout depends on the size of an absent parameter."""
        return self._orphan(name, "the size of its parameter decides whether optimizer parallelism divides this state")

    def _orphan(self, name: str, why: str) -> RequestError:
        return RequestError(
            "StateWithoutParameter",
            f"{why}, but the source does not contain that parameter",
            where=f"{self._where}: parameter {name}",
            fix="include that parameter, or add a rule that matches the name of this state, with `zero: false` or"
            " `zero: {threshold: 0}`",
        )

    def division(self, name: str, tensor: Whole) -> RequestError | None:
        """Return the refusal of a parameter that the source's strategy does not name, if a rule divides it."""
        number = self.rule(name)
        if number is None or tensor.size <= 1 or not self.document.rules[number].shard:
            return None
        return self._refused(
            f"{self._named(number)} divides it, but the source strategy does not name it, so every rank gets a copy",
            name,
            fix="add a rule without `shard` for it before that rule; or omit the parameter with --exclude"
            " (spec.parameters.exclude)",
        )

    def missing_layers(self, names: Iterable[str]) -> list[RequestError]:
        """Return the refusal of parameters of fewer layers than the file declares, because it assigns them to wrong stages."""
        if self._layers is None or self._stages == 1:
            return []
        layers = {layer for name in names if (layer := self._layers.layer(self._parameter(name))) is not None}
        if not layers or max(layers) + 1 >= self._layers.count:
            return []
        what = f"the file declares {self._layers.count} layers, but the last layer of the checkpoint is number {max(layers)}"
        fix = "correct `layers` or `counts` of the pipeline; the number of the first layer is 0"
        return [RequestError("LayerMissing", what, where=self._where, fix=fix)]

    def unused(self, assigned: Mapping[str, Assigned], names: Collection[str]) -> tuple[str, ...]:
        """Return messages about rules, patterns and states that match no parameter.

        Args:
            assigned: rule of each parameter, by name.
            names: names of all parameters.
        """
        matched: dict[int | None, set[str]] = {}
        for name, each in assigned.items():
            matched.setdefault(each.rule, set()).update((name, each.owner))
        what = "matches no parameter that an earlier rule does not match"
        notes = []
        for number, rule in enumerate(self.document.rules):
            patterns = unmatched_patterns(matched.get(number, ()), rule.patterns)
            if len(patterns) == len(rule.patterns):
                notes.append(f"{self._named(number)} {what}")
            else:
                notes += [f"the pattern {pattern} of {self._named(number)} {what}" for pattern in patterns]
        states = zip(self.document.state, self._states, strict=True)
        notes += [f"the state {text} matches no name" for text, state in states if not any(map(state.matches, names))]
        if how := self.document.derive:
            for field, value in (("experts", how.experts), ("unsharded", how.unsharded or ())):
                unused = unmatched_patterns(names, patterns_in(value))
                notes += [f"the pattern {pattern} in `derive.{field}` matches no parameter" for pattern in unused]
        return tuple(f"{self._where}: {note}" for note in notes)


def resolve(
    document: LayoutDocument,
    tensors: Mapping[str, Whole],
    where: str,
    derivation: Derivation | None = None,
    *,
    unnamed: Mapping[str, Whole] | None = None,
    incomplete: bool = False,
    selected: bool = False,
) -> Resolved:
    """Return the layouts of whole parameters. One error states all problems.

    Args:
        document: layout file.
        tensors: all parameters, by their names in the target.
        where: name of the file, for messages.
        derivation: shardings that are derived from the source, for parameters that no rule matches, and open questions.
        unnamed: parameters that the source's strategy does not name, so that every rank gets them as they are. A rule must not
            divide them.
        incomplete: whether parameters that no rule matches are returned instead of refused, if there is no other problem.
        selected: whether these are not all parameters of the checkpoint, so that layers may be missing.

    Raises:
        DataError: a sharding does not divide a parameter evenly.
        RequestError: no rule matches a parameter, a rule does not apply to its shape, its pipeline stage is unknown, or a
            question about its sharding is open.
        UsageError: pipeline stages contradict each other.
    """
    refused = derivation.refused if derivation else ()
    rules = Rules(document, where, derivation.derived if derivation else None)
    states = UndeclaredStates(tensors, {name: rules.owner(name, tensors) for name in tensors}, where)
    stages: tuple[dict[str, Layout], ...] = tuple({} for _ in range(document.stages))
    assigned: dict[str, Assigned] = {}
    layouts: dict[str, Layout] = {}
    shared: dict[object, Layout] = {}
    unmatched, asked = [], {name for each in refused for name in each.names}
    failed: dict[str, ReshardError] = {}
    for name, tensor in tensors.items():
        try:
            found = rules.assign(name, tensors) if tensor.shape else None
            if found is None:
                unmatched += [name] if tensor.size > 1 and name not in asked else []
                continue
            key = (found.sharding, found.zero, tensor.shape, found.dtypes)
            if key not in shared:
                shared[key] = rules.layout(found, name, tensor)
        except (DataError, RequestError) as error:
            failed[name] = error
            continue
        assigned[name], layouts[name] = found, shared[key]
        for stage in found.stages:
            stages[stage][name] = shared[key]
    problems = Problems(where)
    for name, refusal in (states.explained(failed) | states.differing(assigned, layouts)).items():
        problems.add(name, refusal)
    for name, tensor in (unnamed or {}).items():
        if (division := rules.division(name, tensor)) is not None:
            problems.add(name, division)
    errors = [*(each.error for each in refused), *(error for _, error in problems.grouped({*tensors, *(unnamed or {})}))]
    errors += [] if selected else rules.missing_layers(tensors)
    raise_all([*errors, *(states.unmatched(unmatched, SHOWN) if errors or not incomplete else ())])
    ruled = (name for name, each in assigned.items() if each.rule is not None)
    notes = (*rules.unused(assigned, tensors), *(f"{where}: {note}" for note in states.notes(ruled)))
    refusals = states.unmatched(unmatched, len(unmatched))
    return Resolved(Strategy(stages, document.devices), assigned, notes, states.patterns(unmatched), refusals)
