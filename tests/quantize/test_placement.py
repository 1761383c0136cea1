from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph_cases import batch, parsed, run
from tests.quantize.blocks import network
from tests.rows import RULES, TARGETS
from vitdeploy.graph.qdq import S8
from vitdeploy.quantize.placement import Layer, place, restrict, tensors
from vitdeploy.targets import Int8Rules


def by_name(rules: Int8Rules) -> dict[str, Layer]:
    return {layer.node: layer for layer in place(network().graph, rules)}


def test_linear_layers_and_dense_convolutions_are_quantized_and_the_rest_says_why_not() -> None:
    layers = by_name(RULES["portable"])
    quantized = {name for name, layer in layers.items() if layer.quantized}
    assert quantized == {"stem_Conv", "down_Conv", "q_MatMul", "k_MatMul", "v_MatMul", "fc_MatMul", "head_Gemm"}
    assert "depthwise" in str(layers["pos_Conv"].obstacle)
    assert "attention" in str(layers["scores_MatMul"].obstacle)
    assert "attention" in str(layers["mixed_MatMul"].obstacle)


def test_macs_are_those_of_one_image() -> None:
    layers = by_name(RULES["portable"])
    assert layers["stem_Conv"].macs == 8 * 8 * 16 * 27
    assert layers["pos_Conv"].macs == 4 * 4 * 32 * 9
    assert layers["fc_MatMul"].macs == 16 * 32 * 64
    assert layers["scores_MatMul"].macs == 16 * 16 * 32
    assert layers["head_Gemm"].macs == 64 * 24


def test_the_axis_of_the_scales_is_that_of_the_output_channels() -> None:
    layers = by_name(RULES["portable"])
    assert [layers[name].axis for name in ("stem_Conv", "fc_MatMul", "head_Gemm")] == [0, 1, 1]


def test_attention_products_are_quantized_on_both_inputs_where_the_target_gains() -> None:
    layers = by_name(replace(RULES["portable"], attention=S8))
    assert layers["scores_MatMul"].activations == (0, 1)
    assert layers["mixed_MatMul"].quantized


@pytest.mark.parametrize("product", ["MatMul(tokens, x)", "MatMul(x, keys)"])
def test_a_product_with_a_constant_that_is_no_weight_stays_in_float(product: str) -> None:
    """As of queries that are learned: a single factor in integers would bring no integer kernel."""
    model = parsed(
        f"agraph (float[1,2,16,16] x) => (y) {{ [one] y = {product} }}",
        **{name: batch(1, 2, 16, 16, seed=3) for name in ("tokens", "keys") if name in product},
    )
    (layer,) = place(model.graph, replace(RULES["portable"], attention=S8))
    assert "one of its factors is a constant" in str(layer.obstacle)


def test_narrow_products_stay_in_float() -> None:
    layers = by_name(replace(RULES["portable"], min_channels=32))
    assert layers["head_Gemm"].obstacle == "fewer than 32 channels"
    assert layers["fc_MatMul"].quantized


def test_layers_that_read_one_tensor_share_it() -> None:
    model = network()
    read = tensors(model.graph, place(model.graph, RULES["portable"]))
    assert [layer.node for layer in read["norm"]] == ["q_MatMul", "k_MatMul", "v_MatMul"]
    assert set(read) == {"images", "act", "norm", "sum", "pooled"}


def test_a_target_whose_convolutions_write_integers_observes_what_they_write() -> None:
    model = network()
    read = tensors(model.graph, place(model.graph, RULES["onnxruntime"]))
    assert read["down"] == []
    assert "stem" not in read  # three channels: faster in float


def test_restricting_keeps_the_first_reason() -> None:
    plan = place(network().graph, RULES["portable"])
    first = restrict(plan, lambda layer: "mine" if layer.node == "fc_MatMul" else None)
    second = restrict(first, lambda layer: "later")
    reasons = {layer.node: layer.obstacle for layer in second}
    assert reasons["fc_MatMul"] == "mine"
    assert reasons["q_MatMul"] == "later"
    assert "depthwise" in str(reasons["pos_Conv"])


def test_every_target_has_rules_and_those_that_tensorrt_reads_are_symmetric() -> None:
    for name, target in TARGETS.items():
        rules = RULES[name]
        if "tensorrt" in target.runtimes:
            assert rules.activation == S8
            assert not rules.int32_bias


