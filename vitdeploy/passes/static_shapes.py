"""Shapes that are known become constants."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    bypass,
    constant,
    consumers,
    inherit_name,
    input_of,
    of_type,
    producer,
    remove_unused,
    reshape_target,
    sizes,
)
from vitdeploy.graph.names import names_in
from vitdeploy.passes.base import GraphPass


class StaticShapes(GraphPass):
    """Replaces computed shapes by constants, and removes what changes neither shape nor type.

    A captured graph computes every target shape from the free batch, although all else in it is known. A Reshape with
    -1 for the batch, or an Expand with 1 for it, says the same as a constant. Transposed weights are stored transposed
    under their own names: general constant folding would name them after the operator.
    """

    name: ClassVar[str] = "static_shapes"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Apply the rules below to each node in topological order, again for as long as annotations come to light."""
        lifted = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        changes = ["graph: Constant nodes became initializers"] if lifted.modified else []
        annotated, taken = True, names_in(model.graph)
        while annotated:
            for node in of_type(model.graph, *_RULES):
                name, add = node.name, Builder(model.graph, node, taken=taken)
                line = next(filter(None, (rule(add, node) for rule in _RULES[node.op_type])), None)
                changes += [f"{name}: {line}"] if line else []
            annotated = _annotate(model)
            changes += ["graph: shapes inferred"] if annotated else []
        return changes


def _annotate(model: ir.Model) -> bool:
    """Infer the shapes and types that the exporter left out; says whether there were any."""
    remove_unused(model)
    if any(node.op_type in ("SplitToSequence", "SequenceConstruct") for node in model.graph):
        return False  # shape inference of onnx-ir would state the type of a tensor for a sequence
    before = _unannotated(model)
    if before:
        ShapeInferencePass()(model)
    return _unannotated(model) < before


def _unannotated(model: ir.Model) -> int:
    return sum(value.shape is None or value.type is None for node in model.graph for value in node.outputs)


def _no_operation(add: Builder, node: ir.Node) -> str | None:
    """Identity, and Reshape or Expand to the shape that is there already."""
    shape = sizes(node.inputs[0])
    same = shape is not None and shape == sizes(node.outputs[0])
    return "removed, no operation" if (same or node.op_type == "Identity") and bypass(node, node.inputs[0]) else None


def _same_type(add: Builder, node: ir.Node) -> str | None:
    """Cast and CastLike to the type that is there already; CastLike to a known type becomes Cast."""
    source = input_of(node, 0)
    like = node.inputs[1].dtype if node.op_type == "CastLike" and node.inputs[1] is not None else None
    wanted = like if node.op_type == "CastLike" else ir.DataType(attribute(node, "to"))
    if wanted is None or source.dtype is None:
        return None
    if source.dtype == wanted:
        return "removed, no operation" if bypass(node, source) else None
    if node.op_type == "Cast":
        return None
    cast = add.op("Cast", [source], node.outputs[0].shape, dtype=wanted, to=int(wanted))
    return "became Cast" if bypass(node, cast) else None


def _constant_reshape(add: Builder, node: ir.Node) -> str | None:
    shape = sizes(node.outputs[0])
    target = None if shape is None else reshape_target(shape)
    if target is None or (_equal(constant(node.inputs[1]), target) and not attribute(node, "allowzero", 0)):
        return None
    node.replace_input_with(1, add.constant(target, "shape"))
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
    return f"to the constant shape {target.tolist()}"


def _constant_expand(add: Builder, node: ir.Node) -> str | None:
    """A free dimension that the input has already is left alone by a 1."""
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    if before is None or after is None:
        return None
    padded = (1,) * (len(after) - len(before)) + before
    target = [new if isinstance(new, int) else 1 for new in after]
    kept = all(old == new for old, new in zip(padded, after, strict=True) if isinstance(new, str))
    if not kept or _equal(constant(node.inputs[1]), np.array(target)):
        return None
    node.replace_input_with(1, add.constant(np.array(target, dtype=np.int64), "shape"))
    return f"to the constant shape {target}"


def _constant_resize(add: Builder, node: ir.Node) -> str | None:
    """Computed output sizes become the scales that a runtime derives from them."""
    before, after = sizes(node.inputs[0]), sizes(node.outputs[0])
    by_size = len(node.inputs) == 4 and node.inputs[3] is not None
    if not by_size or constant(node.inputs[3]) is not None or before is None or after is None:
        return None
    if attribute(node, "axes") is not None or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    pairs = list(zip(before, after, strict=True))
    if any(isinstance(old, str) or isinstance(new, str) for old, new in pairs if old != new):
        return None
    ratios = [1.0 if old == new else new / old for old, new in pairs]  # type: ignore[operator]
    scales = np.array(ratios, dtype=np.float32)
    reached = [old if old == new else int(np.float32(old) * s) for (old, new), s in zip(pairs, scales, strict=True)]
    if reached != list(after):  # rounding would lose a pixel
        return None
    node.resize_inputs(3)
    node.replace_input_with(2, add.constant(scales, "scales"))
    return "by constant scales"


