"""LayerNormalization in primitive operators, for parsers that do not know it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.half_parts import keep_single
from vitdeploy.graph.edit import Builder, attribute, dtype_of, input_of, of_type, replace, shape_of, sizes
from vitdeploy.targets import Target

REASON = "layer norm in primitive operators: its variance and epsilon need FP32"


def lower_layer_norm(model: ir.Model, target: Target) -> list[str]:
    """Where the target wants `decomposed`, replace every LayerNormalization; returns one line for each.

    One over a single element is replaced everywhere: ONNX Runtime 1.23 refuses it.

    The order is mean, centred, variance, plus epsilon, root, quotient, scale, shift. All of it is marked to stay FP32:
    squares overflow half precision from 256 on, and an epsilon of 1e-6 is below its normal range.
    """
    changes = []
    for node in of_type(model.graph, "LayerNormalization"):
        if target.layer_norm != "decomposed" and not _of_one_element(node):
            continue
        replace(node, _decomposed(model.graph, node))
        changes.append(f"{node.name}: decomposed, FP32 inside")
    return changes


def _of_one_element(node: ir.Node) -> bool:
    shape = sizes(input_of(node, 0))
    return shape is not None and all(size == 1 for size in shape[int(attribute(node, "axis", -1)) % len(shape) :])


def _decomposed(graph: ir.Graph, node: ir.Node) -> ir.Value:
    x, (scale, *shift) = input_of(node, 0), node.inputs[1:]
    add, shape = Builder(graph, node), shape_of(x)
    rank = len(shape)
    axes = list(range(int(attribute(node, "axis", -1)) % rank - rank, 0))
    reduced = [*shape[: rank + axes[0]], *[1] * len(axes)]
    epsilon = add.constant(np.asarray(attribute(node, "epsilon", 1e-5), dtype=dtype_of(x).numpy()), "epsilon")

    def mean(value: ir.Value) -> ir.Value:
        # Opset 20, like every graph before it is restated for its target.
        return add.op(
            "ReduceMean", [value, add.constant(np.asarray(axes, dtype=np.int64), "axes")], reduced, keepdims=1
        )

    centred = add.op("Sub", [x, mean(x)], shape)
    variance = mean(add.op("Mul", [centred, centred], shape))
    deviation = add.op("Sqrt", [add.op("Add", [variance, epsilon], reduced)], reduced)
    out = add.op("Mul", [add.op("Div", [centred, deviation], shape), scale], shape)
    if shift and shift[0] is not None:
        out = add.op("Add", [out, shift[0]], shape)
    for made in add.made:
        keep_single(made, REASON)
    return out
