"""Batch normalisation goes into its neighbours."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Builder,
    attribute,
    constant,
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
    behind it; behind a mean over all positions, which it commutes with, and there into a linear layer. The last is a
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


def _behind_mean(node: ir.Node, source: ir.Value, affine: Affine) -> str | None:
    """The mean of a * x + b over all positions is a * mean(x) + b."""
    consumer = only_consumer(node.outputs[0])
    mean = _spatial_mean(node, consumer)
    if consumer is None or mean is None or mean.outputs[0].shape is None:
        return None
    replace(node, source)
    end = _last_view(mean, len(affine.scale))
    linear = _into_linear(end.outputs[0], affine)
    if linear is not None:
        return f"behind {mean.name} into {linear.name}"
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


def _into_linear(value: ir.Value, affine: Affine) -> ir.Node | None:
    """Fold into the Gemm, or the MatMul and Add, that alone takes `value` [B, C]; the node whose weights changed."""
    consumer, shape = only_consumer(value), sizes(value)
    if consumer is None or shape is None or len(shape) != 2 or consumer.inputs[0] is not value:
        return None
    weight = constant(consumer.inputs[1]) if consumer.op_type in ("Gemm", "MatMul") else None
    if weight is None or weight.ndim != 2:
        return None
    if consumer.op_type == "Gemm":
        bias_holder, bias_index = consumer, 2
        if attribute(consumer, "transA", 0) or {attribute(consumer, factor, 1.0) for factor in ("alpha", "beta")} != {
            1.0
        }:
            return None
    else:
        add = only_consumer(consumer.outputs[0], "Add")
        if add is None:
            return None
        bias_holder, bias_index = add, 1 if add.inputs[0] is consumer.outputs[0] else 0
    has_bias = len(bias_holder.inputs) > bias_index and bias_holder.inputs[bias_index] is not None
    bias = constant(bias_holder.inputs[bias_index]) if has_bias else np.zeros(1)
    if bias is None or bias.ndim > 1:
        return None
    transposed = bool(attribute(consumer, "transB", 0))
    matrix = (weight.T if transposed else weight).astype(np.float64)
    scaled = affine.scale[:, None] * matrix
    set_constant(consumer, 1, (scaled.T if transposed else scaled).astype(weight.dtype), "weight")
    set_constant(bias_holder, bias_index, (bias + affine.shift @ matrix).astype(weight.dtype), "bias")
    return consumer


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
