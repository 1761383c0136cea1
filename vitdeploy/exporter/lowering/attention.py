"""vitdeploy::CrossAttention in the form that runtimes fuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.exporter.composites import CROSS_ATTENTION, DOMAIN
from vitdeploy.graph.edit import Builder, attribute, dtype_of, input_of, replace, shape_of


def lower_attention(model: ir.Model) -> list[str]:
    """Replace every CrossAttention by standard operators; returns one line for each.

    The scale multiplies the query before the first product and nothing but the bias stands between the two products, on
    rank 4 with the key transposed by a Transpose that layout passes can merge. The order is the one that TensorRT's
    fused attention and OpenVINO's Snippets match.
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
    if scale != 1:
        query = add.op("Mul", [query, add.constant(scale, "scale")], query.shape)
    transposed = add.op("Transpose", [key], [batch, heads, d, m], perm=[0, 1, 3, 2])
    out_shape = shape_of(node.outputs[0])
    score_shape = [*out_shape[:3], m]
    scores = add.op("MatMul", [query, transposed], score_shape)
    if bias:
        scores = add.op("Add", [scores, bias[0]], score_shape)
    weights = add.op("Softmax", [scores], score_shape, axis=-1)
    return add.op("MatMul", [weights, value], out_shape)
