"""Bytes that operators read and write."""

from __future__ import annotations

import onnx_ir as ir

from vitdeploy.graph.traffic import bytes_moved

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def _value(name: str, dtype: ir.DataType | None, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype) if dtype else None)


def test_every_operator_counts_what_it_reads_and_writes() -> None:
    x, weight = _value("x", FLOAT, "batch", 10, 4), _value("w", HALF, 4, 8)
    half, product = _value("half", HALF, "batch", 10, 4), _value("product", HALF, "batch", 10, 8)
    nodes = [
        ir.Node("", "Cast", [x], outputs=[half]),
        ir.Node("", "MatMul", [half, weight], outputs=[product]),
    ]
    graph = ir.Graph([x], [product], nodes=nodes, initializers=[])
    assert bytes_moved(graph) == (40 * 4 + 40 * 2) + (40 * 2 + 32 * 2 + 80 * 2)


def test_a_view_and_a_tensor_of_unknown_shape_count_for_nothing() -> None:
    x, view, unknown = _value("x", FLOAT, 1, 12), _value("view", FLOAT, 3, 4), _value("unknown", None, 3)
    nodes = [
        ir.Node("", "Reshape", [x, None], outputs=[view]),
        ir.Node("", "Relu", [view], outputs=[unknown]),
    ]
    assert bytes_moved(ir.Graph([x], [unknown], nodes=nodes)) == 12 * 4
