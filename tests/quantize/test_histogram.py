"""A histogram that loses nothing when it widens, and the error that it predicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vitdeploy.graph.qdq import S8, U8, QScheme
from vitdeploy.quantize.histogram import BINS, Histogram, Noise

# Of any size, near zero, about and below the smallest width, and nothing but zeros, as a ReLU gives for a whole image.
values_of_any_size = st.one_of(
    npst.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    ),
    npst.arrays(
        np.float32, st.integers(1, 60), elements=st.floats(-(2.0**-13), 2.0**-13, width=32, allow_subnormal=False)
    ),
    npst.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**-107), 2.0**-107, width=32)),
    st.integers(1, 60).map(lambda size: np.zeros(size, np.float32)),
)


def largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.update(part, largest(part))
    return histogram


@given(parts=st.lists(values_of_any_size, min_size=1, max_size=5))
def test_no_value_is_lost_and_each_is_in_the_bin_that_brackets_it(parts: list[np.ndarray]) -> None:
    histogram = filled(*parts)
    values = np.concatenate(parts).astype(np.float64)
    assert histogram.counts.sum() == len(values)
    edges = histogram.edges(-np.inf, np.inf)
    for index in np.flatnonzero(histogram.counts):
        inside = (values > edges[index]) & (values < edges[index + 1])
        on_edge = (values == edges[index]) | (values == edges[index + 1])
        assert inside.sum() <= histogram.counts[index] <= inside.sum() + on_edge.sum()


@given(parts=st.lists(values_of_any_size, min_size=1, max_size=5), seed=st.integers(0, 9))
def test_counts_depend_neither_on_order_nor_on_batches(parts: list[np.ndarray], seed: int) -> None:
    values = np.concatenate(parts)
    shuffled = np.random.default_rng(seed).permutation(values)
    together, apart = filled(shuffled), filled(*parts)
    assert together.width == apart.width
    assert together.zeros == apart.zeros
    np.testing.assert_array_equal(together.counts, apart.counts)


def test_a_batch_of_zeros_leaves_small_values_their_resolution() -> None:
    """Values of 1e-4 would share three bins, were the width that of a first image without any."""
    zeros, values = np.zeros(10_000, np.float32), np.linspace(-1e-4, 1e-4, 10_000, dtype=np.float32)
    assert np.count_nonzero(filled(zeros, values).counts) == np.count_nonzero(filled(values, zeros).counts) > BINS / 2


def test_nothing_but_zeros_has_no_width() -> None:
    histogram = filled(np.zeros(5, np.float32))
    assert (histogram.width, histogram.zeros, histogram.counts.sum()) == (0.0, 5, 5)


def test_the_widest_value_leaves_at_least_half_of_the_bins_in_use() -> None:
    for size in (1e-20, 0.9, 1.0, 1.1, 3e38):
        histogram = filled(np.array([size], dtype=np.float32))
        assert BINS / 2 <= size / histogram.width <= BINS


def test_values_too_small_for_a_reciprocal_count_as_zero() -> None:
    histogram = filled(np.array([1e-44, 0.0, -1e-40], dtype=np.float32))
    assert histogram.counts[BINS - 1] == 3


@pytest.mark.parametrize("size", [1, 1 << 16, (1 << 16) + 1, 200_000])
def test_long_arrays_are_counted_as_numpy_counts_them(size: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    histogram = filled(values)
    bins = np.arange(BINS + 1) * histogram.width
    positive, negative = (np.histogram(side[side >= bins[1]], bins)[0] for side in (values, -values))
    middle = [size - positive.sum() - negative.sum()]
    np.testing.assert_array_equal(histogram.counts, [*negative[:0:-1], *middle, *positive[1:]])


@given(
    seed=st.integers(0, 99), fraction=st.floats(0, 1), scale=st.sampled_from([1e-6, 1.0, 1e5]), shift=st.floats(-3, 3)
)
def test_quantiles_are_those_of_numpy_within_a_bin(seed: int, fraction: float, scale: float, shift: float) -> None:
    values = (np.random.default_rng(seed).normal(shift, 1, 20_000) * scale).astype(np.float32)
    histogram = filled(values)
    # Between two neighbours any value is a quantile: numpy's two closest bracket them.
    lower, upper = (np.quantile(values, fraction, method=method) for method in ("lower", "higher"))
    found = histogram.quantile(fraction, float(values.min()), float(values.max()))
    assert lower - 2 * histogram.width <= found <= upper + 2 * histogram.width
    lower, upper = (np.quantile(np.abs(values), fraction, method=method) for method in ("lower", "higher"))
    found = histogram.magnitude_quantile(fraction, largest(values))
    assert lower - 2 * histogram.width <= found <= upper + 2 * histogram.width


def test_magnitudes_fold_both_sides() -> None:
    values = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    np.testing.assert_array_equal(filled(values).magnitudes(), filled(np.abs(values)).magnitudes())
    assert filled(values).magnitudes().sum() == 5000


@pytest.mark.parametrize("scheme", [S8, U8, QScheme(signed=True, symmetric=False)])
@pytest.mark.parametrize("clip", [1.0, 0.5, 0.1, 0.02])
@pytest.mark.parametrize("shape", ["normal", "relu", "gelu", "softmax", "shifted"])
def test_predicted_noise_is_that_of_the_values_themselves(scheme: QScheme, clip: float, shape: str) -> None:
    x = np.random.default_rng(7).normal(size=100_000).astype(np.float32)
    made = {
        "normal": x,
        "relu": np.maximum(x, 0),
        "gelu": x / (1 + np.exp(-1.702 * x)),
        "softmax": np.exp(x) / 30,
        "shifted": x + 6,
    }
    values = made[shape].astype(np.float32)
    low, high = float(values.min()), float(values.max())
    params = scheme.params(low * clip, high * clip)
    noise = Noise(filled(values), low, high)
    error = params.round_trip(values).astype(np.float64) - values
    assert noise.power(params) == pytest.approx(np.square(error).sum(), rel=0.03)
    assert noise.signal == pytest.approx(np.square(values, dtype=np.float64).sum(), rel=1e-3)


def test_a_value_that_fills_no_bin_has_the_error_of_its_point() -> None:
    values = np.full(10, 2.0, dtype=np.float32)
    noise = Noise(filled(values), 2.0, 2.0)
    assert noise.power(S8.params(-2.0, 2.0)) == pytest.approx(0, abs=1e-10)
    assert noise.power(S8.params(-1.0, 1.0)) == pytest.approx(10.0)
