"""A batch of one has no axis where the operators can do without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, make_reshape, need, producer, set_constant, shape_of, static_shape
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.groups import Groups
from vitdeploy.passes.hoist_broadcast import ELEMENTWISE, LOGICAL

_BROADCASTING = ELEMENTWISE | LOGICAL | {"MatMul"}
_RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
# Operators along one axis, and the axis they take where they state none.
_ALONG_AXIS = {"Concat": 0, "LayerNormalization": -1, "LogSoftmax": -1, "Softmax": -1, "Split": 0}
_REDUCTIONS = frozenset({"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})


class DropBatchAxis(GraphPass):
    """Tokens [1, N, C] become [N, C] and heads [1, h, N, d] become [h, N, d], where the batch is 1 for good.

    Linear layers are then plain GEMMs without a Reshape around each, and on rank 3 ONNX Runtime takes the Transposes of
    an attention into its products. The values that operators bind to each other lose the axis together or not at all:
    all do where a matrix product is among them and no operator of theirs, such as a convolution, needs the axis.
    A Reshape binds nothing; between the two kinds it just names another shape.
    """

    name: ClassVar[str] = "drop_batch_axis"

    def applies(self) -> bool:
        """Where products of lower rank are faster."""
        return self.target.drops_batch

    def rewrite(self, model: ir.Model) -> list[str]:
        """Find the values that are bound to each other, choose, and edit every operator among the chosen."""
        changes = []
        while dropped := _choose(model.graph):  # the one head of an attention may come first now
            for node in model.graph:
                _edit(node, dropped)
            for value in dropped:
                value.shape = ir.Shape(shape_of(value)[1:])
            products = sum(producer(value, "MatMul") is not None for value in dropped)
            changes.append(f"{len(dropped)} values lost a leading axis of 1, {products} of them matrix products")
        return changes


def _choose(graph: ir.Graph) -> set[ir.Value]:
    """The values to drop the leading axis of."""
    groups = Groups()
    kept = [*graph.inputs, *graph.outputs]
    products = []
    for node in graph:
        mine = [value for value in (*node.inputs, *node.outputs) if value is not None and _has_axis(value)]
        bound = _bound(node)
        if bound is None:
            kept += mine
        else:
            groups.unite(bound)
        if node.op_type == "MatMul" and _has_axis(node.outputs[0]):
            products.append(node.outputs[0])
    refused = {groups.of(value) for value in kept}
    wanted = {groups.of(value) for value in products} - refused
    return {value for node in graph for value in node.outputs if _has_axis(value) and groups.of(value) in wanted}


def _has_axis(value: ir.Value) -> bool:
    """Whether `value` is computed, of rank 3 or more, and 1 along its leading axis."""
    shape = static_shape(value)
    return shape is not None and len(shape) > 2 and shape[0] == 1 and constant(value) is None


def _bound(node: ir.Node) -> list[ir.Value] | None:
    """The values that lose the axis together if `node` is to do without; None where it cannot."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and _has_axis(value)]
    if not values:
        return []
    first, out = node.inputs[0], node.outputs[0]
    shape = static_shape(out)
    if shape is None or 0 in shape or first is None:
        return None
    if node.op_type in _RESHAPES:
        return []
    rank = len(shape)
    if node.op_type in _BROADCASTING:
        # An operand of lower rank is aligned with the other axes either way.
        operands = [static_shape(value) for value in node.inputs if value is not None]
        if (
            not _has_axis(out)
            or None in operands
            or (node.op_type == "MatMul" and any(len(s or ()) < 2 for s in operands))
        ):
            return None
        return [value for value in values if len(value.shape or ()) == rank]
    if node.op_type == "Concat":
        return values if _has_axis(out) and _axis(node) != 0 else None
    if not _has_axis(first):
        return None
    if node.op_type == "Transpose":
        return values if attribute(node, "perm", [-1])[0] == 0 else None
    if node.op_type in _ALONG_AXIS:
        return values if _axis(node) != 0 and all(map(_has_axis, node.outputs)) else None
    if node.op_type in _REDUCTIONS:
        axes = _axes(node)
        to_rows = rank == 2 and axes == [1]  # [1, N, C] -> [1, C], which keepdims gives of [N, C] too
        return values if axes and 0 not in axes and (_has_axis(out) or to_rows) else None
    return None


def _axis(node: ir.Node) -> int:
    rank = len(node.outputs[0].shape or ())
    return int(attribute(node, "axis", _ALONG_AXIS[node.op_type])) % rank


def _axes(node: ir.Node) -> list[int]:
    """The axes of a reduction; none where they are not constant."""
    first = node.inputs[0]
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "axes")
    rank = 0 if first is None or first.shape is None else len(first.shape)
    return [] if given is None else [int(axis) % rank for axis in given]


def _edit(node: ir.Node, dropped: set[ir.Value]) -> None:
    """Let `node` take and give what is left; the shapes are still those from before."""
    out = node.outputs[0]
    if not any(value in dropped for value in (*node.inputs, *node.outputs)):
        return
    if node.op_type in _RESHAPES:
        shape = need(static_shape(out), f"the shape of {out.name}")
        make_reshape(node, shape[1:] if out in dropped else shape)
    elif node.op_type in _BROADCASTING or node.op_type == "Concat":
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if array is not None and array.ndim == len(out.shape or ()):
                set_constant(node, index, array[0], "constant")
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        node.attributes["perm"] = ir.AttrInt64s("perm", [axis - 1 for axis in perm[1:]])
    elif node.op_type in _ALONG_AXIS and attribute(node, "axis", -1) > 0:
        node.attributes["axis"] = ir.AttrInt64("axis", attribute(node, "axis") - 1)
    elif node.op_type in _REDUCTIONS:
        _reduce(node, [axis - 1 for axis in _axes(node)], keepdims=out not in dropped)


def _reduce(node: ir.Node, axes: Sequence[int], *, keepdims: bool) -> None:
    if len(node.inputs) > 1:
        set_constant(node, 1, np.array(axes, dtype=np.int64), "axes")
    else:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    if keepdims:  # the rows of a matrix become one row
        node.attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
