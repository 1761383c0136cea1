"""A graph with fewer Q/DQ pairs: what computed in 8-bit integers computes in the float type around it again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, constant, graph_of, input_of, need, producer, remove_unused
from vitdeploy.graph.qdq import Array, along

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def quantized_inputs(node: ir.Node) -> list[int]:
    """The inputs of a node that come out of DequantizeLinear; empty for what quantizes itself."""
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        return []
    return [index for index, value in enumerate(node.inputs) if producer(value, DEQUANTIZE) is not None]


def remove_qdq(model: ir.Model, chosen: Callable[[ir.Node], bool]) -> int:
    """Have the chosen nodes read floats, in place; returns how many inputs changed.

    An activation is read as it was before it was quantized. A weight that is stored as integers is multiplied out, so
    that it stays what quantization left of it.
    """
    graph, changed, made = model.graph, 0, dict[ir.Value, ir.Value]()
    for node in list(graph):
        for index in quantized_inputs(node) if chosen(node) else ():
            value = input_of(node, index)
            if value not in made:
                made[value] = _before(need(producer(value), "DequantizeLinear"))
            node.replace_input_with(index, made[value])
            changed += 1
    remove_unused(model)
    return changed


def _before(node: ir.Node) -> ir.Value:
    """What a DequantizeLinear stands for: the input of its QuantizeLinear, or its integers multiplied out."""
    stored = input_of(node, 0)
    source = producer(stored, QUANTIZE)
    if source is not None:
        return input_of(source, 0)
    integers, scale = constant(stored), constant(node.inputs[1])
    if integers is None or scale is None:
        return node.outputs[0]
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    real = _real(integers, scale, zero, int(attribute(node, "axis", 1)))
    builder = Builder(graph_of(node), node)
    builder.scope, _, name = str(node.outputs[0].name).rpartition("/")
    return builder.constant(real, f"{name}.float")


def _real(integers: Array, scale: Array, zero: Array | None, axis: int) -> Array:
    """(integers - zero) * scale in the type of `scale`, computed in float32; what has one dimension is along `axis`."""

    def spread(numbers: Array) -> Array:
        single = numbers.astype(np.float32)
        return single.reshape(()) if single.size == 1 else along(single, axis % integers.ndim, integers.ndim)

    values = integers.astype(np.float32) - (0 if zero is None else spread(zero))
    real: Array = (values * spread(scale)).astype(scale.dtype)
    return real
