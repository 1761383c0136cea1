"""Weights and biases chosen for what their layer computes: never worse than to nearest, and without a mean error."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.quantize.blocks import evaluate, network, photos
from vitdeploy.graph.edit import constant, consumers
from vitdeploy.graph.qdq import S8, QuantParams, quantize_weight
from vitdeploy.quantize import gptq as gptq_module
from vitdeploy.quantize.activations import Activations
from vitdeploy.quantize.gptq import LIMITS, correct_biases, mean_error, output_errors, round_layers, round_weight
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.moments import SecondMoments
from vitdeploy.quantize.placement import place, restrict
from vitdeploy.targets import Int8Rules


def correlated(inputs: int, seed: int, strength: float = 3.0) -> np.ndarray:
    """A covariance [inputs, inputs] whose eigenvalues span many orders of magnitude."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((inputs, inputs)) * np.exp(-strength * np.linspace(0, 1, inputs))
    metric: np.ndarray = mixing @ mixing.T + 1e-3 * np.eye(inputs)
    return metric


def errors_of(
    weight: np.ndarray, axis: int, integers: np.ndarray, scales: np.ndarray, metric: np.ndarray
) -> np.ndarray:
    """wᵀ H w of the weights' errors, channel by channel in plain Python."""
    shape = [-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)]
    error = weight.astype(np.float64) - integers * scales.astype(np.float64).reshape(shape)
    rows = [np.take(error, index, axis=axis).reshape(-1) for index in range(weight.shape[axis])]
    return np.array([row @ metric @ row for row in rows])


def naive_gptq(row: np.ndarray, scale: float, metric: np.ndarray) -> list[int]:
    """Optimal brain quantization of one channel as the paper states it: invert what remains after every step."""
    row, left, result = row.astype(np.float64).copy(), list(np.argsort(-np.diag(metric), kind="stable")), {}
    while left:
        inverse = np.linalg.inv(metric[np.ix_(left, left)])
        now = left[0]
        result[now] = int(np.clip(np.rint(row[now] / scale), -127, 127))
        row[left] -= inverse[:, 0] * (row[now] - scale * result[now]) / inverse[0, 0]
        left = left[1:]
    return [result[index] for index in range(len(row))]


@given(
    seed=st.integers(0, 10_000),
    form=st.sampled_from([((5, 12), 0), ((12, 5), 1), ((12, 5), -1), ((4, 3, 2, 2), 0), ((3, 4, 2, 2), 1)]),
    strength=st.floats(0, 6),
)
def test_no_channel_errs_more_than_rounded_to_nearest(
    seed: int, form: tuple[tuple[int, ...], int], strength: float
) -> None:
    shape, axis = form
    weight = (np.random.default_rng(seed).standard_normal(shape) ** 3).astype(np.float32)
    metric = correlated(12, seed, strength)
    rounded = round_weight(weight, axis, metric)
    assert rounded.integers.dtype == np.int8
    assert rounded.integers.shape == shape
    assert rounded.integers.min() >= -127
    assert rounded.scales.dtype == np.float32
    assert rounded.scales.shape == (shape[axis],)
    ours = errors_of(weight, axis, rounded.integers, rounded.scales, metric)
    nearest = errors_of(weight, axis, *quantize_weight(weight, axis), metric)
    assert (ours <= nearest * (1 + 1e-9)).all()


