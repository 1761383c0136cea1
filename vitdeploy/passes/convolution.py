"""Convolutions whose weights are constants, and what acts on each channel alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, constant, only_consumer, producer, replace, set_constant, sizes


class Affine(NamedTuple):
    """scale * x + shift per channel, both float64 [C]."""

    scale: Array
    shift: Array


def affine_of(node: ir.Node) -> Affine | None:
    """BatchNormalization at inference; None where it trains or its statistics are computed."""
    arrays = [constant(value) for value in node.inputs[1:5]]
    if attribute(node, "training_mode", 0) or any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, dtype=np.float64) for array in arrays)
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def channel_affine(node: ir.Node) -> tuple[ir.Value, Affine] | None:
    """What `node` scales or shifts by a constant for each channel of [B, C, *spatial], and how."""
    if node.op_type == "BatchNormalization":
        affine = affine_of(node)
        return None if affine is None or node.inputs[0] is None else (node.inputs[0], affine)
    shape = sizes(node.outputs[0])
    if node.op_type not in ("Add", "Div", "Mul", "Sub") or shape is None or len(shape) < 3 or len(node.inputs) != 2:
        return None
    channels = shape[1]
    if not isinstance(channels, int):
        return None
    for index, (source, other) in enumerate((node.inputs, reversed(node.inputs))):
        number = None if source is None else _per_channel(constant(other), channels, len(shape))
        if source is None or number is None or constant(source) is not None or sizes(source) != shape:
            continue
        if node.op_type == "Mul":
            return source, Affine(number, np.zeros(channels))
        if node.op_type == "Add":
            return source, Affine(np.ones(channels), number)
        if node.op_type == "Sub":
            return source, Affine(np.full(channels, -1.0 if index else 1.0), number if index else -number)
        return (source, Affine(1 / number, np.zeros(channels))) if not index and np.all(number) else None
    return None


def _per_channel(array: Array | None, channels: int, rank: int) -> Array | None:
    """A constant as one number for each channel [C]; None where it differs within a channel."""
    if array is None or array.dtype.kind != "f" or array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (channels,))


def into_convolution_before(node: ir.Node, source: ir.Value, affine: Affine) -> str | None:
    """Fold `affine`, which `node` computes of `source`, into the convolution whose result only `node` takes."""
    conv = producer(source)
    if conv is None or conv.op_type not in ("Conv", "ConvTranspose") or only_consumer(source) is not node:
        return None
    weight, bias = constant(conv.inputs[1]), bias_of(conv)
    if weight is None or bias is None:
        return None
    if conv.op_type == "Conv":
        scaled = weight * affine.scale.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # [in, out / group, ...], the input channels of a group beside each other
        group, per_group = attribute(conv, "group", 1), weight.shape[1]
        factors = affine.scale.reshape(group, 1, per_group).repeat(weight.shape[0] // group, axis=1)
        scaled = weight * factors.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    set_weights(conv, weight, scaled, bias * affine.scale + affine.shift)
    replace(node, source)
    return f"into {conv.name}"


def bias_of(conv: ir.Node) -> Array | None:
    """The bias in float64, zero where the convolution has none; None where it is computed."""
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        found = constant(conv.inputs[2])
        return None if found is None else found.astype(np.float64)
    return np.zeros(1)


def set_weights(conv: ir.Node, weight: Array, scaled: Array, bias: Array) -> None:
    """Give `conv` the weights `scaled` and `bias`, in the type of `weight`, which were its own."""
    set_constant(conv, 1, scaled.astype(weight.dtype), "weight")
    set_constant(conv, 2, bias.astype(weight.dtype), "bias")
