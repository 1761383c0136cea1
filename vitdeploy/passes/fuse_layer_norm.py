"""Layer normalization written out, as one LayerNormalization over the last axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    dims,
    of_type,
    only_consumer,
    producer,
    replace,
    sizes,
)
from vitdeploy.passes.base import GraphPass

_SAME_ELEMENTS = ("Reshape", "Expand", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class _Norm:
    """(x - mean) / sqrt(var + epsilon) over `axis` of x, with what multiplies and is added behind it."""

    x: ir.Value
    axis: int
    epsilon: float
    last: ir.Node
    scale: Array | None = None
    bias: Array | None = None


class FuseLayerNorm(GraphPass):
    """Mean, centring, variance and division in any of their spellings become LayerNormalization.

    Kernels keep its sums in FP32 and read its input once; the parts, in FP16, overflow in the square. TensorRT
    recognises the last axis only, so statistics over the channels of a map [B, C, H, W] get a Transpose on either side.
    The epsilon must stand under the root and the variance must be the biased one: anything else is another function.
    """

    name = "fuse_layer_norm"
    expects = "static length of the normalized axis, scale, bias and epsilon constants"
    guarantees = "every layer normalization over one axis is a LayerNormalization over the last axis"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Fuse one normalization after the other."""
        changes = []
        for node in of_type(model.graph, "Div", "Mul"):
            norm = _find(node)
            if norm is not None:
                norm = _with_affine(norm)
                changes.append(f"{node.name}: LayerNormalization over axis {norm.axis}")
                replace(norm.last, _build(model.graph, norm))
        return changes


def _find(node: ir.Node) -> _Norm | None:
    """The normalization that ends in `node`, a division of the centred input or a product with its inverse."""
    first, second = node.inputs
    orders = [(first, second, 0.5)]
    if node.op_type == "Mul":
        orders = [(first, second, -0.5), (second, first, -0.5)]
    for centred, spread, exponent in orders:
        x, axis = _centred(centred)
        base, power = _power(spread)
        if x is None or power != exponent:
            continue
        total = producer(base, "Add")
        for variance, epsilon in () if total is None else (total.inputs, total.inputs[::-1]):
            number = constant(epsilon)
            if number is not None and number.size == 1 and _variance(variance) == (x, axis):
                return _Norm(x, axis, float(number.item()), node)
    return None


