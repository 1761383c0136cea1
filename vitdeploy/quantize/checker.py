"""Does a quantized graph keep the rules of its target? Asked of the graph alone, without the runtime or its device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, consumers, producer
from vitdeploy.targets import Int8Rules

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})

# Operators whose inputs are integers: no TensorRT reads them, and each has its Q/DQ form.
_INTEGER = ("QLinear", "QGemm", "QAttention")
_INTEGER_NAMES = frozenset({"MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"})


def violations(graph: ir.Graph, rules: Int8Rules) -> list[str]:
    """What in the graph the rules forbid, a line each, naming the node; empty for a graph that keeps them."""
    return [line for node in graph for line in _judged(node, rules)]


def _judged(node: ir.Node, rules: Int8Rules) -> Iterator[str]:
    if node.op_type in _INTEGER_NAMES or node.op_type.startswith(_INTEGER):
        yield f"{node.name}: {node.op_type} is an integer operator, not a Q/DQ pair"
    elif node.op_type in (QUANTIZE, DEQUANTIZE):
        yield from _pair(node, rules)
    elif node.op_type in PRODUCTS:
        yield from _product(node)


def _pair(node: ir.Node, rules: Int8Rules) -> Iterator[str]:
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
    readers = consumers(node.outputs[0])
    if node.op_type == QUANTIZE and any(reader.op_type != DEQUANTIZE for reader in readers):
        yield f"{node.name}: its integers are read by {readers[0].op_type}, not by a {DEQUANTIZE}"
    weight = constant(node.inputs[0])
    if node.op_type == DEQUANTIZE and weight is None and producer(node.inputs[0], QUANTIZE) is None:
        yield f"{node.name}: what it reads is neither a constant nor a {QUANTIZE}"
    if node.op_type == DEQUANTIZE and weight is not None and scale.ndim:
        axis = int(attribute(node, "axis", 1))
        if weight.shape[axis] != scale.size:
            yield f"{node.name}: {scale.size} scales along an axis of {weight.shape[axis]}"


def _product(node: ir.Node) -> Iterator[str]:
    """Both factors are integers or neither: a single Q/DQ costs its conversion and brings no integer kernel.

    What a convolution has written as integers may well be read in float.
    """
    left, right = (producer(value, DEQUANTIZE) for value in node.inputs[:2])
    quantizer = producer(left.inputs[0], QUANTIZE) if left is not None else None
    source = producer(quantizer.inputs[0]) if quantizer is not None else None
    written = source is not None and source.op_type in PRODUCTS
    if (left is None) != (right is None) and not (right is None and written):
        yield f"{node.name}: only one of its two factors is quantized"
