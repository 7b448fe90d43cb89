"""Derive the sharding of a target from that of its source: the same axes divide the same dimensions, with other sizes.

Nothing is assumed, such as an order of axes. All readings of the source are collected, and several that lead to different slices
are refused, as are all other open questions. Each refusal contains the rules of which one would answer it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, combinations, product
from math import prod
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import RequestError
from reshard.mesh.orders import check_order
from reshard.mesh.patterns import matching, patterns_of
from reshard.mesh.problems import Problems
from reshard.mesh.questions import Derivation, Question, Refused
from reshard.mesh.readings import MOST_AXES, Observation, TooManyReadings, candidates, default_intervals, slices_key
from reshard.mesh.render import rule_line
from reshard.mesh.resolve import MOST_ELEMENT_BYTES, Rules
from reshard.mesh.sharding import Derived, Sharding, Whole, optimizer_sharded
from reshard.model.tiling import Grid
from reshard.spec.layout import LayoutRule, Zero, axes_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reshard.mesh.evidence import Evidence
    from reshard.mesh.readings import Intervals
    from reshard.spec.layout import LayoutDocument


@dataclass(frozen=True, slots=True)
class _Zero:
    """The optimizer parallelism of a parameter in the target, and the `zero` of a rule with this effect."""

    zero: Zero | None
    rule: bool | Zero


@dataclass(frozen=True, slots=True)
class _Stages:
    """Pipeline stages of a parameter in the target, and the `stage` of a rule that has this effect."""

    stages: tuple[int, ...]
    rule: str | int | None


@dataclass(frozen=True, slots=True)
class _Read:
    """The readings of a parameter.

    Attributes:
        shardings: shardings that lead to different slices in the target, at least one.
        unseen: axes of the target that no observation shows.
        is_default: whether one of several readings is that its operator has no strategy. It need not be among `shardings`.
        others: other readings that lead to the slices of the first one. For other sizes of axes, they lead to other slices.
    """

    shardings: tuple[Sharding, ...]
    unseen: tuple[str, ...]
    is_default: bool
    others: tuple[Sharding, ...]


def derive(
    document: LayoutDocument,
    tensors: Mapping[str, Whole],
    where: str,
    evidence: Sequence[Evidence],
    names: Mapping[str, str] | None = None,
    experts: Sequence[Evidence] = (),
) -> Derivation:
    """Return the shardings of the parameters that no rule of a layout file matches.

    Parameters that the source does not show are absent from the result, so that `resolve` refuses them.

    Args:
        document: layout file of the target, with `derive`.
        tensors: all whole parameters of the target, by their names in the target.
        where: name of the layout file, for messages.
        evidence: the source, and then its witnesses.
        names: name in the source of each parameter that has another one in the target.
        experts: evidence with the axes of the experts' meshes, for the parameters in `derive.experts`. The source is first.

    Raises:
        RequestError: the axes of the meshes have other orders, see `check_order`.
        UsageError: pipeline stages contradict each other.
    """
    rules = Rules(document, where)
    owners = {name: rules.owner(name, tensors) for name in tensors}
    target = _Target(document, tensors, where, names or {}, rules, owners)
    is_expert = matching(document.derive.experts if document.derive else ())
    by_mesh: tuple[list[str], list[str]] = ([], [])
    for name in tensors:
        by_mesh[is_expert(owners[name])].append(name)
    derived: dict[str, Derived] = {}
    refused: list[Refused] = []
    for sizes, shown, some in ((document.axes, evidence, by_mesh[0]), (document.expert_axes, experts, by_mesh[1])):
        if some:
            sources = set(map(target.source_name, some))
            found = _Task(target, sizes, tuple(each.of(sources) for each in shown)).derivation(some)
            derived |= found.derived
            refused += found.refused
    return Derivation(derived, tuple(refused))


@dataclass(frozen=True, slots=True)
class _Target:
    """The parameters of a target, and its layout file.

    Attributes:
        document: layout file.
        tensors: whole parameters by name.
        where: name of the layout file, for messages.
        names: name in the source of each parameter that has another one in the target.
        rules: rules of the layout file.
        owners: name of the parameter that decides for each tensor: itself, or the one whose optimizer state it is.
    """

    document: LayoutDocument
    tensors: Mapping[str, Whole]
    where: str
    names: Mapping[str, str]
    rules: Rules
    owners: Mapping[str, str]

    def source_name(self, name: str) -> str:
        """Return the name of a parameter in the source."""
        return self.names.get(name, name)


class _Task:
    """The derivation of the parameters of one mesh of a target.

    Args:
        target: all parameters of the target.
        sizes: size of each axis of this mesh, outermost first.
        evidence: what the source and its witnesses show about the parameters of this mesh.
    """

    def __init__(self, target: _Target, sizes: Mapping[str, int], evidence: tuple[Evidence, ...]) -> None:
        self._document, self._tensors, self._where, self._evidence = target.document, target.tensors, target.where, evidence
        self._rules, self._owners, self._sizes, self._source_name = target.rules, target.owners, sizes, target.source_name
        how = self._document.derive
        self._replicated = frozenset(axes_of(how.replicated)) if how else frozenset()
        self._is_unsharded = None if how is None or how.unsharded is None else matching(how.unsharded)
        self._readings: dict[object, _Read | Question] = {}
        cuts = (self._rules.expanded(axes) for rule in self._document.rules for axes in rule.shard.values())
        self._dividing = set(chain.from_iterable(cuts))  # axes that divide a parameter

    def derivation(self, names: Iterable[str]) -> Derivation:
        """Return the shardings of those of these parameters that the source shows and no rule matches."""
        wanted = [n for n in names if self._tensors[n].size > 1 and not self.is_ruled(n) and self.is_observed(n)]
        check_order(self._evidence[0], self._sizes, map(self._source_name, wanted), self._where)
        derived: dict[str, Derived] = {}
        questions: dict[object, tuple[Question, list[str]]] = {}
        problems = Problems(self._where)
        for name in wanted:
            try:
                found = self.derived(name)
            except RequestError as error:
                problems.add(name, error)
                continue
            if isinstance(found, Derived):
                derived[name] = found
            else:
                questions.setdefault((found.kind, found.about, *map(rule_line, found.rules)), (found, []))[1].append(name)
        refused = [self.refused(question, some) for question, some in questions.values()]
        refused += [Refused(some, error) for some, error in problems.grouped(self._tensors)]
        return Derivation(derived, tuple(refused))

    def is_ruled(self, name: str) -> bool:
        """Return whether a rule matches a parameter."""
        return self._rules.rule(self._owners[name]) is not None

    def is_observed(self, name: str) -> bool:
        """Return whether the source shows a parameter."""
        return self._source_name(name) in self._evidence[0].observed

    def derived(self, name: str) -> Derived | Question:
        """Return the sharding of a parameter, or what is unknown about it."""
        tensor, source_name = self._tensors[name], self._source_name(name)
        observations = tuple(o for each in self._evidence for o in each.observed.get(source_name, ()))
        read = self._read(observations, tensor.shape)
        if isinstance(read, Question):
            return read
        readings, unseen = read.shardings, read.unseen
        uses = [{axis for cuts in reading.dims for axis in cuts} for reading in readings]
        if not read.is_default:
            self._dividing |= set.intersection(*uses)
        kind = about = ""
        replicated: tuple[str, ...] = ()
        if unseen:
            kind, about = "unseen", ", ".join(unseen)
            replicated = (about,) if len(readings) == 1 else ()
        elif read.is_default:
            kind = "default"
        elif len(readings) > 1:
            kind, about = "readings", _mesh(observations[0])
            replicated = tuple(axis for axis in self._sizes if sum(axis not in used for used in uses) == 1)
        elif other := self._conditional(readings[0], tensor, observations):
            kind, about = "conditional", ", ".join(axis for cuts in other.dims for axis in cuts)
            readings = (*readings, other)
        elif readings := self._instead(reading := readings[0], tensor.shape, observations):
            axes = (
                f"dimension {i} of length {tensor.shape[i]} by {' x '.join(cuts)}" for i, cuts in enumerate(reading.dims) if cuts
            )
            kind, about = "uneven", ", ".join(axes)
        else:
            readings = (reading,)
        zeros = [self._zeros(name, reading) for reading in readings]
        stages = self._stages(name)
        is_sharded_open = any(len(each) > 1 for each in zeros)
        if not kind and is_sharded_open:
            kind = "disputed" if len(self._flags(name)) > 1 else "sharded"
        kind = kind or ("stage" if len(stages) > 1 else "")
        if not kind:
            return self._with_axes_of_zero(Derived(readings[0], zeros[0][0].zero, stages[0].stages, read.others))
        rules = [
            _rule(self._plain(reading), *effects, self._sizes)
            for reading, possible in zip(readings, zeros, strict=True)
            for effects in product(possible, stages)
        ]
        is_sharded_open = is_sharded_open and self._is_unsharded is None and not self._flags(name)
        return Question(kind, about, tuple(rules), replicated, len(stages) > 1, is_sharded_open)

    def _read(self, observations: tuple[Observation, ...], shape: tuple[int, ...]) -> _Read | Question:
        """Return the readings of observations. Parameters with equal ones have equal readings."""
        # An axis that divides no parameter does not divide it by default either.
        is_excluded = any(self._sizes.get(axis, 1) > 1 for axis in self._replicated) and not shape[0] % self._document.devices
        is_default = not is_excluded and all(each.is_default for each in observations)
        key = (observations, default_intervals(shape, self._document.devices) if is_default else ())
        if key not in self._readings:
            self._readings[key] = self._reading(*key)
        return self._readings[key]

    def _reading(self, observations: tuple[Observation, ...], default: Intervals) -> _Read | Question:
        seen = frozenset().union(*(each.names for each in observations))
        grown = frozenset(axis for axis, size in self._sizes.items() if size > 1 and axis not in seen)
        axes = [axis for axis in self._sizes if axis in seen or axis in grown]
        axes += sorted(seen - self._sizes.keys())
        if len(axes) > MOST_AXES:
            return Question("axes", ", ".join(axes))
        found: dict[object, dict[object, Sharding]] = {}
        placed = grown | (self._replicated - observations[0].names) & {*axes}
        try:
            for candidate in candidates(observations, axes, placed, self._replicated | grown):
                in_target = self._in_target(candidate)
                found.setdefault(slices_key(in_target, self._sizes), {}).setdefault(slices_key(in_target), in_target)
        except TooManyReadings:
            return Question("many", _mesh(observations[0]))
        is_open = bool(default) and (default not in found or len(found) > 1)
        if default and default not in found and (sharding := self._of_default(default)):
            found[default] = {None: sharding}
            is_open = len(found) > 1
        if not found:
            return Question("reading", ", its stages and the witnesses" if len(observations) > 1 else "")
        shardings = tuple(next(iter(each.values())) for each in found.values())
        unseen = tuple(axis for axis in axes if axis in grown - self._replicated)
        return _Read(shardings, unseen, is_open, tuple(next(iter(found.values())).values())[1:])

    def _of_default(self, default: Intervals) -> Sharding | None:
        """Return axes that divide a parameter as MindSpore does by default, if there are any."""
        count = prod(length for cuts in default for _, length in cuts)
        several = [axis for axis, size in self._sizes.items() if size > 1]
        for number in range(len(several) + 1):
            for some in combinations(several, number):
                if prod(self._sizes[axis] for axis in some) == count:
                    dims = tuple(some if cuts else () for cuts in default)
                    return Sharding(dims, (*some, *(axis for axis in self._sizes if axis not in some)), self._document.uneven)
        return None

    def _in_target(self, sharding: Sharding) -> Sharding:
        """Return a sharding without the axes that the target does not have."""
        dims = tuple(tuple(axis for axis in cuts if axis in self._sizes) for cuts in sharding.dims)
        return Sharding(dims, tuple(axis for axis in sharding.order if axis in self._sizes), self._document.uneven)

    def _plain(self, sharding: Sharding) -> Sharding:
        """Return a sharding whose order is that of the mesh if this leads to the same slices."""
        plain = Sharding(sharding.dims, tuple(self._sizes), sharding.uneven)
        return plain if slices_key(plain, self._sizes) == slices_key(sharding, self._sizes) else sharding

    def _conditional(self, reading: Sharding, tensor: Whole, observations: tuple[Observation, ...]) -> Sharding | None:
        """Return how a whole parameter could be divided in the target by axes that do not divide its shape in the source.

        Models leave such parameters whole, for example an embedding whose vocabulary is not a multiple of `tp`.
        """
        seen = [dict(each.axes) for each in observations if not isinstance(each.cuts, Grid)]
        if any(reading.dims) or not seen:
            return None
        several = {axis for each in (*seen, self._sizes) for axis, size in each.items() if size > 1}
        axes = [axis for axis in self._sizes if axis in several - self._replicated]
        for dimension, n in enumerate(tensor.shape):
            for count in range(1, len(axes) + 1):
                for some in combinations(axes, count):
                    *before, after = (prod(each.get(axis, 1) for axis in some) for each in (*seen, self._sizes))
                    if all(n % count for count in before) and after > 1 and not n % after:
                        dims = [some if i == dimension else () for i in range(len(tensor.shape))]
                        return Sharding(tuple(dims), tuple(self._sizes), reading.uneven)
        return None

    def _instead(self, reading: Sharding, shape: tuple[int, ...], observations: tuple[Observation, ...]) -> tuple[Sharding, ...]:
        """Return other shardings of a parameter that the axes of a reading do not divide evenly in the target."""
        if reading.uneven or all(n % k == 0 for n, k in zip(shape, reading.layout(self._sizes).parts, strict=True)):
            return ()
        whole = Sharding(((),) * len(shape), reading.order)
        is_chunked = all(isinstance(each.cuts, Grid) for each in observations)  # which MindSpore cannot load
        return (whole, replace(reading, uneven=True)) if is_chunked else (whole,)

    def _with_axes_of_zero(self, derived: Derived) -> Derived | Question:
        """Return a sharding that the axes in `zero` divide too, if there are any and they do not yet."""
        zero, sharding = self._document.zero, derived.sharding
        axes = self._rules.expanded(zero.axes) if zero else ()
        used = [axis for cuts in sharding.dims for axis in cuts if axis in axes]
        if not self._sizes.keys() >= {*axes}:
            return Question("meshes", ", ".join(axes))
        if zero is None or len(used) == len(axes) or zero.dim >= len(sharding.dims):
            return derived
        if used:
            return Question("zero", ", ".join(used))
        dims = tuple(cuts + axes if i == zero.dim else cuts for i, cuts in enumerate(sharding.dims))
        return replace(derived, sharding=replace(sharding, dims=dims))

    def _zeros(self, name: str, sharding: Sharding) -> tuple[_Zero, ...]:
        """Return what optimizer parallelism can do to a parameter in the target."""
        zero, tensor, owner = self._document.zero, self._tensors[name], self._owners[name]
        layout = sharding.layout(self._sizes)
        if zero is None or layout.uneven or any(n % k for n, k in zip(tensor.shape, layout.parts, strict=True)):
            return (_Zero(None, rule=True),)
        if zero.axes:
            axes = self._rules.expanded(zero.axes)
            return (_Zero(None, rule=not any(axis in axes for cuts in sharding.dims for axis in cuts)),)
        reached = msgspec.structs.replace(zero, threshold=0)
        is_orphan = owner not in self._tensors
        least, most = (tensor.size, MOST_ELEMENT_BYTES * tensor.size) if is_orphan else (self._tensors[owner].nbytes,) * 2
        if most < zero.threshold or optimizer_sharded(layout, tensor, reached) == layout:
            return (_Zero(None, rule=True),)
        flags = self._flags(name)
        off, on = _Zero(None, rule=False), _Zero(reached, rule=reached if is_orphan else True)
        if flags == {False}:
            return (off,)
        return (on,) if flags == {True} and least >= zero.threshold else (on, off)

    def _flags(self, name: str) -> set[bool]:
        """Return whether optimizer parallelism divides a parameter. Both values are a contradiction, and none is a question."""
        owner = self._owners[name]
        found = {flag for each in self._evidence if (flag := each.sharded.get(self._source_name(name))) is not None}
        found -= set() if owner in self._tensors else {False}  # the parameter can be too small, even if its state is not
        if self._is_unsharded is not None and self._is_unsharded(owner):
            return found | {False}
        return found or ({True} if self._is_unsharded is not None else set())

    def _stages(self, name: str) -> tuple[_Stages, ...]:
        """Return the pipeline stages that can hold a parameter in the target."""
        count, source = self._document.stages, self._evidence[0]
        everywhere = _Stages(tuple(range(count)), "all")
        if count == 1:
            return (_Stages((0,), None),)
        if (stage := self._rules.layer_stage(name)) is not None:
            return (_Stages((stage,), None),)
        before = source.stages.get(self._source_name(name), ())
        if self._document.pipeline is None and source.number == count:
            return (everywhere if len(before) == count else _Stages(before, before[0]),)
        ends = (_Stages((0,), "first"), _Stages((count - 1,), "last"))
        if source.number > 1 and not any(component.isdigit() for component in name.split(".")):
            if before in ((0,), (source.number - 1,)):
                return (ends[bool(before[0])],)
            if len(before) == source.number and (count == 2 or source.number > 2):  # not only first and last
                return (everywhere,)
        return (*ends, everywhere)

    def refused(self, question: Question, names: Sequence[str]) -> Refused:
        """Return a refusal of parameters, with rules that match them and no others."""
        owners = tuple(dict.fromkeys(self._owners[name] for name in names))
        replicated = tuple(axes for axes in question.replicated if self._dividing.isdisjoint(axes.split(", ")))
        question = replace(question, replicated=replicated)
        return question.refused(tuple(names), patterns_of(owners, {*self._owners.values()} - {*owners}), self._where)


def _mesh(observation: Observation) -> str:
    return ",".join(f"{axis}={size}" for axis, size in observation.axes)


def _rule(sharding: Sharding, zero: _Zero, stages: _Stages, sizes: Mapping[str, int]) -> LayoutRule:
    """Return the rule of a sharding, which matches nothing yet."""
    shard = {str(i): cuts[0] if len(cuts) == 1 else cuts for i, cuts in enumerate(sharding.dims) if cuts}
    order = () if sharding.order == tuple(sizes) else sharding.order
    return LayoutRule("*", shard, order, stages.rule, zero.rule, sharding.uneven or None)  # type: ignore[arg-type]  # the names of stages are plain text here
