"""How many operations a graph computes, node by node; a multiplication and an addition are two."""

from __future__ import annotations

import math

import onnx_ir as ir

from vitdeploy.graph.edit import constant
from vitdeploy.graph.traffic import MOVING, VIEWS

PRODUCTS = frozenset({"MatMul", "MatMulInteger", "Gemm", "Conv", "ConvInteger", "ConvTranspose", "Attention"})


def flop_by_node(graph: ir.Graph) -> dict[str, int | None]:
    """The operations of every node that depends on an input of `graph`, by name; None where a shape is not known.

    Products count by their formula. Everything else that computes counts one for each element of its largest computed
    operand or result, and what only moves data counts nothing. What depends on no input is computed by no engine.
    """
    live = {value for value in graph.inputs if constant(value) is None}
    found: dict[str, int | None] = {}
    for node in graph:
        if any(value in live for value in node.inputs):
            live |= set(node.outputs)
            found[str(node.name)] = _flop(node, live)
    return found


def _flop(node: ir.Node, live: set[ir.Value]) -> int | None:
    if node.op_type in VIEWS | MOVING:
        return 0
    try:
        if node.op_type in PRODUCTS:
            return _product(node)
        return max(math.prod(_shape(value)) for value in (*node.inputs, *node.outputs) if value in live)
    except _UnknownShapeError:
        return None


def _product(node: ir.Node) -> int:
    left, right, out = (_shape(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
    match node.op_type:
        case "Attention":  # query by key and weights by value, for every key
            return 2 * right[-2] * (math.prod(left) + math.prod(out))
        case "Conv" | "ConvInteger":
            steps = math.prod(right[1:])
        case "ConvTranspose":  # every pixel of the input is multiplied with a kernel for each map of its group
            return 2 * math.prod(left) * math.prod(right[1:]) + _bias(node, out)
        case "Gemm":
            steps = left[0] if node.attributes.get_int("transA", 0) else left[1]
        case _:
            steps = left[-1]
    return 2 * math.prod(out) * steps + _bias(node, out)


def _bias(node: ir.Node, out: tuple[int, ...]) -> int:
    biased = node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2 and node.inputs[2] is not None
    return math.prod(out) if biased else 0


class _UnknownShapeError(Exception):
    """A shape is not known, or not in numbers."""


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    if value is None or value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        raise _UnknownShapeError
    return tuple(int(dim) for dim in value.shape if isinstance(dim, int))
