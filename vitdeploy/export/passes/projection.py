"""Linear layers with constant weights, whose columns can be edited: y = x W + b over the last axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.export.graph import Array, attribute, constant, only_user, producer, set_constant


@dataclass(frozen=True)
class Projection:
    """A MatMul or Gemm with constant weights, and the Add of a constant bias behind a MatMul.

    linear  the MatMul or Gemm
    bias    the node and the input position of the bias; None where there is none
    width   columns, i.e. length of the last axis of the output
    """

    linear: ir.Node
    bias: tuple[ir.Node, int] | None
    width: int

    def map_columns(self, edit: Callable[[Array], Array]) -> str:
        """Put edit(W [K, N]) and edit(b [N]) in place of W and b, in this layer only; returns the new weight's name.

        `edit` acts on the last axis. The old initializers stay as they are for whoever else reads them.
        """
        weight = constant(self.linear.inputs[1])
        assert weight is not None
        transposed = bool(attribute(self.linear, "transB", 0))
        edited = edit(weight.T).T if transposed else edit(weight)
        set_constant(self.linear, 1, edited.astype(weight.dtype), "weight")
        if self.bias is not None:
            node, position = self.bias
            bias = constant(node.inputs[position])
            assert bias is not None
            full = np.broadcast_to(bias.reshape(-1), (self.width,))
            set_constant(node, position, edit(full).astype(bias.dtype), "bias")
        new = self.linear.inputs[1]
        assert new is not None
        return str(new.name)


def find_projection(value: ir.Value) -> Projection | None:
    """The linear layer that makes `value`, if it is one and nobody else reads the product before its bias."""
    node = producer(value)
    if node is None:
        return None
    if node.op_type == "Gemm":
        return _gemm(node)
    if node.op_type == "MatMul":
        return _matmul(node)
    if node.op_type == "Add":
        for position in (0, 1):
            product, bias = node.inputs[1 - position], constant(node.inputs[position])
            found = None if product is None or bias is None else _matmul(producer(product, "MatMul"))
            if found and product is not None and bias is not None and only_user(product) is node:
                return Projection(found.linear, (node, position), found.width) if _per_column(bias, found) else None
    return None


def _matmul(node: ir.Node | None) -> Projection | None:
    weight = None if node is None else constant(node.inputs[1])
    if node is None or weight is None or weight.ndim != 2:
        return None
    return Projection(node, None, weight.shape[1])


def _gemm(node: ir.Node) -> Projection | None:
    weight = constant(node.inputs[1])
    if weight is None:
        return None
    found = Projection(node, None, weight.shape[0 if attribute(node, "transB", 0) else 1])
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return found
    bias = constant(node.inputs[2])
    return Projection(node, (node, 2), found.width) if bias is not None and _per_column(bias, found) else None


def _per_column(bias: Array, layer: Projection) -> bool:
    """Whether `bias` is one number, or one for each column; more dimensions would also enlarge the product."""
    product = layer.linear.outputs[0]
    rank = 0 if product.shape is None else len(product.shape)
    return bias.size == 1 or (bias.shape[-1] == bias.size == layer.width and bias.ndim <= max(rank, 1))
