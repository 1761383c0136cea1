"""The bias of the values of an attention, behind the attention and in the bias of the next linear layer."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.attention import Attention, find_attentions
from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    consumers,
    dtype_of,
    of_type,
    only_consumer,
    replace,
    set_constant,
    sizes,
)
from vitdeploy.graph.layout import MOVERS, Movement, after
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import Projection, bias_at, find_projection


class FoldValueBias(GraphPass):
    """P (v + 1 b^T) = P v + 1 b^T, because each row of a softmax P adds up to 1.

    Behind the product the bias goes on to the next linear layer, (x + b) W + c = x W + (b W + c), through changes of
    layout and sums; in a difference of two attentions to values of one bias it is gone. Where no linear layer with a
    bias follows, it is added to the result of the attention.
    """

    name: ClassVar[str] = "fold_value_bias"

    def applies(self) -> bool:
        """Where a bias before the heads costs the target a copy."""
        return self.target.projection_bias == "heads"

    def rewrite(self, model: ir.Model) -> list[str]:
        """All biases behind their attentions first, so that differences see both of them."""
        changes, sums = [], []
        for attention in find_attentions(model.graph):
            found = _bias_of_values(attention)
            if found is not None:
                projection, columns, row = found
                sums.append(_behind(model.graph, attention.second, row))
                projection.clear_bias(columns)
                changes.append(f"{projection.linear.name}: the bias of the values goes behind {attention.second.name}")
        for node in of_type(model.graph, "Sub"):
            if _cancels(node, sums):
                changes.append(f"{node.name}: the same bias on both sides")
        for node in sums:
            layer = _absorb(node)
            if layer is not None:
                changes.append(f"{layer}: its bias takes what {node.name} added")
        return changes


def _bias_of_values(attention: Attention) -> tuple[Projection, slice, Array] | None:
    """The linear layer of the values, their columns, and the row [..., 1, e] that its bias adds to each value."""
    product, weights = attention.second, attention.softmax.outputs[0]
    axis, rank = attribute(attention.softmax, "axis", -1), len(sizes(weights) or ())
    if attention.after or product.inputs[0] is not weights or axis not in (-1, rank - 1):
        return None
    values = product.inputs[1]
    found = bias_at(values) if values is not None and only_consumer(values) is product else None
    if found is None or found[2].ndim < 2 or not np.all(found[2] == found[2][..., :1, :]):
        return None
    projection, columns, moved = found
    return projection, columns, moved[..., :1, :]


def _behind(graph: ir.Graph, product: ir.Node, row: Array) -> ir.Node:
    """The Add of `row` to the result of `product`."""
    result = product.outputs[0]
    users = consumers(result)
    add = Builder(graph, users[0])
    added = add.op("Add", [result, add.constant(row.astype(dtype_of(result).numpy()), "value_bias")], result.shape)
    node = add.made[-1]
    ir.convenience.replace_all_uses_with(result, added)
    node.replace_input_with(0, result)
    graph.remove(node)
    graph.insert_after(product, node)
    return node


def _cancels(node: ir.Node, sums: list[ir.Node]) -> bool:
    """Let a difference of two of the sums be that of their first operands, where both add the same."""
    found = [value.producer() if value is not None else None for value in node.inputs]
    left, right = (next((one for one in sums if one is other), None) for other in found)
    if left is None or right is None or left is right:
        return False
    rows = [constant(one.inputs[1]) for one in (left, right)]
    if rows[0] is None or rows[1] is None or not np.array_equal(rows[0], rows[1]):
        return False
    for position, one in enumerate((left, right)):
        node.replace_input_with(position, one.inputs[0])
    return True


def _absorb(node: ir.Node) -> str | None:
    """Put what the Add `node` adds into the bias of the linear layer that its result goes to; the layer's name."""
    value, row = node.outputs[0], constant(node.inputs[1])
    following = only_consumer(value)
    while row is not None and following is not None:
        shape = sizes(following.outputs[0])
        if following.op_type in MOVERS and shape is not None and value is following.inputs[0]:
            movement = after(following, Movement.still(shape))
            row = None if movement is None else movement.move(row)
        elif not _adds_computed(following) or shape != sizes(value):
            break
        value = following.outputs[0]
        following = only_consumer(value)
    layer = None if following is None else _layer(following, value)
    if row is None or layer is None or layer.bias is None or row.size != row.shape[-1]:
        return None
    linear, old = layer.linear, constant(layer.bias[0].inputs[layer.bias[1]])
    weight = layer.weight.T if attribute(linear, "transB", 0) else layer.weight
    if old is None:
        return None
    more = np.broadcast_to(row.reshape(-1), weight.shape[:1]).astype(np.float64) @ weight
    set_constant(*layer.bias, (old.astype(np.float64) + more).astype(old.dtype), "bias")
    summed = node.inputs[0]
    if summed is not None:
        replace(node, summed)
    return str(linear.name)


def _adds_computed(node: ir.Node) -> bool:
    """Whether `node` is the sum of two different computed values."""
    first, second = node.inputs if node.op_type == "Add" else (None, None)
    return first is not second and constant(first) is None and constant(second) is None


def _layer(node: ir.Node, value: ir.Value) -> Projection | None:
    """The linear layer that begins at `node` with `value`, if it is a plain one."""
    if node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is not value or node.inputs[1] is value:
        return None
    last = node if node.op_type == "Gemm" else only_consumer(node.outputs[0], "Add")
    found = None if last is None else find_projection(last.outputs[0])
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(node, "transA", 0)
    return found if found is not None and found.linear is node and plain else None
