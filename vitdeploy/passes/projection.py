"""Linear layers with constant weights, whose columns can be edited: y = x W + b over the last axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Array,
    attribute,
    bypass,
    constant,
    input_of,
    need,
    only_consumer,
    producer,
    set_constant,
    sizes,
)
from vitdeploy.graph.layout import MOVERS, Movement, after

_KEEPS_ELEMENTS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand")


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

    @property
    def weight(self) -> Array:
        """The weights as they are stored: [K, N], or [N, K] where a Gemm transposes them."""
        return need(constant(self.linear.inputs[1]), f"constant weights of {self.linear.name}")

    def map_columns(self, edit: Callable[[Array], Array]) -> str:
        """Put edit(W [K, N]) and edit(b [N]) in place of W and b, in this layer only; returns the new weight's name.

        `edit` acts on the last axis. The old initializers stay as they are for other consumers.
        """
        weight = self.weight
        edited = edit(weight.T).T if attribute(self.linear, "transB", 0) else edit(weight)
        set_constant(self.linear, 1, edited.astype(weight.dtype), "weight")
        bias = self.bias_of(slice(None))
        if bias is not None:
            self._set_bias(edit(bias))
        return str(input_of(self.linear, 1).name)

    def bias_of(self, columns: slice) -> Array | None:
        """The bias [n] of these columns; None where the layer has none."""
        stored = self._stored_bias()
        return None if stored is None else np.broadcast_to(stored.reshape(-1), (self.width,))[columns]

    def clear_bias(self, columns: slice) -> bool:
        """Set the bias of these columns to zero; whether that was the last of it and the layer has none any more."""
        found = self.bias_of(slice(None))
        if self.bias is None or found is None:
            return True
        bias = found.copy()
        bias[columns] = 0
        if bias.any():
            self._set_bias(bias)
            return False
        node, position = self.bias
        if node is not self.linear:
            return bypass(node, self.linear.outputs[0])
        node.resize_inputs(position)
        return True

    def _stored_bias(self) -> Array | None:
        return None if self.bias is None else constant(self.bias[0].inputs[self.bias[1]])

    def _set_bias(self, bias: Array) -> None:
        old = self._stored_bias()
        if self.bias is not None and old is not None:
            set_constant(*self.bias, bias.astype(old.dtype), "bias")


def find_projection(value: ir.Value) -> Projection | None:
    """The linear layer that makes `value`, if it is one and the product has no consumer but its bias."""
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
            if found and product is not None and bias is not None and only_consumer(product) is node:
                return Projection(found.linear, (node, position), found.width) if _per_column(bias, found) else None
    return None


def find_columns(value: ir.Value) -> tuple[Projection, slice] | None:
    """The projection, and the columns of it, that `value` holds and that have no other consumer."""
    columns = slice(None)
    while only_consumer(value) is not None:
        node = value.producer()
        if node is None:
            return None
        if columns == slice(None) and node.op_type in _KEEPS_ELEMENTS:
            value = node.inputs[0]  # type: ignore[assignment]
        elif columns == slice(None) and node.op_type == "Split":
            part = _last_axis_part(node, value)
            if part is None or node.inputs[0] is None:
                return None
            value, columns = node.inputs[0], part
        elif node.op_type == "Reshape" and _last(value) is not None and _last(value) == _last(node.inputs[0]):
            value = node.inputs[0]  # type: ignore[assignment]
        else:
            found = find_projection(value)
            return None if found is None else (found, columns)
    return None


def bias_at(operand: ir.Value) -> tuple[Projection, slice, Array] | None:
    """The layer, and the columns of it, that make `operand` by changes of layout, and their bias as it arrives there.

    None where the layer has no bias for them, or what it gives is used for something else on the way.
    """
    shape, value, node = sizes(operand), operand, operand.producer()
    movement = Movement.still(shape) if shape else None
    while movement is not None and node is not None and node.op_type in MOVERS:
        before = node.inputs[0]
        if before is None or only_consumer(before) is not node:
            return None
        movement, value, node = after(node, movement), before, before.producer()
    found = None if movement is None or producer(value, "Expand") is not None else find_columns(value)
    bias = None if found is None else found[0].bias_of(found[1])
    moved = None if movement is None or bias is None or not bias.any() else movement.move(bias)
    return None if found is None or moved is None else (*found, moved)


def _last_axis_part(split: ir.Node, part: ir.Value) -> slice | None:
    whole = split.inputs[0]
    rank = 0 if whole is None or whole.shape is None else len(whole.shape)
    lengths = [_last(out) for out in split.outputs]
    if not rank or int(attribute(split, "axis", 0)) % rank != rank - 1 or None in lengths:
        return None
    position = split.outputs.index(part)
    start = sum(length for length in lengths[:position] if length is not None)
    return slice(start, start + (lengths[position] or 0))


def _last(value: ir.Value | None) -> int | None:
    last = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None


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