@given(seed=st.integers(0, 10_000))
def test_the_integers_are_those_of_gptq_at_the_scale_that_was_taken(seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((3, 9)).astype(np.float32)
    metric = correlated(9, seed)
    rounded = round_weight(weight, 0, metric)
    nearest = quantize_weight(weight, 0)[0]
    for row, integers, scale, plain in zip(weight, rounded.integers, rounded.scales, nearest, strict=True):
        assert integers.tolist() in (naive_gptq(row, float(scale), metric), plain.tolist())


def test_blocks_pass_their_errors_on() -> None:
    weight = np.random.default_rng(3).standard_normal((2, 150)).astype(np.float32)
    metric = correlated(150, 3)
    rounded = round_weight(weight, 0, metric)
    for row, integers, scale in zip(weight, rounded.integers, rounded.scales, strict=True):
        assert integers.tolist() == naive_gptq(row, float(scale), metric)


def test_channels_are_rounded_independently_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(11).standard_normal((7, 20)).astype(np.float32)
    metric = correlated(20, 11)
    whole = round_weight(weight, 0, metric)
    monkeypatch.setattr(gptq_module, "_CHANNELS", 3)
    parts = round_weight(weight, 0, metric)
    np.testing.assert_array_equal(parts.integers, whole.integers)
    np.testing.assert_array_equal(parts.scales, whole.scales)


def test_smooth_images_gain_ten_decibels() -> None:
    """Neighbouring pixels are nearly equal, as in the patches that a first convolution reads."""
    pixels = np.stack(np.meshgrid(np.arange(7), np.arange(7)), axis=-1).reshape(-1, 2)
    metric = 0.97 ** np.linalg.norm(pixels[:, None] - pixels[None], axis=-1)
    weight = np.random.default_rng(0).standard_normal((32, 49)).astype(np.float32)
    rounded = round_weight(weight, 0, metric)
    ours = errors_of(weight, 0, rounded.integers, rounded.scales, metric).sum()
    nearest = errors_of(weight, 0, *quantize_weight(weight, 0), metric).sum()
    assert 10 * np.log10(nearest / ours) > 10


@given(seed=st.integers(0, 10_000), axis=st.sampled_from([0, 1]))
def test_weights_on_the_grid_stay_as_they_are(seed: int, axis: int) -> None:
    rng = np.random.default_rng(seed)
    integers = rng.integers(-127, 128, (6, 6))
    integers[range(6), range(6)] = 127  # every channel fills its range
    scales = np.exp(rng.standard_normal(6)).astype(np.float32)
    weight = integers * scales.reshape((-1, 1) if axis == 0 else (1, -1))
    rounded = round_weight(weight.astype(np.float32), axis, correlated(6, seed))
    np.testing.assert_array_equal(rounded.integers, integers)
    np.testing.assert_allclose(rounded.scales, scales, rtol=1e-6)


@pytest.mark.parametrize("metric", [None, np.eye(24), 7.5 * np.eye(24)], ids=["none", "identity", "white"])
def test_independent_inputs_round_to_nearest_at_the_best_scale(metric: np.ndarray | None) -> None:
    weight = np.random.default_rng(1).standard_t(3, (8, 24)).astype(np.float32)
    rounded = round_weight(weight, 0, metric)
    full = quantize_weight(weight, 0)[1]
    for row, integers, scale, widest in zip(weight, rounded.integers, rounded.scales, full, strict=True):
        np.testing.assert_array_equal(integers, np.clip(np.rint(row / scale), -127, 127))
        tried = [np.float32(widest * np.float32(limit)) for limit in LIMITS]
        errors = [np.square(row - one * np.clip(np.rint(row / one), -127, 127)).sum() for one in tried]
        assert np.square(row - scale * integers).sum() == pytest.approx(min(errors), rel=1e-4)


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    weight[1] = 0
    rounded = round_weight(weight, 0, correlated(8, 2))
    assert not rounded.integers[1].any()
    assert (rounded.scales > 0).all()
    assert np.isfinite(rounded.scales).all()


def test_output_errors_are_the_variances_at_the_outputs() -> None:
    rng = np.random.default_rng(4)
    inputs, errors = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)), rng.standard_normal((3, 6))
    found = output_errors(errors, inputs.T @ inputs / 500)
    np.testing.assert_allclose(found, np.square(inputs @ errors.T).mean(axis=0))


LAYERS = ("stem_Conv", "down_Conv", "q_MatMul", "v_MatMul", "fc_MatMul", "head_Gemm")
RULES = Int8Rules()


@given(seed=st.integers(0, 10_000), axis=st.sampled_from([0, 1]), scale=st.floats(0.005, 0.5))
def test_the_mean_error_is_that_of_the_products(seed: int, axis: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 6)).astype(np.float32)
    inputs = rng.exponential(size=(1, 20, 6)).astype(np.float32)
    params = QuantParams(scale, 0, S8)
    seen = SecondMoments(params=params)
    seen.update(inputs, 1)
    quantized = quantize_weight(weight, axis)
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
    behind = consumers(value)
    if len(behind) == 1 and behind[0].op_type == "Add" and constant(behind[0].inputs[1]) is not None:
        value = behind[0].outputs[0]
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
    found = round_layers(model, plan, ranges, [images])[node]

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


def test_the_record_says_what_rounding_and_bias_gained() -> None:
    model, images = network(), photos(32)
    plan = place(model.graph, RULES)
    tensors = {input_of(model, layer.node) for layer in plan if layer.quantized}
    read = dict(Activations(model, sorted(tensors - {"images"}))(images)) | {"images": images}
    ranges = {name: S8.params(values.min(), 0.5 * values.max()) for name, values in read.items()}
    found = round_layers(model, plan, ranges, [images[:20], images[20:]])
    assert set(found) == {*LAYERS, "k_MatMul"}
    for one in found.values():
        assert one.rounded_db >= one.nearest_db
        assert one.rounded_db > one.biased_db
        assert one.to_dict() == {
            "rounding_db": [round(one.nearest_db, 2), round(one.rounded_db, 2)],
            "bias_db": [round(one.biased_db, 2), round(one.rounded_db, 2)],
        }
    assert found["stem_Conv"].rounded_db > found["stem_Conv"].nearest_db + 2


def test_rounding_brings_the_outputs_nearer_on_other_images() -> None:
    """One layer and inputs that lie on its grid, so that its weights' errors are all there is."""
    model = network()
    images, others = (np.clip(np.round(photos(64, seed), 2), -1.27, 1.27) for seed in (1, 9))
    plan = restrict(place(model.graph, RULES), lambda layer: None if layer.node == "stem_Conv" else "alone")
    ranges = {"images": QuantParams(1e-2, 0, S8)}
    found = round_layers(model, plan, ranges, [images])
    nearest = insert(model, plan, ranges, {}, RULES)
    corrected = correct_biases(model, {node: one.mean_error for node, one in found.items()})
    better = insert(corrected, plan, ranges, {node: one.weight for node, one in found.items()}, RULES)
    expected = evaluate(model, others)["logits"]
    noise = [np.square(evaluate(one, others)["logits"] - expected).sum() for one in (nearest, better)]
    assert noise[1] < 0.5 * noise[0]
