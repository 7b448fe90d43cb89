"""Layout files: the sharding of a model over the named axes of a mesh, as frozen and validated data.

A layout file describes in some lines what strategy files list for each parameter. `reshard.mesh` applies it to the parameters of
a checkpoint. The operator also imports this module, because a resource can contain a layout.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from math import prod
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from reshard.errors import UsageError
from reshard.spec.execution import Strict
from reshard.structs import examined

if TYPE_CHECKING:
    from collections.abc import Iterator

API_VERSION: Final = "reshard.dev/layout-v1"
PIPELINE_AXIS = "pp"
MOST_RULES = 1024
MOST_LAYERS = 1 << 16
_MOST_PATTERNS = 4096
_SEPARATORS = "._-/:"  # ends of prefixes: without one, the prefix `m` would make a state of each name that starts with it
_MOST_AXES = 16
# As `reshard.layout.MAX_DEVICES_PER_STAGE`, which this module cannot import.
_MOST_RANKS = 1 << 20
# As in `reshard.strictyaml`, for documents from other parsers.
_MOST_LEVELS = 64

AxisName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z][A-Za-z0-9_]{0,62}$")]
Axes = AxisName | Annotated[tuple[AxisName, ...], msgspec.Meta(max_length=_MOST_AXES)]
# Text, because the order of axes has a meaning: an object of JSON has no order, and the API server sorts its keys.
Mesh = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}=[1-9][0-9]{0,6}(,[A-Za-z][A-Za-z0-9_]{0,62}=[1-9][0-9]{0,6}){0,15}$")
]
_CHANGE = "[A-Za-z][A-Za-z0-9_]{0,62}[=*/][1-9][0-9]{0,6}"
Scale = Annotated[str, msgspec.Meta(pattern=f"^{_CHANGE}(,{_CHANGE}){{0,{_MOST_AXES - 1}}}$")]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Patterns = Pattern | Annotated[tuple[Pattern, ...], msgspec.Meta(min_length=1, max_length=MOST_RULES)]
Dimension = Annotated[str, msgspec.Meta(pattern="^([0-9]|[12][0-9]|3[01])$")]
LayerCounts = (
    Annotated[int, msgspec.Meta(ge=0)] | Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=1024)]
)


def patterns_in(patterns: Patterns) -> tuple[str, ...]:
    """Return patterns as a tuple. A single one can be written without a list."""
    return (patterns,) if isinstance(patterns, str) else patterns


def axes_of(axes: Axes) -> tuple[str, ...]:
    """Return axes as a tuple. A single axis can be written without a list."""
    return (axes,) if isinstance(axes, str) else axes


def axes_and_sizes(mesh: Mesh) -> dict[str, int]:
    """Return the axes of a mesh and their sizes, outermost first.

    >>> axes_and_sizes("dp=2,tp=4")
    {'dp': 2, 'tp': 4}

    Raises:
        ValueError: an axis occurs twice.
    """
    pairs = [axis.split("=") for axis in mesh.split(",")]
    found = {name: int(size) for name, size in pairs}
    if len(found) < len(pairs):
        raise ValueError(f"Expected different names of axes, got `{mesh}`")
    return found


class Zero(Strict, frozen=True):
    """Sharding of parameters and of their optimizer states over the ranks that would hold equal slices.

    Without `axes`, the rule is that of MindSpore's optimizer parallelism: a parameter of at least `threshold` bytes is divided
    along dimension 0 among `size` of these ranks, if that divides the dimension. With `axes`, dimension `dim` of every parameter
    that has it is divided by these axes after all others, as FSDP does.

    Attributes:
        threshold: minimum size of a whole parameter in bytes.
        size: number of ranks among which a slice is divided. -1 means all that hold it.
        dim: dimension that `axes` divide.
        axes: axes of the mesh, major first.
    """

    threshold: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 64 << 10
    size: Annotated[int, msgspec.Meta(ge=-1, le=_MOST_RANKS)] = -1
    dim: Annotated[int, msgspec.Meta(ge=0, le=31)] = 0
    axes: Axes = ()

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        if self.size == 0:
            raise ValueError("Expected `size` -1 or greater than 0")
        if self.axes and (self.threshold, self.size) != (64 << 10, -1):
            raise ValueError("`threshold` and `size` do not apply if there are `axes`")
        if self.dim and not self.axes:
            raise ValueError("`dim` requires `axes`")


class LayoutRule(Strict, frozen=True):
    """The sharding of the parameters whose names match a pattern. The first rule that matches a name applies.

    Attributes:
        match: patterns of names. `*` matches any characters.
        shard: axes that divide each dimension, major first. The other dimensions are whole.
        order: axes of the mesh, outermost first, for the numbering of ranks. Empty means the order of the mesh.
        stage: pipeline stage that holds the parameters. Absent means the stage of the layer in the name.
        zero: whether `zero` of the document applies, or another one for these parameters.
        uneven: whether lengths that are not multiples of an axis are divided as `torch.chunk` does. Absent means the value of the
            document.
    """

    match: Patterns
    shard: dict[Dimension, Axes] = {}  # noqa: RUF012 - msgspec copies it
    order: Axes = ()
    stage: Literal["first", "last", "all"] | Annotated[int, msgspec.Meta(ge=0, le=_MOST_RANKS)] | None = None
    zero: bool | Zero = True
    uneven: bool | None = None

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of names."""
        return patterns_in(self.match)

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes or aliases that the rule names."""
        zero = self.zero.axes if isinstance(self.zero, Zero) else ()
        return (*chain.from_iterable(map(axes_of, self.shard.values())), *axes_of(self.order), *axes_of(zero))


class Pipeline(Strict, frozen=True):
    """The assignment of layers to pipeline stages.

    Attributes:
        layer: beginning of the name of a layer's parameters, with one `*` for the number of the layer, such as
            `model.layers.*.`.
        layers: number of layers. Stage i gets `layers // stages + offset[i]` of them.
        offset: difference of each stage from an even division, as in MindFormers. 0 means that all stages have equally many.
        counts: number of layers of each stage, instead of `layers` and `offset`. With interleaved stages, a list for each stage,
            with the number of layers of each of its chunks.
    """

    layer: Pattern
    layers: Annotated[int, msgspec.Meta(ge=1, le=MOST_LAYERS)] | None = None
    offset: Literal[0] | Annotated[tuple[int, ...], msgspec.Meta(max_length=1024)] = 0
    counts: Annotated[tuple[LayerCounts, ...], msgspec.Meta(max_length=1024)] = ()

    def __post_init__(self) -> None:
        """Refuse fields that contradict each other."""
        if self.layer.count("*") != 1:
            raise ValueError("Expected one `*` in `layer`")
        if (self.layers is None) == (not self.counts):
            raise ValueError("Expected either `layers` or `counts`")
        if self.counts and self.offset:
            raise ValueError("`offset` requires `layers`")
        if len({1 if isinstance(count, int) else len(count) for count in self.counts}) > 1:
            raise ValueError("Expected equally many chunks for each stage in `counts`")


class Derivation(Strict, frozen=True):
    """The layout of the source, with the axes of its mesh. Each parameter is divided by the same axes in the target.

    Attributes:
        source_mesh: axes of the source, in the form of `mesh`.
        source_expert_mesh: other axes of the ranks of one stage of the source, in the form of `expert_mesh`.
        experts: patterns of the parameters that axes of `source_expert_mesh` divide.
        replicated: axes that divide no parameter. Without it, an axis of size 1 in the source must not grow.
        unsharded: patterns of the parameters that MindSpore's optimizer parallelism does not divide in the target, although they
            are large enough. It divides all others, unless the source shows that it does not. Absent means that the source
            must show it.
    """

    source_mesh: Mesh
    source_expert_mesh: Mesh | None = None
    experts: Patterns = ()
    replicated: Axes = ()
    unsharded: Pattern | Annotated[tuple[Pattern, ...], msgspec.Meta(max_length=MOST_RULES)] | None = None

    def __post_init__(self) -> None:
        """Refuse axes that do not exist, and meshes that contradict each other."""
        known = axes_and_sizes(self.source_mesh)
        stages = known.pop(PIPELINE_AXIS, 1)
        experts = axes_and_sizes(self.source_expert_mesh) if self.source_expert_mesh else {}
        if bool(experts) != bool(self.experts):
            raise ValueError("Expected both `sourceExpertMesh` and `experts`, or neither - at `$.derive`")
        if experts and prod(experts.values()) != prod(known.values()):
            what = f"Expected axes of {prod(known.values())} ranks, those of one stage of `sourceMesh`"
            raise ValueError(f"{what} - at `$.derive.sourceExpertMesh`")
        if clash := sorted((known | {PIPELINE_AXIS: stages}).keys() & experts.keys()):
            raise ValueError(f"Expected another name than `{clash[0]}`, which has two meanings - at `$.derive.sourceExpertMesh`")
        if unknown := [axis for axis in axes_of(self.replicated) if axis not in known | experts]:
            raise ValueError(f"Expected an axis of `sourceMesh`, got `{unknown[0]}` - at `$.derive.replicated`")


class LayoutDocument(Strict, frozen=True):
    """The content of a layout file.

    Attributes:
        api_version: `reshard.dev/layout-v1`.
        mesh: axes of all ranks and their sizes, outermost first, such as `pp=2,dp=2,tp=4`. Ranks of a stage are numbered
            row-major. `pp` is the number of pipeline stages, wherever it stands: the ranks of a stage are consecutive.
        expert_mesh: other axes of the ranks of one stage, for rules that name them.
        aliases: names for lists of axes.
        state: names of optimizer states, with `*` for the name of the parameter, such as `adam_m.*`. Without `*`, it is a prefix.
            A state is divided like its parameter.
        rules: sharding of parameters by their names.
        pipeline: assignment of layers to pipeline stages. Required if there are several.
        zero: sharding over the ranks that would hold equal slices. Absent means none.
        uneven: whether lengths that are not multiples of an axis are divided as `torch.chunk` does, instead of being refused.
        derive: derivation of the sharding from the source, for parameters that no rule matches.
    """

    api_version: Literal["reshard.dev/layout-v1"]
    mesh: Mesh
    expert_mesh: Mesh | None = None
    aliases: Annotated[dict[AxisName, Axes], msgspec.Meta(max_length=MOST_RULES)] = {}  # noqa: RUF012 - msgspec copies it
    state: Annotated[tuple[Pattern, ...], msgspec.Meta(max_length=64)] = ()
    rules: Annotated[tuple[LayoutRule, ...], msgspec.Meta(max_length=MOST_RULES)] = ()
    pipeline: Pipeline | None = None
    zero: Zero | None = None
    uneven: bool = False
    derive: Derivation | None = None

    def __post_init__(self) -> None:
        """Refuse meshes and names that contradict each other."""
        for problem in (*_problems_of_mesh(self), *_problems_of_rules(self)):
            raise ValueError(problem)

    @property
    def axes(self) -> dict[str, int]:
        """Axes of one stage and their sizes, outermost first."""
        return {axis: size for axis, size in axes_and_sizes(self.mesh).items() if axis != PIPELINE_AXIS}

    @property
    def expert_axes(self) -> dict[str, int]:
        """Axes of `expert_mesh` and their sizes, outermost first."""
        return axes_and_sizes(self.expert_mesh) if self.expert_mesh else {}

    @property
    def stages(self) -> int:
        """Number of pipeline stages."""
        return axes_and_sizes(self.mesh).get(PIPELINE_AXIS, 1)

    @property
    def devices(self) -> int:
        """Number of ranks per stage."""
        return prod(self.axes.values())

    @property
    def ranks(self) -> int:
        """Number of ranks in all stages."""
        return self.devices * self.stages

    @property
    def numbers(self) -> range:
        """Ranks of all stages."""
        return range(self.ranks)

    @property
    def digest(self) -> str:
        """Digest that is equal for equal documents. The order of axes and rules has a meaning, so it remains."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


