"""The layout of a source with other sizes of axes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from reshard.errors import RequestError, UsageError
from reshard.spec.layout import PIPELINE_AXIS, LayoutDocument, LayoutRule, axes_and_sizes
from reshard.structs import examined

if TYPE_CHECKING:
    from reshard.model import Checkpoint
    from reshard.spec.layout import Mesh

_FIX = "use changes such as dp=2, tp/2 or dp*2,tp/2"


@dataclass(frozen=True, slots=True)
class Scale:
    """A target with the layout of its source and other sizes of axes.

    Attributes:
        text: changes of the sizes of axes, such as `dp=2`, `tp/2` or `dp*2,tp/2`.
    """

    text: str

    @property
    def digest(self) -> str:
        """Digest that is equal for equal changes."""
        return hashlib.sha256(f"scale {self.text}".encode()).hexdigest()


def scaled(document: LayoutDocument, scale: Scale) -> LayoutDocument:
    """Return a layout with other sizes of axes.

    If its shardings were derived, they are derived again, from the checkpoint that has this layout.

    Raises:
        UsageError: an axis does not exist, its size is not divisible, `expert_mesh` no longer has the same number of ranks, or a
            field applies to the old number of pipeline stages.
    """
    meshes: dict[str, Mesh | None] = {"mesh": document.mesh, "expert_mesh": document.expert_mesh}
    for change in scale.text.split(","):
        axis, operator, number = _parsed(change)
        field, sizes = next(
            ((field, found) for field, mesh in meshes.items() if mesh and axis in (found := axes_and_sizes(mesh))), ("", {})
        )
        if not field:
            raise UsageError(
                "InvalidScale",
                f"the mesh of the source, {document.mesh}, has no axis {axis}",
                where="scale",
                fix=_FIX,
            )
        size = {"=": number, "*": sizes[axis] * number, "/": sizes[axis] // number}[operator]
        if operator == "/" and sizes[axis] % number:
            what = f"{number} does not divide the size {sizes[axis]} of {axis}"
            raise UsageError("InvalidScale", what, where="scale", fix=_FIX)
        meshes[field] = ",".join(f"{name}={size if name == axis else old}" for name, old in sizes.items())
    stages = axes_and_sizes(meshes["mesh"] or "").get(PIPELINE_AXIS, 1)
    if stages != document.stages and (stated := _stated_stages(document)):
        raise UsageError(
            "InvalidScale",
            f"{stated} of the layout is that of {document.stages} pipeline stages, not of {stages}",
            where="scale",
            fix="use a layout file for the target (--target-strategy, spec.target.layout) instead of the scale",
        )
    derive = document.derive and msgspec.structs.replace(
        document.derive, source_mesh=document.mesh, source_expert_mesh=document.expert_mesh if document.derive.experts else None
    )
    try:
        return msgspec.convert(
            msgspec.to_builtins(msgspec.structs.replace(document, derive=derive, **meshes)), examined(LayoutDocument)
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError("InvalidScale", f"the result is invalid: {error}", where="scale", fix=_FIX) from error


def _stated_stages(document: LayoutDocument) -> str:
    """Return the field that depends on the number of pipeline stages, or an empty text if there is none."""
    numbered = next((rule for rule in document.rules if isinstance(rule.stage, int)), None)
    if numbered is not None:
        return f"`stage: {numbered.stage}` in the rule of {numbered.patterns[0]}"
    if document.pipeline is None:
        return ""
    return "`pipeline.counts`" if document.pipeline.counts else "`pipeline.offset`" if document.pipeline.offset else ""


def _parsed(change: str) -> tuple[str, str, int]:
    axis, operator, number = re.split("([=*/])", change)
    return axis, operator, int(number)


def layout_of_chunks(checkpoint: Checkpoint, scale: Scale, where: str) -> LayoutDocument:
    """Return the layout of a checkpoint in which one axis divides dimension 0 of tensors into chunks, as FSDP does.

    The axis has the name in the scale. The number of ranks that wrote the chunks need not be known: if there are fewer chunks,
    as many ranks as chunks would have written the same ones. Tensors that the checkpoint holds whole, although they could be
    divided, stay whole.

    Raises:
        RequestError: the checkpoint has another layout, or the scale depends on the sizes of its axes.
    """
    from reshard.mesh.readings import chunked  # noqa: PLC0415 - files of ranks, which start faster, have no tiles
    from reshard.model.tiling import Grid  # noqa: PLC0415 - as above

    axis, operator, _ = _parsed(scale.text.split(",")[0])
    if operator != "=" or "," in scale.text:
        raise RequestError(
            "MeshUnknown",
            "neither a layout file nor the metadata of the source describes its axes, so they cannot be multiplied or divided",
            where=where,
            fix=f"set the number of target ranks instead, such as {axis}=2; or use a layout file for the target"
            " (--target-strategy, spec.target.layout)",
        )
    tilings = (tensor.shards.tiling for tensor in checkpoint.tensors if tensor.shape)
    most = max((tiling.parts[0] for tiling in tilings if isinstance(tiling, Grid)), default=1)
    whole = []
    for tensor in checkpoint.tensors:
        tiling = tensor.shards.tiling
        if not tensor.shape or len(tiling) <= 1:
            whole += [tensor.name] if tensor.shape and tensor.shape[0] > 1 else []
            continue
        if (
            not isinstance(tiling, Grid)
            or set(tiling.parts[1:]) - {1}
            or tuple(tiling.cuts[0]) != chunked(tensor.shape[0], (most,), most)
        ):
            raise RequestError(
                "MeshUnknown",
                f"the slices of {tensor.name} are not {most} chunks of dimension 0, and the metadata does not describe a mesh",
                where=where,
                fix="use a layout file for the target (--target-strategy, spec.target.layout) instead of the scale",
            )
    rules = (*([LayoutRule(tuple(whole))] if whole else ()), LayoutRule("*", {"0": axis}))
    return LayoutDocument("reshard.dev/layout-v1", f"{axis}={most}", rules=rules, uneven=True)
