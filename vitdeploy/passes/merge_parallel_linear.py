"""Linear layers of one input that are added up are one linear layer, and so is one with a scale behind it."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, constant, of_type, only_consumer, replace, set_constant
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.projection import Projection, find_projection

# What rounding weights to FP16 may cost, as a part of them: a scale next to zero would leave too few digits.
HALF_ERROR = 2.0**-11


class MergeParallelLinear(GraphPass):
    """Puts what scales the columns of a linear layer into its weights, and merges layers of one input that add up.

    gamma * (x W + b) = x (gamma W) + gamma b is the layer scale of DeiT III, CaiT, DINOv2 and others, also where the
    tokens become a map first; x W1 + b1 + x W2 + b2 are the two heads of a distilled network. A scale stays where its
    layer has another consumer, or where FP16 could not hold the product.
    """

    name: ClassVar[str] = "merge_parallel_linear"

    def rewrite(self, model: ir.Model) -> list[str]:
        """One node after the other, so that the scale behind a sum finds its layers merged."""
        changes = []
        for node in of_type(model.graph, "Mul", "Div", "Add", "Sub"):
            name = node.name
            if node.op_type in ("Mul", "Div"):
                weight = _scale(node)
                if weight is not None:
                    changes.append(f"{name}: folded into {weight}")
            else:
                weight = _merge(node)
                if weight is not None:
                    changes.append(f"{name}: one layer, {weight}")
        return changes


def _scale(node: ir.Node) -> str | None:
    """Fold the constant that `node` multiplies by into the layer before it; the name of the new weight."""
    first, second = node.inputs
    for value, other in ((first, second), (second, first))[: 1 if node.op_type == "Div" else 2]:
        number = constant(other)
        if value is None or number is None or number.dtype.kind != "f" or value.shape is None:
            continue
        if number.ndim > len(value.shape) or (node.op_type == "Div" and not np.all(number)):
            continue
        factors = number.astype(np.float64).reshape((1,) * (len(value.shape) - number.ndim) + number.shape)
        found = _layer(value, 1 / factors if node.op_type == "Div" else factors, node)
        if found is not None:
            layer, columns = found
            weight = layer.map_columns(partial(_times, columns=columns))
            replace(node, value)
            return weight
    return None


def _times(array: Array, columns: Array) -> Array:
    scaled: Array = array.astype(np.float64) * columns
    return scaled


def _layer(value: ir.Value, factors: Array, node: ir.Node) -> tuple[Projection, Array] | None:
    """The layer that makes `value` for `node` alone, and the factor of each of its columns."""
    while only_consumer(value) is node:
        layer = find_projection(value)
        if layer is not None:
            if factors.size != factors.shape[-1] or factors.size not in (1, layer.width):
                return None
            columns = np.broadcast_to(factors.reshape(-1), (layer.width,))
            rows = layer.weight.T if attribute(layer.linear, "transB", 0) else layer.weight
            return (layer, columns) if _half_holds(rows, columns) else None
        before = value.producer()
        if before is None or before.op_type != "Transpose" or before.inputs[0] is None:
            return None
        order = attribute(before, "perm", list(reversed(range(factors.ndim))))
        factors = factors.transpose(np.argsort(order))
        value, node = before.inputs[0], before
    return None


def _half_holds(weight: Array, columns: Array) -> bool:
    scaled = weight.astype(np.float64) * columns
    with np.errstate(over="ignore", invalid="ignore"):
        error = float(np.linalg.norm(scaled.astype(np.float16).astype(np.float64) - scaled))
    return error <= HALF_ERROR * float(np.linalg.norm(scaled))


def _merge(node: ir.Node) -> str | None:
    """Make the sum or difference of two layers of one input one layer; the name of its weight."""
    first, second = node.inputs
    if first is None or second is None or first is second:
        return None
    if only_consumer(first) is not node or only_consumer(second) is not node:
        return None
    one, other = find_projection(first), find_projection(second)
    if one is None or other is None or one.linear.inputs[0] is not other.linear.inputs[0] or one.width != other.width:
        return None
    layers = (one, other)
    if any(layer.linear.op_type != one.linear.op_type or _differs(layer.linear, one.linear) for layer in layers):
        return None
    if (one.bias is None) != (other.bias is None):
        return None
    sign = -1.0 if node.op_type == "Sub" else 1.0
    biases = [layer.bias_of(slice(None)) for layer in layers]
    weight = one.weight
    set_constant(one.linear, 1, (weight.astype(np.float64) + sign * other.weight).astype(weight.dtype), "weight")
    if one.bias is not None and biases[0] is not None and biases[1] is not None:
        bias = biases[0].astype(np.float64) + sign * biases[1]
        set_constant(*one.bias, bias.astype(biases[0].dtype), "bias")
    replace(node, first)
    return str(one.linear.inputs[1].name) if one.linear.inputs[1] is not None else None


def _differs(layer: ir.Node, other: ir.Node) -> bool:
    """Whether two Gemm compute in other ways; only plain ones are alike."""
    if layer.op_type != "Gemm":
        return False
    plain = attribute(layer, "alpha", 1.0) == attribute(layer, "beta", 1.0) == 1.0 and not attribute(layer, "transA", 0)
    return not plain or attribute(layer, "transB", 0) != attribute(other, "transB", 0)
