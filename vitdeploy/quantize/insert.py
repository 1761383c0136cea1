"""The edit: QuantizeLinear and DequantizeLinear where a plan wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, constant, only_consumer, remove_unused, replace, set_constant
from vitdeploy.graph.qdq import Array, QuantParams, quantize_weight
from vitdeploy.quantize.placement import DECONVOLUTION, Layer, Plan
from vitdeploy.targets import Int8Rules

# Half of what int32 holds: sums of products come on top of the bias.
_LARGEST_BIAS = 1 << 30


@dataclass(frozen=True)
class QuantizedWeight:
    """int8 `integers` in the shape of the weight, and `scales` float32 [channels] of its output channels."""

    integers: Array
    scales: Array


def insert(
    model: ir.Model,
    plan: Plan,
    ranges: Mapping[str, QuantParams],
    weights: Mapping[str, QuantizedWeight],
    rules: Int8Rules,
) -> ir.Model:
    """A copy of `model` whose quantized layers read 8-bit integers.

    ranges      scale and zero point of every activation that `placement.tensors` names
    weights     by node, a weight that was rounded with care; the others are rounded to nearest
    rules       of the target, by which the plan was made
    """
    model = model.clone()
    graph = model.graph
    nodes = {node.name: node for node in graph}
    pairs: dict[tuple[ir.Value, str], ir.Value] = {}
    rounded: set[ir.Value] = set()
    for layer in plan:
        if not layer.quantized:
            continue
        node = nodes[layer.node]
        if layer.weight is not None:
            node = _quantize_weight(graph, node, layer, ranges, weights.get(layer.node), rules)
        for index in layer.activations:
            value = node.inputs[index]
            assert value is not None
            if value in rounded:
                continue
            key = (value, layer.node if rules.pair_per_consumer else "")
            if key not in pairs:
                pairs[key] = _pair(Builder(graph, node), value, ranges[str(value.name)])
            node.replace_input_with(index, pairs[key])
        if layer.output:
            rounded.add(_quantize_output(graph, node, ranges[str(node.outputs[0].name)]))
    remove_unused(model)
    return model


def _pair(builder: Builder, value: ir.Value, params: QuantParams) -> ir.Value:
    """Q and DQ of `value` in front of its first reader; a plan is in graph order, so later ones may share them."""
    builder.scope, _, name = str(value.name).removesuffix(".out").rpartition("/")
    scale = builder.constant(np.asarray(params.scale, np.float32), f"{name}.scale")
    zero = builder.constant(np.asarray(params.zero_point, params.scheme.dtype), f"{name}.zero_point")
    integers = builder.op("QuantizeLinear", [value, scale, zero], value.shape, dtype=zero.dtype)
    return builder.op("DequantizeLinear", [integers, scale, zero], value.shape, dtype=value.dtype)


def _quantize_output(graph: ir.Graph, node: ir.Node, params: QuantParams) -> ir.Value:
    out = node.outputs[0]
    readers = list(out.uses())
    position = ir.node("Identity", [out])
    graph.insert_after(node, position)
    real = _pair(Builder(graph, position), out, params)
    for use in readers:
        use.node.replace_input_with(use.idx, real)
    graph.remove(position, safe=True)
    return real


def _quantize_weight(
    graph: ir.Graph,
    node: ir.Node,
    layer: Layer,
    ranges: Mapping[str, QuantParams],
    weight: QuantizedWeight | None,
    rules: Int8Rules,
) -> ir.Node:
    """Replace the weight and, where it has to be, the bias; returns the node that computes the layer now."""
    assert layer.weight is not None
    array = constant(node.inputs[layer.weight])
    source = node.inputs[0]
    assert array is not None
    assert source is not None
    weight = weight or QuantizedWeight(*quantize_weight(array, layer.axis))
    if rules.int32_bias and layer.kind != DECONVOLUTION:
        node = _as_gemm(graph, node)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None:
            step = ranges[str(source.name)].scale
            weight = _roomy(weight, array, layer.axis, np.abs(bias) / (_LARGEST_BIAS * step))
            scales = (weight.scales * np.float32(step)).astype(np.float32)
            integers = np.rint(bias / scales.astype(np.float64)).astype(np.int32)
            node.replace_input_with(2, _dequantized(graph, node, 2, integers, scales, 0))
    if node.op_type == "MatMul":
        _keep_bias_apart(graph, node)
    real = _dequantized(
        graph,
        node,
        layer.weight,
        weight.integers,
        weight.scales,
        layer.axis,
        pair_on_weight=rules.pair_on_weight,
    )
    node.replace_input_with(layer.weight, real)
    return node


def _dequantized(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    integers: Array,
    scales: Array,
    axis: int,
    *,
    pair_on_weight: bool = False,
) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    builder = Builder(graph, node)
    builder.scope = str(value.name)
    # ONNX Runtime finds no integer kernel where the zero points are left out.
    parts = [
        builder.constant(integers, "integers"),
        builder.constant(scales, "scale"),
        builder.constant(np.zeros(len(scales), integers.dtype), "zero_point"),
    ]
    if pair_on_weight:
        # The rounded values, so that the Q in front of them gives the same integers again.
        shape = [-1 if i == axis else 1 for i in range(integers.ndim)]
        real = builder.constant(integers.astype(np.float32) * scales.reshape(shape), "rounded")
        parts[0] = builder.op("QuantizeLinear", [real, *parts[1:]], value.shape, dtype=parts[0].dtype, axis=axis)
    return builder.op("DequantizeLinear", parts, value.shape, dtype=value.dtype, axis=axis)


def _roomy(weight: QuantizedWeight, array: Array, axis: int, least: Array) -> QuantizedWeight:
    """`weight` with the channels whose scale is below `least` rounded anew, so that their bias fits into int32."""
    tight = weight.scales < least
    if not tight.any():
        return weight
    shape = [-1 if i == axis else 1 for i in range(array.ndim)]
    scales = np.where(tight, least, weight.scales).astype(np.float32)
    coarse = np.rint(array / scales.reshape(shape)).astype(np.int8)
    return QuantizedWeight(np.where(tight.reshape(shape), coarse, weight.integers), scales)


def _bias_behind(node: ir.Node) -> tuple[ir.Node, int, Array] | None:
    """The Add that follows a MatMul, the index of its constant vector, and the vector."""
    add = only_consumer(node.outputs[0], "Add")
    if add is None:
        return None
    index = 1 - list(add.inputs).index(node.outputs[0])
    bias = constant(add.inputs[index])
    return (add, index, bias) if bias is not None and bias.size == bias.shape[-1] else None


def _as_gemm(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """A MatMul of rank 2 and the Add behind it as one Gemm, whose integer kernel takes the bias with it."""
    out = node.outputs[0]
    found = _bias_behind(node) if node.op_type == "MatMul" and out.shape is not None and len(out.shape) == 2 else None
    if found is None:
        return node
    add, _, bias = found
    builder = Builder(graph, add)
    gemm = builder.op("Gemm", [*node.inputs, builder.constant(bias.reshape(-1), "bias")], add.outputs[0].shape)
    name = add.outputs[0].name
    replace(add, gemm)
    gemm.name = name
    made = gemm.producer()
    assert made is not None
    graph.remove(node, safe=True)
    return made


def _keep_bias_apart(graph: ir.Graph, node: ir.Node) -> None:
    """Give the bias of a MatMul the rank of its output.

    ONNX Runtime makes a float Gemm of MatMul + Add with a bias of rank 1 before it looks for Q/DQ, and then finds no
    integer kernel for it: every linear layer would run in float.
    """
    found, shape = _bias_behind(node), node.outputs[0].shape
    if found is not None and shape is not None:
        add, index, bias = found
        set_constant(add, index, bias.reshape([1] * (len(shape) - 1) + [-1]), "bias")
