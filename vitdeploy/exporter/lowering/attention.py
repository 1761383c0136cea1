"""vitdeploy::CrossAttention in the form that runtimes fuse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.composites import CROSS_ATTENTION, DOMAIN, MASKED
from vitdeploy.graph.edit import Builder, attribute, constant, dtype_of, input_of, replace, shape_of

# Operators whose results are finite whatever made their inputs: no mask comes from beyond them.
_FINITE_RESULTS = """
    AveragePool BatchNormalization Conv ConvTranspose CrossAttention Deconvolution Einsum Gelu Gemm GlobalAveragePool
    HardSigmoid HardSwish InstanceNormalization LayerNormalization MatMul ReduceMean ReduceSum Shape Sigmoid Softmax
    Tanh
"""
_FINITE = frozenset(_FINITE_RESULTS.split())
_Size = int | ir.SymbolicDim
_INFINITE = 1e38  # two such numbers may add up to infinity
_LOWEST = float(np.finfo(np.float32).min)


def lower_attention(model: ir.Model) -> list[str]:
    """Replace every CrossAttention by standard operators; returns one line for each.

    The scale multiplies the query before the first product and nothing but the bias stands between the two products, on
    rank 4 with the key transposed by a Transpose that layout passes can merge. The order is the one that TensorRT's
    fused attention and OpenVINO's Snippets match. A key is hidden by a finite bias, and where a query may see no key
    at all, its result is multiplied by 0: behind the second product, where no fusion is in the way.
    """
    changes = []
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == CROSS_ATTENTION:
            replace(node, _matmul(model.graph, node))
            changes.append(f"{node.name}: lowered to two MatMul and a Softmax")
    return changes


def _matmul(graph: ir.Graph, node: ir.Node) -> ir.Value:
    query, key, (value, *bias) = input_of(node, 0), input_of(node, 1), node.inputs[2:]
    add = Builder(graph, node)
    batch, heads, m, d = shape_of(key)
    scale = np.asarray(attribute(node, "scale"), dtype=dtype_of(query).numpy())
    finite, seeing = (None, None) if not bias or bias[0] is None else _finite(add, bias[0], dtype_of(query))
    if scale != 1:
        query = add.op("Mul", [query, add.constant(scale, "scale")], query.shape)
    transposed = add.op("Transpose", [key], [batch, heads, d, m], perm=[0, 1, 3, 2])
    score_shape = _broadcast([*shape_of(query)[:3], m], [batch, heads, 1, m])
    scores = add.op("MatMul", [query, transposed], score_shape)
    if finite is not None:
        score_shape = _broadcast(score_shape, list(shape_of(finite)))
        scores = add.op("Add", [scores, finite], score_shape)
    weights = add.op("Softmax", [scores], score_shape, axis=-1)
    out = add.op("MatMul", [weights, value], shape_of(node.outputs[0]))
    return out if seeing is None else add.op("Mul", [out, seeing], shape_of(node.outputs[0]))


def _finite(add: Builder, bias: ir.Value, dtype: ir.DataType) -> tuple[ir.Value, ir.Value | None]:
    """A bias that hides by a finite number, and 1 where a query sees a key and 0 where it sees none.

    None in place of the second where the bias hides nothing.
    """
    shape, kind = list(shape_of(bias)), dtype.numpy()
    if bias.dtype == ir.DataType.BOOL:
        seen, shown = bias, add.constant(np.asarray(0, kind), "zero")
    elif _may_hide(bias):
        lowest = add.constant(np.asarray(_LOWEST, kind), "lowest")
        seen, shown = add.op("GreaterOrEqual", [bias, lowest], shape, dtype=ir.DataType.BOOL), bias
    else:
        return bias, None
    finite = add.op("Where", [seen, shown, add.constant(np.asarray(MASKED, kind), "masked")], shape, dtype=dtype)
    # Not the largest of the biases themselves, which OpenVINO says is finite where all are -inf.
    counted = add.op("Cast", [seen], shape, dtype=dtype, to=dtype.value)
    axis = add.constant(np.array([-1], np.int64), "last")
    return finite, add.op("ReduceMax", [counted, axis], [*shape[:-1], 1], keepdims=1)


def _may_hide(bias: ir.Value) -> bool:
    """Whether -inf may be among the elements: it takes a constant of that size, or the logarithm of 0."""
    waiting, seen = [bias], {bias}
    while waiting:
        value = waiting.pop()
        array, node = constant(value), value.producer()
        if array is not None:
            if array.dtype.kind == "f" and array.size and float(array.min()) <= -_INFINITE:
                return True
            continue
        if node is None or node.op_type in _FINITE:
            continue
        if node.op_type == "Log":
            return True
        new = [operand for operand in node.inputs if operand is not None and operand not in seen]
        waiting += new
        seen.update(new)
    return False


def _broadcast(first: Sequence[_Size], second: Sequence[_Size]) -> list[_Size]:
    """What two shapes broadcast to, aligned from the right."""
    rank = max(len(first), len(second))
    ones: list[_Size] = [1] * rank
    a, b = ([*ones[len(shape) :], *shape] for shape in (first, second))
    return [other if one == 1 else one for one, other in zip(a, b, strict=True)]
