"""Batch normalisation goes into its neighbours."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Array,
    Builder,
    attribute,
    constant,
    consumers,
    graph_of,
    of_type,
    only_consumer,
    replace,
    set_constant,
    shape_of,
    sizes,
)
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.convolution import Affine, affine_of, bias_of, into_convolution_before, set_weights


class FoldBatchNorm(GraphPass):
    """Folds BatchNormalization, at inference a * x + b per channel, into what stands before or behind it.

    In order of preference: the weights of the convolution before it; the weights of a convolution without padding
    behind it; behind a mean over all positions, which it commutes with, and there into linear layers; linear
    layers behind a norm of vectors. The mean is a
    matter of correctness too: OpenVINO's INT8 pipeline computes BatchNormalization, Reshape, ReduceMean, Add wrong.
    """

    name: ClassVar[str] = "fold_batch_norm"

    def rewrite(self, model: ir.Model) -> list[str]:
        """Fold each BatchNormalization that has a neighbour to take it."""
        changes = []
        for node in of_type(model.graph, "BatchNormalization"):
            affine, source, name = affine_of(node), node.inputs[0], node.name
            if affine is None or source is None:
                continue
            taken = (
                into_convolution_before(node, source, affine)
                or _into_convolution_behind(node, source, affine)
                or _into_linears_behind(node, source, affine)
                or _behind_mean(node, source, affine)
            )
            if taken:
                changes.append(f"{name}: folded {taken}")
        return changes


def _into_convolution_behind(node: ir.Node, source: ir.Value, affine: Affine) -> str | None:
    """Padding would see the shift as part of the image's border, so there must be none."""
    conv = only_consumer(node.outputs[0], "Conv")
    if conv is None or conv.inputs[0] is not node.outputs[0]:
        return None
    if any(attribute(conv, "pads", ())) or attribute(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    weight, bias = constant(conv.inputs[1]), bias_of(conv)
    if weight is None or bias is None:
        return None
    group = attribute(conv, "group", 1)
    per_output = weight.shape[0] // group, 1
    scale, shift = (np.tile(part.reshape(group, 1, -1), (1, *per_output)).reshape(weight.shape[:2]) for part in affine)
    taps = weight.sum(axis=tuple(range(2, weight.ndim)), dtype=np.float64)
    scaled = weight * scale.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    set_weights(conv, weight, scaled, bias + (taps * shift).sum(axis=1))
    replace(node, source)
    return f"into {conv.name}"


def _into_linears_behind(node: ir.Node, source: ir.Value, affine: Affine) -> str | None:
    """The norm of a vector [B, C] in front of the heads of a network."""
    taken = _into_linears(node.outputs[0], affine)
    if taken is None:
        return None
    replace(node, source)
    return f"into {taken}"


def _behind_mean(node: ir.Node, source: ir.Value, affine: Affine) -> str | None:
    """The mean of a * x + b over all positions is a * mean(x) + b."""
    consumer = only_consumer(node.outputs[0])
    mean = _spatial_mean(node, consumer)
    if consumer is None or mean is None or mean.outputs[0].shape is None:
        return None
    replace(node, source)
    end = _last_view(mean, len(affine.scale))
    linear = _into_linears(end.outputs[0], affine)
    if linear is not None:
        return f"behind {mean.name} into {linear}"
    _apply(end, affine)
    return f"behind {mean.name}"


def _spatial_mean(node: ir.Node, consumer: ir.Node | None) -> ir.Node | None:
    """The mean over all axes but batch and channel that `consumer` is, or that follows if it flattens these axes."""
    if consumer is None:
        return None
    before = sizes(node.outputs[0])
    if consumer.op_type == "Reshape" and before is not None and consumer.inputs[0] is node.outputs[0]:
        flat = sizes(consumer.outputs[0])
        if flat is None or len(flat) != 3 or flat[:2] != before[:2]:
            return None
        return _spatial_mean(consumer, only_consumer(consumer.outputs[0]))
    if consumer.op_type == "GlobalAveragePool":
        return consumer
    if consumer.op_type != "ReduceMean" or before is None or len(before) < 3:
        return None
    axes = constant(consumer.inputs[1]) if len(consumer.inputs) > 1 else attribute(consumer, "axes")
    reduced = set() if axes is None else {int(axis) % len(before) for axis in axes}
    return consumer if reduced == set(range(2, len(before))) else None


def _last_view(mean: ir.Node, channels: int) -> ir.Node:
    """The node after which the means are [B, C], if only such views follow; else `mean`."""
    consumer = only_consumer(mean.outputs[0])
    if consumer is not None and consumer.op_type in ("Reshape", "Flatten", "Squeeze"):
        before, after = sizes(mean.outputs[0]), sizes(consumer.outputs[0])
        if before is not None and after is not None and len(after) == 2 and after == (before[0], channels):
            return consumer
    return mean


class _Linear(NamedTuple):
    """x W + b on [B, C]: the Gemm or MatMul, and the node and the input that hold the bias."""

    product: ir.Node
    matrix: Array
    bias: Array
    holder: ir.Node
    place: int

    @property
    def transposed(self) -> bool:
        """Whether the weights are stored as [out, in]."""
        return bool(attribute(self.product, "transB", 0))


def _into_linears(value: ir.Value, affine: Affine) -> str | None:
    """Fold into the linear layers, several heads perhaps, that alone take `value` [B, C]; their names."""
    shape, takers = sizes(value), consumers(value)
    if shape is None or len(shape) != 2 or value.is_graph_output() or not takers:
        return None
    found = [layer for layer in (_linear(taker, value) for taker in takers) if layer is not None]
    if len(found) < len(takers):
        return None
    for layer in found:
        dtype = layer.matrix.dtype
        matrix = (layer.matrix.T if layer.transposed else layer.matrix).astype(np.float64)
        scaled = affine.scale[:, None] * matrix
        set_constant(layer.product, 1, (scaled.T if layer.transposed else scaled).astype(dtype), "weight")
        set_constant(layer.holder, layer.place, (layer.bias + affine.shift @ matrix).astype(dtype), "bias")
    return ", ".join(str(layer.product.name) for layer in found)


def _linear(node: ir.Node, value: ir.Value) -> _Linear | None:
    """The linear layer whose product `node` takes `value`; None where its bias cannot take a shift."""
    weight = constant(node.inputs[1]) if node.op_type in ("Gemm", "MatMul") else None
    if weight is None or weight.ndim != 2 or node.inputs[0] is not value:
        return None
    if node.op_type == "Gemm":
        holder, index = node, 2
        if attribute(node, "transA", 0) or {attribute(node, factor, 1.0) for factor in ("alpha", "beta")} != {1.0}:
            return None
    else:
        add = only_consumer(node.outputs[0], "Add")
        if add is None:
            return None
        holder, index = add, 1 if add.inputs[0] is node.outputs[0] else 0
    has_bias = len(holder.inputs) > index and holder.inputs[index] is not None
    bias = constant(holder.inputs[index]) if has_bias else np.zeros(1)
    return None if bias is None or bias.ndim > 1 else _Linear(node, weight, bias, holder, index)


def _apply(end: ir.Node, affine: Affine) -> None:
    """Put a Mul and an Add per channel behind `end`."""
    value = end.outputs[0]
    shape = shape_of(value)
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    scale, shift = (part.astype(dtype).reshape(-1, *[1] * (len(shape) - 2)) for part in affine)
    add = Builder(graph_of(end), end)
    attributes = {name: found.value for name, found in end.attributes.items()}
    means = add.op(end.op_type, end.inputs, shape, **attributes)
    scaled = add.op("Mul", [means, add.constant(scale, "scale")], shape)
    replace(end, add.op("Add", [scaled, add.constant(shift, "shift")], shape))
