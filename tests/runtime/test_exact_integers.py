"""INT8 layers give what the graph says, also where the processor adds pairs of products in 16 bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import examples
from vitdeploy.runtime.backends import find_backend

DEPTH = 64
STEP = np.float32(1 / 64)  # a power of two: products and sums of the integers are exact in FP32


def dequantized(name: str, axis: int | None = None) -> onnx.NodeProto:
    given_axis = {} if axis is None else {"axis": axis}
    return helper.make_node("DequantizeLinear", [f"{name}.q", "step", f"{name}.zero"], [name], **given_axis)


def quantized_layer(operator: str, kind: type, weights: np.ndarray) -> bytes:
    """`operator` of an input [1, DEPTH] or [1, DEPTH, 3, 3] quantized to `kind` and `weights` quantized to int8."""
    shape = [1, DEPTH] if operator == "MatMul" else [1, DEPTH, 3, 3]
    constants = {
        "step": np.asarray(STEP),
        "x.zero": np.asarray(0, kind),
        "w.zero": np.asarray(0, np.int8),
        "w.q": weights,
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["images", "step", "x.zero"], ["x.q"]),
            dequantized("x"),
            dequantized("w"),
            helper.make_node(operator, ["x", "w"], ["logits"]),
        ],
        "layer",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
@given(seed=st.integers(0, 2**32 - 1), largest=st.booleans())
@settings(max_examples=examples(8), deadline=None)
def test_products_do_not_overflow(runtime: str, kind: type, operator: str, seed: int, largest: bool) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.choice([-127, 127], (DEPTH, 8)) if largest else rng.integers(-127, 128, (DEPTH, 8))
    bounds = np.iinfo(kind)
    codes = rng.integers(bounds.max // 2, bounds.max + 1, (1, DEPTH) if operator == "MatMul" else (1, DEPTH, 3, 3))
    signs = np.sign(weights[:, 0]) if kind is np.int8 else np.ones(DEPTH)
    codes = codes * signs.reshape(1, DEPTH, *[1] * (codes.ndim - 2)).astype(np.int64)
    if operator == "MatMul":
        shipped, exact = weights, codes @ weights
    else:
        shipped, exact = weights.T.reshape(8, DEPTH, 1, 1), np.einsum("nchw,co->nohw", codes, weights)
    model = quantized_layer(operator, kind, shipped.astype(np.int8))
    pytest.importorskip(runtime)
    backend = find_backend(runtime).load(model)
    found = backend.run({"images": codes.astype(np.float32) * STEP})["logits"]
    backend.close()
    np.testing.assert_array_equal(found, exact.astype(np.float32) * STEP * STEP)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_strided_convolution_between_transposes_keeps_its_stride(runtime: str, stride: int) -> None:
    """OpenVINO 2026.4 takes it for a MatMul where it computes with integer weights in FP32."""
    pytest.importorskip(runtime)
    rng = np.random.default_rng(0)
    weights, codes = rng.integers(-127, 128, (8, DEPTH, 1, 1)), rng.integers(-127, 128, (1, 4, 4, DEPTH))
    model = onnx.load_from_string(quantized_layer("Conv", np.int8, weights.astype(np.int8)))
    (layer,) = (node for node in model.graph.node if node.op_type == "Conv")
    layer.input[0], layer.output[0] = "maps", "strided"
    layer.attribute.append(helper.make_attribute("strides", [stride, stride]))
    model.graph.node.insert(2, helper.make_node("Transpose", ["x"], ["maps"], perm=[0, 3, 1, 2]))
    model.graph.node.append(helper.make_node("Transpose", ["strided"], ["logits"], perm=[0, 2, 3, 1]))
    for axis, length in zip(model.graph.input[0].type.tensor_type.shape.dim, codes.shape, strict=True):
        axis.dim_value = length
    backend = find_backend(runtime).load(model.SerializeToString())
    found = backend.run({"images": codes.astype(np.float32) * STEP})["logits"]
    backend.close()
    exact = codes[:, ::stride, ::stride] @ weights[:, :, 0, 0].T
    np.testing.assert_array_equal(found, exact.astype(np.float32) * STEP * STEP)