# What lies between the maps a and b, [1, 16, 12, 12] each, and k [1, 32, 12, 12], which a convolution reads.
JOIN = "j = Concat <axis = 1> (a, b)"
BETWEEN = {
    "nothing": f"{JOIN} k = Identity (j)",
    "of the image": "k = Concat <axis = 1> (x, x, x, x)",
    "an addition": f"{JOIN} k = Add (j, number)",
    "a subtraction": f"{JOIN} k = Sub (j, channel)",
    "a scale": f"{JOIN} k = Mul (j, channel)",
    "a norm": f"{JOIN} k = BatchNormalization (j, gamma, beta, beta, gamma)",
    "relu": f"{JOIN} k = Relu (j)",
    "clip": f"{JOIN} k = Clip (j, low, high)",
    "another order": f"{JOIN} t = Transpose <perm = [0, 2, 3, 1]> (j) k = Transpose <perm = [0, 3, 1, 2]> (t)",
    "another shape": f"{JOIN} t = Reshape (j, tokens) k = Reshape (t, map)",
    "rows": "c = Concat <axis = 1> (a, b) s, t = Split <axis = 2> (c) k = Concat <axis = 2> (s, t)",
    "swish": f"{JOIN} s = Sigmoid (j) k = Mul (j, s)",
    "leaky relu": f"{JOIN} k = LeakyRelu (j)",
    "a mean": f"{JOIN} k = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (j)",
    "a part": "j = Concat <axis = 1> (a, b, a) k = Slice (j, start, end, one)",
    "depthwise": f"{JOIN} k = Conv <group = 32, pads = [1, 1, 1, 1]> (j, depthwise)",
    "a sum": f"{JOIN} l = Concat <axis = 1> (b, a) k = Add (j, l)",
    "a gate": f"{JOIN} g = GlobalAveragePool (j) k = Mul (j, g)",
    "no join": "k = Conv (x, wide)",
}
RIGHT = ("swish", "leaky relu", "a mean", "a part", "depthwise", "a sum", "a gate", "no join")


def joined(body: str, tail: str) -> ir.Model:
    weights = {
        "w_a": batch(16, 8, 1, 1, seed=1),
        "w_b": batch(16, 8, 1, 1, seed=2),
        "wide": batch(32, 8, 1, 1, seed=3),
        "depthwise": batch(32, 1, 3, 3, seed=4),
        "kernel": batch(16, 32, 3, 3, seed=9),
        # Half of the range, so that no products overflow where the processor has no VNNI.
        "weight": np.random.default_rng(5).integers(-63, 64, (16, 32, 3, 3)).astype(np.int8),
        "weight_scale": np.full(16, 0.006, np.float32),
        "zeros": np.zeros(16, np.int8),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
        "number": np.array(0.3, np.float32),
        "channel": np.abs(batch(1, 32, 1, 1, seed=6)) + 0.1,
        "gamma": np.abs(batch(32, seed=7)) + 0.5,
        "beta": batch(32, seed=8),
        "low": np.array(-13, np.float32),
        "high": np.array(13, np.float32),
        "tokens": np.array([1, 32, 144]),
        "map": np.array([1, 32, 12, 12]),
        **{name: np.array([value]) for name, value in (("start", 0), ("end", 32), ("one", 1))},
    }
    text = f"""<ir_version: 10, opset_import: ["": 17]> agraph (float[1, 8, 12, 12] x) => (float[1, 16, 12, 12] y) {{
        a = Conv (x, w_a) b = Conv (x, w_b) {body} {tail}
    }}"""
    words = set(re.findall(r"\w+", text))
    return parsed(text, **{name: array for name, array in weights.items() if name in words})


@pytest.mark.parametrize("name", BETWEEN)
def test_convolutions_of_joined_maps_stay_in_float_where_openvino_is_wrong(name: str, tmp_path: Path) -> None:
    """The rule is no wider and no narrower than the fault."""
    openvino = pytest.importorskip("openvino")
    dequantized = "w = DequantizeLinear <axis = 0> (weight, weight_scale, zeros) y = Conv <pads = [1, 1, 1, 1]> (d, w)"
    pair = f"q = QuantizeLinear (k, scale, zero) d = DequantizeLinear (q, scale, zero) {dequantized}"
    model, x = joined(BETWEEN[name], pair), batch(1, 8, 12, 12)
    ir.save(model, tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (expected,), found = run(model, {"x": x}), compiled([x])[0]
    noise = np.square(found - expected).sum()
    right = bool(noise <= 1e-4 * np.square(expected).sum())  # a value on the border of two integers may go either way
    assert right == (name in RIGHT), "OpenVINO has changed: see Int8Rules.joined_convolutions"
    layers = place(joined(BETWEEN[name], "y = Conv <pads = [1, 1, 1, 1]> (k, kernel)").graph, RULES["portable"])
    assert layers[-1].quantized == right, layers[-1].obstacle


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_only_convolutions_of_images_become_integer(operator: str, rank: int) -> None:
    model = parsed(
        f"agraph (float{[2, 32, *[6] * rank]} x) => (y) {{ y = {operator} (x, w) }}",
        w=batch(32, 32, *[3] * rank),
    )
    (layer,) = place(model.graph, RULES["portable"])
    assert layer.obstacle == "only convolutions of images become integer"
