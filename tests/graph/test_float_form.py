"""Graphs with fewer Q/DQ pairs compute what is left of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.conftest import examples
from vitdeploy.graph.float_form import quantized_inputs, remove_qdq
from vitdeploy.graph.run import run


def pair(name: str, scale: float = 0.05, kind: type = np.float32) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"], name=f"{name}/Q"),
        helper.make_node("DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"], name=f"{name}/DQ"),
    ]


def network(axis: int, zero: int, kind: type, *, stored: bool = True, scalar: bool = False) -> ir.Model:
    """Two products of one quantized input; the weight of the first is stored as integers, or quantized in the graph."""
    random = np.random.default_rng(0)
    integers = random.integers(-127, 128, (6, 5)).astype(np.int8)
    scales = np.asarray(0.02 if scalar else random.uniform(0.01, 0.05, (6, 5)[axis]), kind)
    zeros = np.full(scales.shape, zero, np.int8)
    factors = scales.astype(np.float32) if scalar else np.expand_dims(scales.astype(np.float32), 1 - axis % 2)
    real = ((integers.astype(np.float32) - zero) * factors).astype(kind)
    weights = {"s": np.asarray(0.05, kind), "z": np.int8(0), "ws": scales, "wz": zeros, "v": real[:, ::-1].copy()}
    first = [helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], name="w/DQ", axis=axis)]
    if stored:
        weights["w8"] = integers
    else:
        weights["w32"] = real
        first = [helper.make_node("QuantizeLinear", ["w32", "ws", "wz"], ["w8"], name="w/Q", axis=axis), *first]
    nodes = [
        *pair("x"),
        *first,
        helper.make_node("MatMul", ["x_d", "w"], ["a"], name="a/MatMul"),
        helper.make_node("MatMul", ["x_d", "v"], ["b"], name="b/MatMul"),
        helper.make_node("Add", ["a", "b"], ["y"], name="y/Add"),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    values = [helper.make_tensor_value_info(name, element, [3, n]) for name, n in (("x", 6), ("y", 5))]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def weight_of(model: ir.Model, name: str) -> np.ndarray:
    node = next(node for node in model.graph if node.name == name)
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    return node.inputs[1].const_value.numpy()


@settings(max_examples=examples(60))
@given(
    axis=st.sampled_from((0, 1, -1, -2)),
    zero=st.sampled_from((0, 3)),
    kind=st.sampled_from((np.float32, np.float16)),
    stored=st.booleans(),
    scalar=st.booleans(),
)
def test_a_weight_is_what_quantization_left_of_it(axis: int, zero: int, kind: type, stored: bool, scalar: bool) -> None:
    if scalar and not stored:
        return
    axis = 0 if scalar else axis
    model = network(axis, zero, kind, stored=stored, scalar=scalar)
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(kind)
    floats = model.clone()
    assert remove_qdq(floats, lambda node: True) == 3
    operators = {node.op_type for node in floats.graph}
    assert operators == {"MatMul", "Add"}
    onnx.checker.check_model(ir.to_proto(floats), full_check=True)
    expected = x.astype(np.float32) @ (weight_of(floats, "a/MatMul") + weight_of(floats, "b/MatMul")).astype(np.float32)
    np.testing.assert_allclose(run(floats, {"x": x})["y"].astype(np.float32), expected, atol=0.02, rtol=0.01)
    # What the weights are in the graph with Q/DQ: the input is on its grid, so that only they count. The reference of
    # the standard says it, for ONNX Runtime before 1.30 does not round FP16 to the nearest integer.
    grid = (0.05 * np.rint(x.astype(np.float32) / 0.05)).astype(kind)
    (wanted,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": grid})
    np.testing.assert_allclose(run(floats, {"x": grid})["y"].astype(np.float32), wanted.astype(np.float32), atol=0.03)
    assert weight_of(floats, "a/MatMul").dtype == np.dtype(kind)


def test_only_the_chosen_nodes_change() -> None:
    model = network(1, 0, np.float32)
    assert remove_qdq(model, lambda node: node.name == "a/MatMul") == 2
    by_name = {str(node.name): node for node in model.graph}
    assert quantized_inputs(by_name["a/MatMul"]) == []
    assert quantized_inputs(by_name["b/MatMul"]) == [0]
    assert {node.op_type for node in model.graph} == {"QuantizeLinear", "DequantizeLinear", "MatMul", "Add"}
    assert remove_qdq(model, lambda node: node.name == "a/MatMul") == 0, "a second time changes nothing"


def test_what_quantizes_reads_nothing_quantized() -> None:
    model = network(1, 0, np.float32)
    assert [node.op_type for node in model.graph if quantized_inputs(node)] == ["MatMul", "MatMul"]


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_the_type_is_that_of_the_scale(kind: type) -> None:
    model = network(1, 0, np.float32)
    for value in model.graph.initializers.values():
        if value.name == "ws" and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(kind), name="ws")
    remove_qdq(model, lambda node: node.name == "a/MatMul")
    assert weight_of(model, "a/MatMul").dtype == np.dtype(kind)
