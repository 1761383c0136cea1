"""Layer normalization written out, as one LayerNormalization over the last axis."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, Builder, constant, dtype_of, of_type, only_consumer, replace, shape_of
from vitdeploy.graph.layer_norm import written_out
from vitdeploy.passes.base import GraphPass


@dataclass(frozen=True)
class _Norm:
    """(x - mean) / sqrt(var + epsilon) over `axis`, `length` long, with what is multiplied and added behind it."""

    x: ir.Value
    axis: int
    length: int
    epsilon: float
    last: ir.Node
    scale: Array | None = None
    bias: Array | None = None


class FuseLayerNorm(GraphPass):
    """Mean, centring, variance and division in any of their spellings become LayerNormalization.

    Kernels keep its sums in FP32 and read its input once; the parts, in FP16, overflow in the square. TensorRT
    recognises the last axis only, so statistics over the channels of a map [B, C, H, W] get a Transpose on either side.
    """

    name: ClassVar[str] = "fuse_layer_norm"

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        left = next((node for node in model.graph if _find(node) is not None), None)
        if left is not None:
            raise ir.passes.PostconditionError(f"{left.name} still ends a layer norm written out")

    def rewrite(self, model: ir.Model) -> list[str]:
        """Fuse one normalization after the other."""
        changes = []
        for node in of_type(model.graph, "Div", "Mul", "Add", "Sub"):
            norm = _find(node)
            if norm is not None:
                norm = _with_affine(norm)
                changes.append(f"{node.name}: LayerNormalization over axis {norm.axis}")
                replace(norm.last, _build(model.graph, norm))
        return changes


def _find(node: ir.Node) -> _Norm | None:
    """The normalization over one axis of known length that ends in `node`.

    Not over a single element: ONNX Runtime 1.23 refuses LayerNormalization there.
    """
    norm = written_out(node)
    if norm is None or len(norm.axes) != 1:
        return None
    (axis,) = norm.axes
    length = shape_of(norm.x)[axis]
    if not isinstance(length, int) or length < 2:
        return None
    found = _Norm(norm.x, axis, length, norm.epsilon, node)
    scale, bias = (None if value is None else _along(found, value) for value in (norm.scale, norm.bias))
    if (norm.scale is not None and scale is None) or (norm.bias is not None and bias is None):
        return None
    return dataclasses.replace(found, scale=scale, bias=bias)


def _with_affine(norm: _Norm) -> _Norm:
    """The normalization together with a scale, and with a bias behind it, unless it has them already."""
    if norm.scale is None and norm.bias is None:
        scale, last = _per_channel(norm, "Mul")
        norm = dataclasses.replace(norm, scale=scale, last=last)
    if norm.bias is None:
        bias, last = _per_channel(norm, "Add")
        norm = dataclasses.replace(norm, bias=bias, last=last)
    return norm


def _per_channel(norm: _Norm, op_type: str) -> tuple[Array | None, ir.Node]:
    """The constant of the only consumer of the last node, if it varies along the normalized axis only."""
    value = norm.last.outputs[0]
    node = only_consumer(value, op_type)
    if node is None:
        return None, norm.last
    array = _along(norm, node.inputs[1] if node.inputs[0] is value else node.inputs[0])
    return array, norm.last if array is None else node


def _along(norm: _Norm, value: ir.Value | None) -> Array | None:
    """A constant that varies along the normalized axis only, as an array of that length."""
    array, rank, length = constant(value), len(shape_of(norm.x)), norm.length
    if array is None or array.ndim > rank:
        return None
    aligned = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if array.size != 1 and (array.size != length or aligned.shape[norm.axis] != length):
        return None
    return np.broadcast_to(array.reshape(-1), (length,))


def _build(graph: ir.Graph, norm: _Norm) -> ir.Value:
    x, shape, dtype = norm.x, shape_of(norm.x), dtype_of(norm.x).numpy()
    rank = len(shape)
    add = Builder(graph, norm.last)
    channels_last = [*(i for i in range(rank) if i != norm.axis), norm.axis]
    moved = channels_last != list(range(rank))
    if moved:
        x = add.op("Transpose", [x], [shape[i] for i in channels_last], perm=channels_last)
    scale = np.ones(norm.length) if norm.scale is None else norm.scale
    inputs = [x, add.constant(scale.astype(dtype), "weight")]
    if norm.bias is not None:
        inputs.append(add.constant(norm.bias.astype(dtype), "bias"))
    out = add.op("LayerNormalization", inputs, x.shape, axis=-1, epsilon=norm.epsilon, stash_type=1)
    if moved:
        out = add.op("Transpose", [out], shape, perm=np.argsort(channels_last).tolist())
    return out
