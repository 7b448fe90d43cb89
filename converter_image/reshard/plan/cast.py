"""Choose the types to which parameters are cast. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from reshard.plan.rename import NamePattern
from reshard.spec.request import FloatType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reshard.plan.model import Model, Parameter
    from reshard.spec.request import CastRule

_FLOATS = get_args(FloatType)
# The types that have all values of another one.
_WIDER = {"BFloat16": ("Float32", "Float64"), "Float16": ("Float32", "Float64"), "Float32": ("Float64",)}


def with_casts(model: Model, rules: Sequence[CastRule]) -> Model:
    """Return a model in which rules cast parameters of floating-point types. The first rule whose pattern matches applies."""
    if not rules:
        return model
    compiled = [(NamePattern(rule.pattern), rule.to) for rule in rules]

    def cast(parameter: Parameter) -> Parameter:
        to = next((to for pattern, to in compiled if pattern.matches(parameter.source_name)), None)
        return parameter if to is None or to == parameter.dtype else replace(parameter, cast=to)

    return replace(model, parameters=tuple(cast(p) if p.dtype in _FLOATS else p for p in model.parameters))


def rounded(model: Model) -> tuple[str, ...]:
    """Return the names of the parameters that are cast to a type without some of the values of their own."""
    lossy = (p.name for p in model.parameters if p.cast is not None and p.cast not in _WIDER.get(p.dtype, ()))
    return tuple(dict.fromkeys(lossy))


def castable(model: Model) -> tuple[str, ...]:
    """Return the source names of the parameters of floating-point types."""
    return tuple(p.source_name for p in model.parameters if p.dtype in _FLOATS)
