"""A corrected bias leaves no mean error on the images that it was corrected with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.quantize.blocks import network, photos
from vitdeploy.graph.edit import constant, consumers
from vitdeploy.graph.qdq import S8, QuantParams, quantize_weight
from vitdeploy.quantize.activations import Activations
from vitdeploy.quantize.bias_correction import correct_biases, mean_error
from vitdeploy.quantize.insert import QuantizedWeight, insert
from vitdeploy.quantize.judge import evaluate
from vitdeploy.quantize.moments import Moments
from vitdeploy.quantize.placement import place, restrict
from vitdeploy.quantize.reconstruction import reconstruct
from vitdeploy.targets import Int8Rules

LAYERS = ("stem_Conv", "down_Conv", "q_MatMul", "v_MatMul", "fc_MatMul", "head_Gemm")
RULES = Int8Rules()


@given(seed=st.integers(0, 10_000), axis=st.sampled_from([0, 1]), scale=st.floats(0.005, 0.5))
def test_the_mean_error_is_that_of_the_products(seed: int, axis: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 6)).astype(np.float32)
    inputs = rng.exponential(size=(1, 20, 6)).astype(np.float32)
    params = QuantParams(scale, 0, S8)
    seen = Moments(params=params)
    seen.update(inputs, 1)
    quantized = QuantizedWeight(*quantize_weight(weight, axis))
    matrix = weight if axis == 1 else weight.T  # as x @ matrix takes it
    integers = (quantized.integers if axis == 1 else quantized.integers.T).astype(np.float64)
    exact = inputs[0].astype(np.float64) @ matrix
    rounded = params.round_trip(inputs)[0].astype(np.float64) @ (integers * quantized.scales)
    np.testing.assert_allclose(
        mean_error(weight, axis, quantized, seen), (exact - rounded).mean(axis=0), atol=1e-5, rtol=1e-5
    )


def input_of(model: ir.Model, node: str) -> str:
    """The tensor that the layer reads."""
    value = next(one for one in model.graph if one.name == node).inputs[0]
    assert value is not None
    return str(value.name)


def output_of(model: ir.Model, node: str) -> str:
    """The tensor that holds the layer's output with its bias."""
    value = next(one for one in model.graph if one.name == node).outputs[0]
    readers = consumers(value)
    if len(readers) == 1 and readers[0].op_type == "Add" and constant(readers[0].inputs[1]) is not None:
        value = readers[0].outputs[0]
    return str(value.name)


def means(model: ir.Model, name: str, images: np.ndarray) -> np.ndarray:
    """Mean of each channel of a tensor, float64."""
    model = model.clone()
    value = next(one for node in model.graph for one in node.outputs if one.name == name)
    if not value.is_graph_output():
        model.graph.outputs.append(value)
    found: np.ndarray = evaluate(model, images)[name].astype(np.float64)
    mean: np.ndarray = found.mean(axis=(0, 2, 3) if found.ndim == 4 else tuple(range(found.ndim - 1)))
    return mean


@pytest.mark.parametrize("node", LAYERS)
def test_a_single_corrected_layer_keeps_the_mean_of_its_outputs(node: str) -> None:
    model, images = network(), photos(16)
    plan = restrict(place(model.graph, RULES), lambda layer: None if layer.node == node else "alone")
    source = input_of(model, node)
    read = images if source == "images" else dict(Activations(model, [source])(images))[source]
    ranges = {source: S8.params(-0.3 * np.abs(read).max(), 0.3 * np.abs(read).max())}  # saturates
    found = reconstruct(model, plan, ranges, lambda: [images])[node]

    plain = insert(model, plan, ranges, {node: found.weight}, RULES)
    fixed = correct_biases(model, {node: found.mean_error})
    corrected = insert(fixed, plan, ranges, {node: found.weight}, RULES)
    expected = means(model, output_of(model, node), images)
    before = np.abs(means(plain, output_of(model, node), images) - expected)
    after = np.abs(means(corrected, output_of(fixed, node), images) - expected)
    assert before.max() > 1e-3
    np.testing.assert_allclose(after, 0, atol=2e-5)


def test_only_the_copy_is_corrected_and_computes_the_rest_as_before() -> None:
    model, images = network(), photos(3)
    before = evaluate(model, images)["logits"]
    shift = np.linspace(-1, 1, 24)
    corrected = correct_biases(model, {"head_Gemm": shift})
    np.testing.assert_array_equal(evaluate(model, images)["logits"], before)
    np.testing.assert_allclose(evaluate(corrected, images)["logits"], before + shift, atol=1e-5)


def test_reconstruction_records_what_rounding_and_bias_gained() -> None:
    model, images = network(), photos(32)
    plan = place(model.graph, RULES)
    tensors = {input_of(model, layer.node) for layer in plan if layer.quantized}
    read = dict(Activations(model, sorted(tensors - {"images"}))(images)) | {"images": images}
    ranges = {name: S8.params(values.min(), 0.5 * values.max()) for name, values in read.items()}
    found = reconstruct(model, plan, ranges, lambda: [images[:20], images[20:]])
    assert set(found) == {*LAYERS, "k_MatMul"}
    for one in found.values():
        assert one.rounded_db >= one.nearest_db
        assert one.rounded_db > one.biased_db
        assert one.to_dict() == {
            "rounding_db": [round(one.nearest_db, 2), round(one.rounded_db, 2)],
            "bias_db": [round(one.biased_db, 2), round(one.rounded_db, 2)],
        }
    assert found["stem_Conv"].rounded_db > found["stem_Conv"].nearest_db + 2


def test_reconstruction_brings_the_outputs_nearer_on_other_images() -> None:
    """One layer and inputs that lie on its grid, so that its weights' errors are all there is."""
    model = network()
    images, others = (np.clip(np.round(photos(64, seed), 2), -1.27, 1.27) for seed in (1, 9))
    plan = restrict(place(model.graph, RULES), lambda layer: None if layer.node == "stem_Conv" else "alone")
    ranges = {"images": QuantParams(1e-2, 0, S8)}
    found = reconstruct(model, plan, ranges, lambda: [images])
    nearest = insert(model, plan, ranges, {}, RULES)
    corrected = correct_biases(model, {node: one.mean_error for node, one in found.items()})
    better = insert(corrected, plan, ranges, {node: one.weight for node, one in found.items()}, RULES)
    expected = evaluate(model, others)["logits"]
    noise = [np.square(evaluate(one, others)["logits"] - expected).sum() for one in (nearest, better)]
    assert noise[1] < 0.5 * noise[0]