def _problems_of_mesh(document: LayoutDocument) -> Iterator[str]:
    """Yield what is wrong with the axes of a document."""
    if document.ranks > _MOST_RANKS:
        yield f"Expected at most {_MOST_RANKS} ranks - at `$.mesh`"
    if document.expert_axes and prod(document.expert_axes.values()) != document.devices:
        yield f"Expected axes of {document.devices} ranks, those of one stage of `mesh` - at `$.expertMesh`"
    known = {*document.axes, *document.expert_axes}
    if clash := sorted((document.axes.keys() & document.expert_axes.keys()) | (known & document.aliases.keys())):
        yield f"Expected another name than `{clash[0]}`, which has two meanings"
    if document.derive and document.derive.experts and not document.expert_axes:
        yield "Expected `expertMesh`, whose axes divide the parameters in `derive.experts`"
    if PIPELINE_AXIS in document.expert_axes or PIPELINE_AXIS in document.aliases:
        yield f"Expected another name than `{PIPELINE_AXIS}`, which is the number of pipeline stages in `mesh`"
    named = [(axis, f"$.aliases.{name}") for name, axes in document.aliases.items() for axis in axes_of(axes)]
    named += [
        (axis, f"$.rules[{i}]") for i, rule in enumerate(document.rules) for axis in rule.axes if axis not in document.aliases
    ]
    named += [(axis, "$.zero") for axis in axes_of(document.zero.axes if document.zero else ()) if axis not in document.aliases]
    for axis, where in named:
        if axis not in known:
            yield f"Expected an axis of the mesh, got `{axis}` - at `{where}`"