def _known_dimensions(add: Builder, node: ir.Node) -> str | None:
    """Shape, or Gather and Slice of one, where only known dimensions are asked for."""
    shape_node = node if node.op_type == "Shape" else producer(node.inputs[0], "Shape")
    shape = None if shape_node is None or shape_node.inputs[0] is None else shape_node.inputs[0].shape
    if shape_node is None or shape is None:
        return None
    first, last = attribute(shape_node, "start", 0), attribute(shape_node, "end", len(shape))
    asked: Array = np.array(list(shape)[first:last], dtype=object)
    if node.op_type == "Gather":
        indices = constant(node.inputs[1])
        if indices is None:
            return None
        asked = np.asarray(asked[indices], dtype=object)
    elif node.op_type == "Slice":
        bounds = [constant(value) for value in node.inputs[1:]]
        if any(bound is None or bound.size != 1 for bound in bounds):
            return None
        start, stop, *axis_and_step = (int(bound.item()) for bound in bounds if bound is not None)
        asked = asked[start : stop : axis_and_step[1] if len(axis_and_step) == 2 else 1]
    if not all(isinstance(dim, int) for dim in asked.flat):
        return None
    known = add.constant(asked.astype(np.int64), "dimensions")
    return f"became the constant {asked.tolist()}" if bypass(node, known) else None


def _constant_transpose(add: Builder, node: ir.Node) -> str | None:
    """The transposed weight of a linear layer is one constant for all its consumers, under the weight's own name."""
    weight = node.inputs[0]
    array = constant(weight)
    if weight is None or array is None or not weight.is_initializer():
        return None
    perm = attribute(node, "perm")
    moved = add.constant(array.transpose(perm), "weight")
    alike = [other for other in consumers(weight) if other.op_type == "Transpose" and attribute(other, "perm") == perm]
    replaced = [bypass(other, moved) for other in alike]
    if not any(replaced):
        return None
    inherit_name(moved, weight)
    return f"folded into {moved.name}"


def _split(add: Builder, node: ir.Node) -> str | None:
    """SplitToSequence whose parts are all taken by constant position becomes Split."""
    source, axis = input_of(node, 0), attribute(node, "axis", 0)
    shape = sizes(source)
    chunk = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    takers = [use.node for use in node.outputs[0].uses()]
    length = None if shape is None else shape[axis]
    if chunk is None or shape is None or not isinstance(length, int) or node.outputs[0].is_graph_output():
        return None
    found = [constant(taker.inputs[1]) if taker.op_type == "SequenceAt" else None for taker in takers]
    positions = [int(position) for position in found if position is not None]
    if len(positions) < len(takers):
        return None
    parts = chunk.tolist() if chunk.ndim else [min(int(chunk), length - at) for at in range(0, length, int(chunk))]
    split = add.constant(np.array(parts, dtype=np.int64), "split")
    name = add.unused((node.name or "Split").replace("SplitToSequence", "Split"))
    new = ir.node("Split", [source, split], attributes={"axis": axis}, num_outputs=len(parts), name=name)
    for place, (out, part) in enumerate(zip(new.outputs, parts, strict=True)):
        out.name = add.unused(f"{new.name}.out{place or ''}")
        out.type = source.type
        out.shape = ir.Shape([part if index == axis % len(shape) else dim for index, dim in enumerate(shape)])
    add.graph.insert_before(node, new)
    for taker, position in zip(takers, positions, strict=True):
        bypass(taker, new.outputs[position])
    return f"became Split into {parts}"


def _equal(found: Array | None, wanted: Array) -> bool:
    return found is not None and np.array_equal(found, wanted)


_RULES = {
    "Identity": (_no_operation,),
    "Reshape": (_no_operation, _constant_reshape),
    "Expand": (_no_operation, _constant_expand),
    "Cast": (_same_type,),
    "CastLike": (_same_type,),
    "Shape": (_known_dimensions,),
    "Gather": (_known_dimensions,),
    "Slice": (_known_dimensions,),
    "Resize": (_constant_resize,),
    "SplitToSequence": (_split,),
    "Transpose": (_constant_transpose,),
}
