from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from tests.graph_cases import run
from tests.quantize.blocks import network, photos
from tests.rows import RULES
from vitdeploy.graph.edit import constant
from vitdeploy.graph.qdq import QuantParams, quantize_weight
from vitdeploy.quantize.checker import violations
from vitdeploy.quantize.insert import QuantizedWeight, insert
from vitdeploy.quantize.placement import Plan, place, restrict, tensors
from vitdeploy.targets import Int8Rules


def ranges_of(model: ir.Model, plan: Plan, rules: Int8Rules, images: np.ndarray) -> dict[str, QuantParams]:
    """Min-max ranges of what the plan makes integers of."""
    observed = model.clone()
    values = {value.name: value for node in observed.graph for value in node.outputs}
    names = [name for name in tensors(model.graph, plan) if name != "images"]
    observed.graph.outputs.extend(values[name] for name in names)
    found = dict(zip(names, run(observed, {"images": images})[1:], strict=True)) | {"images": images}
    return {name: rules.activation.params(array.min(), array.max()) for name, array in found.items()}


def quantized(target: str, batch: int | str = "batch") -> tuple[ir.Model, ir.Model]:
    model, rules = network(batch), RULES[target]
    plan = place(model.graph, rules)
    count = batch if isinstance(batch, int) else 8
    ranges = ranges_of(model, plan, rules, photos(count))
    return model, insert(model, plan, ranges, {}, rules)


def kernels(model: ir.Model, tmp_path: object) -> Counter[str]:
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{tmp_path}/optimized.onnx"
    options.log_severity_level = 4
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def snr_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


@pytest.mark.parametrize("target", list(RULES))
def test_the_quantized_graph_is_valid_keeps_the_rules_and_is_close(target: str) -> None:
    model, small = quantized(target)
    onnx.checker.check_model(ir.to_proto(small), full_check=True)
    assert violations(small.graph, RULES[target]) == []
    images = photos(8, seed=5)
    assert snr_db(run(model, {"images": images})[0], run(small, {"images": images})[0]) > 25


def test_the_original_is_left_alone() -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString()
    plan = place(model.graph, RULES["portable"])
    insert(model, plan, ranges_of(model, plan, RULES["portable"], photos(4)), {}, RULES["portable"])
    assert ir.to_proto(model).SerializeToString() == before


def test_readers_of_one_tensor_share_one_pair() -> None:
    _, small = quantized("tensorrt10")
    kinds = Counter(node.op_type for node in small.graph)
    assert kinds["QuantizeLinear"] == 5  # images, act, norm, sum, pooled
    assert kinds["DequantizeLinear"] == 5 + 7


def test_every_linear_layer_finds_an_integer_kernel_in_onnxruntime(tmp_path: object) -> None:
    """Without the bias's rank, or the weights' zero points, ONNX Runtime computes them in float."""
    _, small = quantized("portable")
    found = kernels(small, tmp_path)
    assert found["MatMulIntegerToFloat"] == 4  # q, k, v, fc
    assert found["Gemm"] == 1  # the head, whose float bias no integer kernel takes


def test_for_onnxruntime_convolutions_and_biases_are_integer_too(tmp_path: object) -> None:
    _, small = quantized("onnxruntime")
    found = kernels(small, tmp_path)
    assert found["QLinearConv"] == 1  # the stem, of three channels, is faster in float
    assert found["QGemm"] == 1
    assert found["Gemm"] == 0


def test_a_bias_that_int32_cannot_hold_widens_its_channel_only() -> None:
    model, rules = network(), RULES["onnxruntime"]
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    weight, bias = constant(gemm.inputs[1]).copy(), constant(gemm.inputs[2]).copy()
    weight[:, 3] *= 1e-9
    bias[3] = 5.0
    gemm.inputs[1].const_value, gemm.inputs[2].const_value = ir.tensor(weight), ir.tensor(bias)
    plan = restrict(place(model.graph, rules), lambda layer: None if layer.node == "head_Gemm" else "other")
    small = insert(model, plan, ranges_of(model, plan, rules, photos(4)), {}, rules)
    images = photos(4, seed=9)
    expected, found = run(model, {"images": images})[0], run(small, {"images": images})[0]
    assert np.abs(found[:, 3] - 5.0).max() < 1e-2
    assert snr_db(np.delete(expected, 3, 1), np.delete(found, 3, 1)) > 30


def test_a_given_weight_is_taken_as_it_is() -> None:
    model, rules = network(), RULES["portable"]
    plan = restrict(place(model.graph, rules), lambda layer: None if layer.node == "fc_MatMul" else "other")
    ranges = ranges_of(model, plan, rules, photos(4))
    integers, scales = quantize_weight(np.random.default_rng(3).standard_normal((32, 64)), 1)
    small = insert(model, plan, ranges, {"fc_MatMul": QuantizedWeight(integers, scales)}, rules)
    held = [array for value in small.graph.initializers.values() if (array := constant(value)).dtype == np.int8]
    assert any(array.shape == integers.shape and (array == integers).all() for array in held)
