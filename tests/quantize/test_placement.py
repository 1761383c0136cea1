from __future__ import annotations

from dataclasses import replace

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
