"""Operations that nodes compute, by hand and against the definition."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import examples
from vitdeploy.graph.flop import flop_by_node
from vitdeploy.graph.onnx_file import read_graph


def flop(operator: str, *shapes: tuple[int | str, ...], weights: int = 0, **attributes: object) -> int | None:
    """Of one node, whose last `weights` inputs are constants."""
    names = [f"x{index}" for index in range(len(shapes))]
    split = len(shapes) - weights
    inputs = [helper.make_tensor_value_info(*pair) for pair in _typed(names[:split], shapes)]
    constants = [
        numpy_helper.from_array(np.zeros(shape, np.float32), name)
        for name, shape in zip(names[split:], shapes[split:], strict=True)
    ]
    node = helper.make_node(operator, names, ["y"], name="node", **attributes)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", inputs, [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return flop_by_node(read_graph(model.SerializeToString()).graph)["node"]


def _typed(names: list[str], shapes: tuple[tuple[int | str, ...], ...]) -> list[tuple[str, int, tuple[int | str, ...]]]:
    return [(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=False)]


def test_products_count_a_multiplication_and_an_addition_for_each_step() -> None:
    assert flop("MatMul", (2, 3, 4), (4, 5), weights=1) == 2 * (2 * 3 * 5) * 4
    assert flop("MatMul", (2, 3, 4), (2, 4, 5)) == 2 * (2 * 3 * 5) * 4
    assert flop("Gemm", (3, 4), (4, 5), (5,), weights=2) == 2 * 15 * 4 + 15
    assert flop("Gemm", (4, 3), (5, 4), weights=1, transA=1, transB=1) == 2 * 15 * 4
    assert flop("Conv", (1, 6, 8, 8), (10, 3, 3, 3), (10,), weights=2, group=2) == 2 * (10 * 6 * 6) * 27 + 360
    assert flop("ConvTranspose", (1, 6, 4, 4), (6, 5, 2, 2), weights=1, strides=[2, 2]) == 2 * (6 * 16) * (5 * 4)
    # 2 heads: 3 queries by 7 keys of 4, and the 7 weights by values of 5
    assert flop("Attention", (1, 2, 3, 4), (1, 2, 7, 4), (1, 2, 7, 5)) == 2 * 2 * 3 * 7 * (4 + 5)
    assert flop("Attention", (1, 3, 8), (1, 7, 8), (1, 7, 8), q_num_heads=2, kv_num_heads=2) == 2 * 2 * 3 * 7 * 8


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(4, 7))
@settings(max_examples=examples(40))
def test_a_transposed_convolution_computes_what_the_convolution_backwards_does(
    maps: int, wide: int, kernel: int, stride: int, size: int
) -> None:
    """The convolution from its output back to its input multiplies the same pairs."""
    forward = flop("Conv", (1, wide, size, size), (maps, wide, kernel, kernel), weights=1, strides=[stride, stride])
    out = (size - kernel) // stride + 1
    back = flop("ConvTranspose", (1, maps, out, out), (maps, wide, kernel, kernel), weights=1, strides=[stride, stride])
    assert back == forward


@pytest.mark.parametrize(
    ("operator", "shapes", "expected"),
    [
        ("Add", ((2, 3, 4), (4,)), 24),
        ("Softmax", ((2, 3),), 6),
        ("ReduceMean", ((2, 3, 4),), 24),
        ("LayerNormalization", ((2, 3, 4), (4,)), 24),
        ("GlobalAveragePool", ((1, 3, 8, 8),), 192),
        ("Transpose", ((2, 3),), 0),
        ("Flatten", ((2, 3, 4),), 0),
        ("Identity", ((2, 3),), 0),
    ],
)
def test_the_rest_counts_one_for_each_element_and_movement_nothing(
    operator: str, shapes: tuple[tuple[int, ...], ...], expected: int
) -> None:
    assert flop(operator, *shapes) == expected


def test_what_is_computed_from_weights_alone_or_has_no_known_shape_is_told() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    nodes = [
        helper.make_node("Neg", ["w"], ["v"], name="folded"),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="product"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]))
    assert flop_by_node(read_graph(model.SerializeToString()).graph) == {"product": 2 * 8 * 4}
    assert flop("MatMul", ("batch", 3), (3, 5), weights=1) is None
    onnx.checker.check_model(model)
