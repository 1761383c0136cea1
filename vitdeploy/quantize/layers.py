"""What linear layers (MatMul, Gemm) and convolutions have in common: the axes of their weights, and a bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, constant, only_consumer, set_constant
from vitdeploy.graph.qdq import Array


def output_axis(node: ir.Node) -> int:
    """The axis of a layer's weight that is its output channels; of the first two the other one is its inputs."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def per_input(node: ir.Node, numbers: Array) -> Array:
    """A scalar or one number an input channel, shaped as the layer's weight wants it."""
    if not numbers.ndim:
        return numbers
    first = (1, -1) if output_axis(node) == 0 else (-1, 1)
    return numbers.reshape(*first, *((1, 1) if node.op_type == "Conv" else ()))


def add_to_bias(node: ir.Node, more: Array) -> None:
    """Add `more` [channels] to what `node` gives: in its bias, that of the Add behind it, or an Add of its own."""
    if node.op_type in {"Conv", "Gemm"}:
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if node.op_type == "Gemm":
            more = more * attribute(node, "alpha", 1.0) / attribute(node, "beta", 1.0)
        set_constant(node, 2, _sum(bias, more), "bias")
        return
    add = only_consumer(node.outputs[0], "Add")
    for index, value in enumerate(add.inputs if add is not None else ()):
        bias = constant(value)
        if bias is not None and bias.shape[-1:] == more.shape and bias.size == more.size:
            assert add is not None
            set_constant(add, index, _sum(bias, more), "bias")
            return
    _append_bias(node, more.astype(np.float32))


def _append_bias(node: ir.Node, bias: Array) -> None:
    assert node.graph is not None
    out = node.outputs[0]
    after = ir.node("Add", [out, Builder(node.graph, node).constant(bias, "bias")], name=f"{node.name}.shifted")
    new = after.outputs[0]
    new.shape, new.type = out.shape, out.type
    node.graph.insert_after(node, after)
    name, out.name = out.name, f"{node.name}.unshifted"
    new.name = name
    ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
    after.replace_input_with(0, out)


def _sum(bias: Array | None, more: Array) -> Array:
    total: Array = more if bias is None else bias.astype(np.float64) + more
    return total.astype(np.float32)