def _problems_of_rules(document: LayoutDocument) -> Iterator[str]:
    """Yield what is wrong with the patterns and rules of a document."""
    if any(state.count("*") > 1 for state in document.state):
        yield "Expected at most one `*` - at `$.state[...]`"
    if unclear := [state for state in document.state if "*" not in state and state[-1] not in _SEPARATORS]:
        yield f"Expected a `*` in `{unclear[0]}`, or a separator such as `.` at its end - at `$.state[...]`"
    if not (document.rules or document.derive):
        yield "Expected `rules` or `derive`"
    if sum(len(rule.patterns) for rule in document.rules) > _MOST_PATTERNS:
        yield f"Expected at most {_MOST_PATTERNS} patterns in all rules - at `$.rules`"
    if document.uneven and document.zero is not None and not document.zero.axes:
        yield "Expected `axes` in `zero`: optimizer parallelism of MindSpore cannot divide uneven slices"


def parse_layout(document: object, where: str) -> LayoutDocument:
    """Return the layout in a parsed YAML or JSON document.

    Raises:
        UsageError: a field is invalid. The message names it.
    """
    fix = "correct the field; docs/layout-files.md describes it"
    if isinstance(document, dict) and isinstance(document.get("mesh"), dict):
        fix = "write the axes as text, such as `mesh: dp=2,tp=4`, because a mapping has no order"
    try:
        found = msgspec.convert(with_text_keys(document), examined(LayoutDocument))
        _ = found.digest  # names that are not encodable as UTF-8 cannot be recorded
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise UsageError("InvalidLayoutFile", str(error).replace("`$.", "`"), where=where, fix=fix) from error
    return found


def with_text_keys(value: object, levels: int = _MOST_LEVELS) -> object:
    """Return a document with numbers as text where they are keys: YAML permits `shard: {0: tp}`, but JSON does not.

    Args:
        value: document.
        levels: maximum depth of its nesting.

    Raises:
        msgspec.ValidationError: two keys are equal as text, or the document is nested more deeply.
    """
    if isinstance(value, dict | list) and not levels:
        raise msgspec.ValidationError(f"Expected at most {_MOST_LEVELS} levels of nesting")
    if isinstance(value, dict):
        found = {str(key) if type(key) is int else key: with_text_keys(inner, levels - 1) for key, inner in value.items()}
        if len(found) < len(value):
            raise msgspec.ValidationError(f"Expected different keys, got {', '.join(map(repr, value))}"[:200])
        return found
    return [with_text_keys(inner, levels - 1) for inner in value] if isinstance(value, list) else value
