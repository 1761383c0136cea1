"""Weights rounded for what their layer computes: never worse than to nearest, much better where inputs correlate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.graph.qdq import quantize_weight
from vitdeploy.quantize.rounding import LIMITS, output_errors, round_weight


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