def _power(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """`value` as base ** exponent, roots and inverses gathered."""
    node = producer(value)
    if node is None or not node.inputs:
        return value, 1.0
    factor = {"Sqrt": 0.5, "Reciprocal": -1.0}.get(node.op_type)
    base = node.inputs[0]
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        factor = float(exponent.item()) if exponent is not None and exponent.size == 1 else None
    elif node.op_type == "Div":
        one = constant(node.inputs[0])
        factor = -1.0 if one is not None and one.size == 1 and one.item() == 1 else None
        base = node.inputs[1]
    if factor is None:
        return value, 1.0
    inner, power = _power(base)
    return inner, power * factor


def _centred(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """x and the axis, where `value` is x minus its mean over that axis."""
    node = producer(value, "Sub")
    if node is None:
        return None, 0
    x, axis = _mean(node.inputs[1])
    return (x, axis) if x is not None and x is node.inputs[0] else (None, 0)


def _variance(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """x and the axis, where `value` is the biased variance of x over that axis."""
    squares, axis = _mean(value)
    node = producer(squares)
    if node is None:
        return None, 0
    power = constant(node.inputs[1]) if node.op_type == "Pow" else None
    squared = power is not None and power.size == 1 and power.item() == 2
    if squared or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1]):
        x, centred_axis = _centred(node.inputs[0])
        return (x, axis) if centred_axis == axis else (None, 0)
    return None, 0


def _mean(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """x and the axis, where `value` is the mean of x over that one axis, the axis kept with length one."""
    if value is None:
        return None, 0
    node, regained = _reduction(value)
    length_factor = None
    if node is not None and node.op_type in ("Div", "Mul"):
        number = constant(node.inputs[1])
        if number is None or number.size != 1 or node.inputs[0] is None or number.item() == 0:
            return None, 0
        length_factor = float(number.item()) if node.op_type == "Mul" else 1 / float(number.item())
        node, inner_regained = _reduction(node.inputs[0])
        regained |= inner_regained
    if node is None or node.op_type != ("ReduceMean" if length_factor is None else "ReduceSum"):
        return None, 0
    x, axis = node.inputs[0], _axis(node)
    length = None if x is None or x.shape is None or axis is None else x.shape[axis]
    if x is None or axis is None or not isinstance(length, int):
        return None, 0
    if length_factor is not None and not math.isclose(length_factor * length, 1, rel_tol=1e-6):
        return None, 0
    kept = attribute(node, "keepdims", 1) == 1 if not regained else _keeps_axis(value, x, axis, regained)
    return (x, axis) if kept else (None, 0)


def _reduction(value: ir.Value) -> tuple[ir.Node | None, frozenset[str]]:
    """The node behind whatever gives the axis back that a reduction dropped, and the kinds of the nodes that do."""
    kinds = set()
    node = value.producer()
    while node is not None and node.op_type in _SAME_ELEMENTS and node.inputs[0] is not None:
        kinds.add(node.op_type)
        node = node.inputs[0].producer()
    return node, frozenset(kinds)


def _keeps_axis(value: ir.Value, x: ir.Value, axis: int, regained: frozenset[str]) -> bool:
    """Whether `value` has the shape of x with `axis` of length one, and so the elements of the reduction in order.

    With as many elements as the reduction left, no Reshape can have moved one and no Expand repeated one. A dimension
    without a name proves that only when it is the single unknown and nothing expands.
    """
    have, want = dims(value), dims(x)
    if have is None or want is None or have != (*want[:axis], 1, *want[axis + 1 :]):
        return False
    named_have, named_want = sizes(value), sizes(x)
    if named_have and named_want and named_have == (*named_want[:axis], 1, *named_want[axis + 1 :]):
        return True
    return have.count(None) == 1 and "Expand" not in regained


def _axis(node: ir.Node) -> int | None:
    """The one axis that a reduction goes over."""
    axes = attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        given = constant(node.inputs[1])
        axes = None if given is None else given.reshape(-1).tolist()
    x = node.inputs[0]
    if axes is None or len(axes) != 1 or x is None or x.shape is None:
        return None
    return int(axes[0]) % len(x.shape)


def _with_affine(norm: _Norm) -> _Norm:
    """The normalization together with a scale, and with a bias behind it."""
    scale, last = _per_channel(norm, "Mul")
    if scale is not None:
        norm = _Norm(norm.x, norm.axis, norm.epsilon, last, scale)
    bias, last = _per_channel(norm, "Add")
    return norm if bias is None else _Norm(norm.x, norm.axis, norm.epsilon, last, norm.scale, bias)


def _per_channel(norm: _Norm, op_type: str) -> tuple[Array | None, ir.Node]:
    """The constant of the one reader of the last node, if it varies along the normalized axis only."""
    value = norm.last.outputs[0]
    node = only_consumer(value, op_type)
    shape = norm.x.shape
    if node is None or shape is None:
        return None, norm.last
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    array, length = constant(other), int(shape[norm.axis])  # type: ignore[arg-type]
    if array is None or array.ndim > len(shape):
        return None, norm.last
    aligned = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if array.size != 1 and (array.size != length or aligned.shape[norm.axis] != length):
        return None, norm.last
    return np.broadcast_to(array.reshape(-1), (length,)), node


def _build(graph: ir.Graph, norm: _Norm) -> ir.Value:
    x, shape = norm.x, norm.x.shape
    assert shape is not None
    assert x.dtype is not None
    rank = len(shape)
    add = Builder(graph, norm.last)
    channels_last = [*(i for i in range(rank) if i != norm.axis), norm.axis]
    moved = channels_last != list(range(rank))
    if moved:
        x = add.op("Transpose", [x], [shape[i] for i in channels_last], perm=channels_last)
    length, dtype = int(shape[norm.axis]), x.dtype.numpy()  # type: ignore[arg-type, union-attr]
    scale = np.ones(length) if norm.scale is None else norm.scale
    inputs = [x, add.constant(scale.astype(dtype), "weight")]
    if norm.bias is not None:
        inputs.append(add.constant(norm.bias.astype(dtype), "bias"))
    out = add.op("LayerNormalization", inputs, x.shape, axis=-1, epsilon=norm.epsilon, stash_type=1)
    if moved:
        out = add.op("Transpose", [out], shape, perm=np.argsort(channels_last).tolist())
    return out
