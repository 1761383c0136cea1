"""A bias that few columns of a linear layer have, added where they have become heads."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Array,
    Builder,
    constant,
    consumers,
    dtype_of,
    of_type,
    only_consumer,
    producer,
    set_constant,
    sizes,
)
from vitdeploy.graph.layout import MOVERS
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import Projection, bias_at


class BiasAfterHeads(GraphPass):
    """The bias of queries as [1, h, 1, d] behind the Transpose into heads.

    A linear layer whose bias is zero for keys and values hands them to the attention as they are, without a kernel
    that adds nothing and copies them. Applies to operands of products of computed matrices, and of nothing else.
    """

    name: ClassVar[str] = "bias_after_heads"

    def applies(self) -> bool:
        """Where a bias before the heads costs the target a copy."""
        return self.target.projection_bias == "heads"

    def rewrite(self, model: ir.Model) -> list[str]:
        """One product after the other."""
        changes = []
        for product in of_type(model.graph, "MatMul"):
            for operand in dict.fromkeys(product.inputs):
                found = None if operand is None else _bias(operand)
                if operand is None or found is None:
                    continue
                projection, columns, moved = found
                _add(model.graph, operand, moved)
                projection.clear_bias(columns)
                changes.append(f"{projection.linear.name}: its bias is added to the heads before {product.name}")
        return changes


def _bias(operand: ir.Value) -> tuple[Projection, slice, Array] | None:
    """The layer and the columns that make an operand of products alone, and their bias as it reaches the operand."""
    shape, users = sizes(operand), consumers(operand)
    if not shape or len(shape) < 3 or operand.is_graph_output() or any(user.op_type != "MatMul" for user in users):
        return None
    if any(constant(one) is not None for user in users for one in user.inputs):
        return None
    added, heads = _added(operand)
    mover = producer(heads)
    if mover is None or mover.op_type not in MOVERS or (added is not None and only_consumer(heads) is not added):
        return None
    found = bias_at(heads)
    return None if found is None else (*found[:2], _reduced(found[2]))


def _added(operand: ir.Value) -> tuple[ir.Node | None, ir.Value]:
    """The Add of a bias of the heads that makes `operand`, if one does, and the heads before it."""
    node = producer(operand, "Add")
    heads = None if node is None or constant(node.inputs[1]) is None else node.inputs[0]
    return (node, heads) if heads is not None and sizes(heads) == sizes(operand) else (None, operand)


def _reduced(array: Array) -> Array:
    """`array` with length 1 on each axis along which it does not vary."""
    for axis in range(array.ndim):
        first = np.take(array, [0], axis)
        if np.array_equal(np.broadcast_to(first, array.shape), array):
            array = first
    return array


def _add(graph: ir.Graph, operand: ir.Value, bias: Array) -> None:
    """Add `bias` to `operand` for all its consumers, in the Add that makes it if there is one."""
    added, _ = _added(operand)
    old = None if added is None else constant(added.inputs[1])
    if added is not None and old is not None:
        set_constant(added, 1, (old.astype(np.float64) + bias).astype(old.dtype), "head_bias")
        return
    users = consumers(operand)
    add = Builder(graph, users[0])
    summed = add.op("Add", [operand, add.constant(bias.astype(dtype_of(operand).numpy()), "head_bias")], operand.shape)
    for user in users:
        for position, value in enumerate(user.inputs):
            if value is operand:
                user.replace_input_with(position, summed)
