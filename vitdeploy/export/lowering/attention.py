"""vitdeploy::CrossAttention in the form that the target fuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitdeploy.export.composites import CROSS_ATTENTION, DOMAIN
from vitdeploy.export.graph import Builder, attribute, replace
from vitdeploy.export.targets import Target


def lower_attention(model: ir.Model, target: Target) -> list[str]:
    """Replace every CrossAttention by standard operators; returns one line for each.

    `matmul` form: the scale multiplies the query before the first product and nothing but the bias stands between the
    two products, on rank 4 with the key transposed by a Transpose that layout passes can merge. The order is the one
    that TensorRT's fused attention and OpenVINO's Snippets match. `attention` form: one ONNX Attention (opset 23).
    """
    changes = []
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == CROSS_ATTENTION:
            out = _attention(model.graph, node) if target.attention == "attention" else _matmul(model.graph, node)
            changes.append(f"{node.name}: lowered to {target.attention}")
            replace(node, out)
    return changes


def _attention(graph: ir.Graph, node: ir.Node) -> ir.Value:
    add, (query, key, value, *bias) = Builder(graph, node), node.inputs
    scale = float(attribute(node, "scale"))
    if bias:  # the operator broadcasts a mask over batch and heads only
        assert query is not None
        assert key is not None
        assert bias[0] is not None
        assert query.shape is not None
        assert key.shape is not None
        assert bias[0].shape is not None
        full = np.asarray([1, 1, query.shape[2], key.shape[2]], dtype=np.int64)
        shape = [*bias[0].shape[:2], *query.shape[2:3], *key.shape[2:3]]
        bias = [add.op("Expand", [bias[0], add.constant(full, "mask.shape")], shape)]
    return add.op("Attention", [query, key, value, *bias], node.outputs[0].shape, scale=scale)


def _matmul(graph: ir.Graph, node: ir.Node) -> ir.Value:
    query, key, value, *bias = node.inputs
    assert query is not None
    assert key is not None
    assert key.shape is not None
    assert query.dtype is not None
    add = Builder(graph, node)
    batch, heads, m, d = key.shape
    scale = np.asarray(attribute(node, "scale"), dtype=query.dtype.numpy())
    if scale != 1:
        query = add.op("Mul", [query, add.constant(scale, "scale")], query.shape)
    transposed = add.op("Transpose", [key], [batch, heads, d, m], perm=[0, 1, 3, 2])
    out_shape = node.outputs[0].shape
    assert out_shape is not None
    score_shape = [*out_shape[:3], m]
    scores = add.op("MatMul", [query, transposed], score_shape)
    if bias:
        scores = add.op("Add", [scores, bias[0]], score_shape)
    weights = add.op("Softmax", [scores], score_shape, axis=-1)
    return add.op("MatMul", [weights, value], out_shape)
