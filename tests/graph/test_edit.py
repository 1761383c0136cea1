"""What a graph lacks is said in words; constants are replaced for one node and keep their names where they can."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph_cases import batch, parsed, run
from vitdeploy.errors import ExportError
from vitdeploy.graph.edit import (
    constant,
    dtype_of,
    graph_of,
    input_of,
    is_weight,
    need,
    set_constant,
    shape_of,
)


def test_what_is_there_is_given_as_it_is() -> None:
    model = parsed("g (float[2, 3] x) => (float[2, 3] y) { y = Clip (x) }")
    (node,) = model.graph
    assert need(0, "a number") == 0
    assert shape_of(node.outputs[0]) == ir.Shape([2, 3])
    assert dtype_of(node.outputs[0]) == ir.DataType.FLOAT
    assert input_of(node, 0) is model.graph.inputs[0]
    assert graph_of(node) is model.graph


@pytest.mark.parametrize(
    ("ask", "missing"),
    [
        (lambda node: shape_of(node.outputs[0]), "the shape of h"),
        (lambda node: dtype_of(node.outputs[0]), "the type of h"),
        (lambda node: input_of(node, 0), "input 0 of Clip n"),
        (lambda node: input_of(node, 3), "input 3 of Clip n"),
        (graph_of, "a graph around Clip n"),
    ],
)
def test_what_is_missing_is_named(ask: Callable[[ir.Node], object], missing: str) -> None:
    node = ir.node("Clip", [None, ir.Value(name="low")], name="n", outputs=[ir.Value(name="h")])
    with pytest.raises(ExportError, match=rf"does not state {missing}(.|\n)*infer_shapes"):
        ask(node)


def test_a_weight_may_stand_behind_quantization() -> None:
    body = "d = DequantizeLinear (i, s) q = QuantizeLinear (x, s) e = DequantizeLinear (q, s) y = MatMul (e, d)"
    weights = {"i": np.ones((4, 4), np.int8), "s": np.asarray(0.5, np.float32)}
    model = parsed(f"g (float[4, 4] x) => (float[4, 4] y) {{ {body} }}", **weights)
    product = model.graph[-1]
    assert [is_weight(value) for value in product.inputs] == [False, True]
    assert is_weight(model.graph.initializers["s"])
    assert not is_weight(None)


def test_a_constant_is_changed_for_one_node_and_left_to_the_others() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { a = Add (x, w) y = Mul (a, w) }", w=batch(2))
    add, mul = model.graph
    set_constant(add, 1, np.zeros(2, np.float32), "weight")
    assert [str(node.inputs[1].name) for node in (add, mul)] == ["w_1", "w"]
    np.testing.assert_array_equal(run(model, {"x": batch(2, seed=1)})[0], batch(2, seed=1) * batch(2))
    set_constant(mul, 1, np.ones(2, np.float32), "weight")
    assert [str(node.inputs[1].name) for node in (add, mul)] == ["w_1", "w"], "the last consumer takes the name over"
    assert set(model.graph.initializers) == {"w", "w_1"}
    np.testing.assert_array_equal(constant(mul.inputs[1]), np.ones(2, np.float32))


def test_a_constant_of_its_own_is_added_where_an_input_is_left_out() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = Clip (x) }")
    (node,) = model.graph
    node.name = "block/Clip"
    set_constant(node, 2, np.asarray(0.0, np.float32), "high")
    assert [value and value.name for value in node.inputs] == ["x", None, "block/high"]
    assert run(model, {"x": np.asarray([-1.0, 1.0], np.float32)})[0].tolist() == [-1.0, 0.0]
