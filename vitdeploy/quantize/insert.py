"""QuantizeLinear and DequantizeLinear where a plan wants them, and a check that a graph keeps its target's rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import (
    Builder,
    attribute,
    constant,
    consumers,
    input_of,
    only_consumer,
    producer,
    remove_unused,
    replace,
    set_constant,
)
from vitdeploy.graph.qdq import MIN_SCALE, Array, QuantizedWeight, QuantParams, along, quantize_weight
from vitdeploy.quantize.layers import weight_of
from vitdeploy.quantize.placement import DECONVOLUTION, Layer, Plan
from vitdeploy.targets import Int8Rules

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})

# Operators whose inputs are integers: no TensorRT reads them, and each has its Q/DQ form.
_INTEGER = ("QLinear", "QGemm", "QAttention")
_INTEGER_NAMES = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"})

# Half of what int32 holds: sums of products come on top of the bias.
_LARGEST_BIAS = 1 << 30


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
            value = input_of(node, index)
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
    """Q and DQ of `value` in front of its first consumer; a plan is in graph order, so later ones may share them."""
    builder.scope, _, name = str(value.name).removesuffix(".out").rpartition("/")
    scale = builder.constant(np.asarray(params.scale, np.float32), f"{name}.scale")
    zero = builder.constant(np.asarray(params.zero_point, params.scheme.dtype), f"{name}.zero_point")
    integers = builder.op(QUANTIZE, [value, scale, zero], value.shape, dtype=zero.dtype)
    return builder.op(DEQUANTIZE, [integers, scale, zero], value.shape, dtype=value.dtype)


def _quantize_output(graph: ir.Graph, node: ir.Node, params: QuantParams) -> ir.Value:
    out = node.outputs[0]
    uses = list(out.uses())
    position = ir.node("Identity", [out])
    graph.insert_after(node, position)
    real = _pair(Builder(graph, position), out, params)
    for use in uses:
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
    array, source = weight_of(node), input_of(node, 0)
    weight = weight or quantize_weight(array, layer.axis)
    if rules.int32_bias and layer.kind != DECONVOLUTION:
        node = _as_gemm(graph, node)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None:
            step = ranges[str(source.name)].scale
            least = np.maximum(np.abs(bias) / (_LARGEST_BIAS * step), MIN_SCALE / step)
            weight = make_room(weight, array, layer.axis, least)
            scales = (weight.scales * np.float32(step)).astype(np.float32)
            integers = np.rint(bias / scales.astype(np.float64)).astype(np.int32)
            node.replace_input_with(2, _dequantized(graph, node, 2, QuantizedWeight(integers, scales), 0))
    if node.op_type == "MatMul":
        _keep_bias_apart(graph, node)
    real = _dequantized(graph, node, 1, weight, layer.axis, pair=rules.pair_on_weight)
    node.replace_input_with(1, real)
    return node


def _dequantized(
    graph: ir.Graph, node: ir.Node, index: int, weight: QuantizedWeight, axis: int, *, pair: bool = False
) -> ir.Value:
    """Input `index` of `node` as what a DequantizeLinear gives, with a QuantizeLinear in front where `pair` says so."""
    value = input_of(node, index)
    builder = Builder(graph, node)
    builder.scope = str(value.name)
    # ONNX Runtime finds no integer kernel where the zero points are left out.
    parts = [
        builder.constant(weight.integers, "integers"),
        builder.constant(weight.scales, "scale"),
        builder.constant(np.zeros(len(weight.scales), weight.integers.dtype), "zero_point"),
    ]
    if pair:
        # The rounded values, so that the Q in front of them gives the same integers again.
        real = builder.constant(weight.real(axis), "rounded")
        parts[0] = builder.op(QUANTIZE, [real, *parts[1:]], value.shape, dtype=parts[0].dtype, axis=axis)
    return builder.op(DEQUANTIZE, parts, value.shape, dtype=value.dtype, axis=axis)


def make_room(weight: QuantizedWeight, array: Array, axis: int, least: Array) -> QuantizedWeight:
    """`weight` with the channels rounded anew whose scale is below `least` [channels], as a bias in int32 needs it.

    array  the weight in float; `axis` is that of the channels
    """
    tight = weight.scales < least
    if not tight.any():
        return weight
    scales = np.where(tight, least, weight.scales)
    coarse = quantize_weight(array, axis, limits=127 * scales)
    return QuantizedWeight(
        np.where(along(tight, axis, array.ndim), coarse.integers, weight.integers),
        np.where(tight, coarse.scales, weight.scales),
    )


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
    graph.remove(node, safe=True)
    return builder.made[-1]


def _keep_bias_apart(graph: ir.Graph, node: ir.Node) -> None:
    """Give the bias of a MatMul the rank of its output.

    ONNX Runtime makes a float Gemm of MatMul + Add with a bias of rank 1 before it looks for Q/DQ, and then finds no
    integer kernel for it: every linear layer would run in float.
    """
    found, shape = _bias_behind(node), node.outputs[0].shape
    if found is not None and shape is not None:
        add, index, bias = found
        set_constant(add, index, bias.reshape([1] * (len(shape) - 1) + [-1]), "bias")


def violations(graph: ir.Graph, rules: Int8Rules) -> list[str]:
    """What in the graph the rules forbid, a line each, naming the node; empty for a graph that keeps them."""
    return [line for node in graph for line in _violations(node, rules)]


def _violations(node: ir.Node, rules: Int8Rules) -> Iterator[str]:
    if node.op_type in _INTEGER_NAMES or node.op_type.startswith(_INTEGER):
        yield f"{node.name}: {node.op_type} is an integer operator, not a Q/DQ pair"
    elif node.op_type in (QUANTIZE, DEQUANTIZE):
        yield from _pair_violations(node, rules)
    elif node.op_type in PRODUCTS:
        yield from _product_violations(node)


def _pair_violations(node: ir.Node, rules: Int8Rules) -> Iterator[str]:
    scale, zero = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None:
        yield f"{node.name}: its scale and zero point are not constants"
        return
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield f"{node.name}: a scale is not a positive number"
    if rules.activation.symmetric and zero.any():
        yield f"{node.name}: a zero point is {zero[zero != 0].flat[0]}, the target takes 0 only"
    allowed = {np.dtype(np.int8), np.dtype(rules.activation.dtype)} | (
        {np.dtype(np.int32)} if rules.int32_bias else set()
    )
    if zero.dtype not in allowed:
        yield f"{node.name}: {zero.dtype} integers, the target takes {', '.join(sorted(map(str, allowed)))}"
    behind = consumers(node.outputs[0])
    if node.op_type == QUANTIZE and any(other.op_type != DEQUANTIZE for other in behind):
        yield f"{node.name}: its integers are read by {behind[0].op_type}, not by a {DEQUANTIZE}"
    weight = constant(node.inputs[0])
    if node.op_type == DEQUANTIZE and weight is None and producer(node.inputs[0], QUANTIZE) is None:
        yield f"{node.name}: what it reads is neither a constant nor a {QUANTIZE}"
    if node.op_type == DEQUANTIZE and weight is not None and scale.ndim:
        axis = int(attribute(node, "axis", 1))
        if weight.shape[axis] != scale.size:
            yield f"{node.name}: {scale.size} scales along an axis of {weight.shape[axis]}"


def _product_violations(node: ir.Node) -> Iterator[str]:
    """Both factors are integers or neither: a single Q/DQ costs its conversion and brings no integer kernel.

    What a convolution has written as integers may well be read in float.
    """
    left, right = (producer(value, DEQUANTIZE) for value in node.inputs[:2])
    quantizer = producer(left.inputs[0], QUANTIZE) if left is not None else None
    source = producer(quantizer.inputs[0]) if quantizer is not None else None
    written = source is not None and source.op_type in PRODUCTS
    if (left is None) != (right is None) and not (right is None and written):
        yield f"{node.name}: only one of its two factors is quantized"
