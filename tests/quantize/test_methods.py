"""Each method gives the range that its definition says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.graph.qdq import S8, U8, QScheme
from vitdeploy.quantize.methods import METHODS, entropy, mse, percentile
from vitdeploy.quantize.observers import Statistics

S8_ASYMMETRIC = QScheme(signed=True, symmetric=False)
any_qscheme = pytest.mark.parametrize("scheme", [S8, U8, S8_ASYMMETRIC], ids=["s8", "u8", "s8 asymmetric"])


def statistics_of(values: np.ndarray) -> Statistics:
    statistics = Statistics("t")
    statistics.update(values.astype(np.float32)[None], 1)
    return statistics


def gaussian(seed: int = 0, size: int = 50_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def with_outliers(seed: int = 0) -> np.ndarray:
    values = gaussian(seed)
    values[:5] = 40, -35, 38, 30, -39
    return values


def error(values: np.ndarray, scheme: QScheme, bounds: tuple[float, float]) -> float:
    return float(np.square(scheme.params(*bounds).round_trip(values) - values, dtype=np.float64).mean())


@any_qscheme
@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 99), shift=st.sampled_from([-9.0, -1.0, 0.0, 0.3, 9.0]), size=st.sampled_from([1, 7, 999]))
def test_no_range_reaches_beyond_the_values(method: str, scheme: QScheme, seed: int, shift: float, size: int) -> None:
    values = gaussian(seed, size) + np.float32(shift)
    low, high = METHODS[method](statistics_of(values), scheme)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert min(values.min(), 0) <= low <= high <= max(values.max(), 0)


def test_minmax_is_the_extremes() -> None:
    values = gaussian()
    assert METHODS["minmax"](statistics_of(values), S8) == (values.min(), values.max())


@given(seed=st.integers(0, 99), percent=st.sampled_from([50.0, 90.0, 99.0, 99.9, 99.99]))
def test_percentile_is_that_of_numpy_within_a_bin(seed: int, percent: float) -> None:
    values = with_outliers(seed)
    statistics = statistics_of(values)

    def agrees(found: float, data: np.ndarray, percent: float) -> bool:
        """Any value between two neighbours is the percentile that lies between them."""
        lower, upper = (np.percentile(data, percent, method=method) for method in ("lower", "higher"))
        slack = 2 * statistics.histogram.width
        return bool(lower - slack <= found <= upper + slack)

    tail = (100 - percent) / 2
    low, high = percentile(statistics, U8, percent)
    assert agrees(low, values, tail)
    assert agrees(high, values, 100 - tail)
    low, high = percentile(statistics, S8, percent)
    assert agrees(high, np.abs(values), percent)
    assert low == -high


def test_hundred_percent_is_everything() -> None:
    values = with_outliers()
    assert percentile(statistics_of(values), U8, 100) == (values.min(), values.max())


@any_qscheme
@given(
    seed=st.integers(0, 30),
    kind=st.sampled_from(["gaussian", "outliers", "relu", "heavy", "uniform", "one-sided outlier"]),
)
def test_mse_is_not_worse_than_the_extremes_or_any_other_method(scheme: QScheme, seed: int, kind: str) -> None:
    noise = gaussian(seed, 20_000)
    values = {
        "gaussian": noise,
        "outliers": with_outliers(seed),
        "relu": np.maximum(noise, 0),
        "heavy": noise**3,
        "uniform": np.random.default_rng(seed).uniform(-1, 2, 20_000).astype(np.float32),
        "one-sided outlier": np.append(noise, np.float32(100)),
    }[kind]
    statistics = statistics_of(values)
    best = error(values, scheme, mse(statistics, scheme))
    assert best <= error(values, scheme, METHODS["minmax"](statistics, scheme)) * 1.001
    for method in ("percentile", "entropy"):
        assert best <= error(values, scheme, METHODS[method](statistics, scheme)) * 1.05


def test_mse_finds_the_optimum_of_a_gaussian() -> None:
    """8 bits over a unit Gaussian: the loading factor 3.97 sigma, by scanning the clipping point on the values."""
    values = gaussian(size=400_000)
    scan = {bound: error(values, S8, (-bound, bound)) for bound in np.arange(3.0, 5.0, 0.05)}
    optimum = min(scan, key=scan.__getitem__)
    assert mse(statistics_of(values), S8)[1] == pytest.approx(optimum, abs=0.2)


def test_mse_clips_each_end_on_its_own() -> None:
    values = np.append(gaussian(size=2_000_000), np.float32(15))
    low, high = mse(statistics_of(values), U8)
    assert -5.5 < low < -3.5
    assert 3.5 < high < 10


@any_qscheme
def test_entropy_clips_the_outliers_of_a_gaussian(scheme: QScheme) -> None:
    low, high = entropy(statistics_of(with_outliers()), scheme)
    assert 3 < high < 8
    assert -8 < low < -3


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    low, high = entropy(statistics_of(values), S8)
    assert high > 0.97
    assert low < -0.97


def test_entropy_agrees_with_its_definition() -> None:
    """The published procedure, bin by bin in plain Python, on a histogram small enough for it."""
    values = np.abs(np.concatenate([gaussian(5, 3000), gaussian(6, 20) * 8])).astype(np.float32)
    statistics = statistics_of(values)
    counts = statistics.histogram.magnitudes().tolist()
    counts[0] = counts[1]
    while counts[-1] == 0:
        counts.pop()
    levels = 256  # all values on one side of zero, unsigned
    scores = {}
    for kept in [*range(levels, len(counts), 16), len(counts)]:
        p = [float(count) for count in counts[:kept]]
        p[-1] += sum(counts[kept:])
        q = [0.0] * kept
        for level in range(levels):
            inside = range(level * kept // levels, (level + 1) * kept // levels)
            held = [i for i in inside if counts[i]]
            for i in held:
                q[i] = sum(counts[j] for j in inside) / len(held)
        if p[-1] and not q[-1]:
            continue
        scores[kept] = sum(
            a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True) if a and b
        )
    best = min(scores, key=scores.__getitem__) * statistics.histogram.width
    assert entropy(statistics, U8) == (0.0, pytest.approx(min(best, values.max()), rel=1e-6))
    assert best < values.max()


@any_qscheme
@pytest.mark.parametrize("method", METHODS)
def test_methods_scale_with_the_tensor(method: str, scheme: QScheme) -> None:
    values = with_outliers()
    plain, large = (np.array(METHODS[method](statistics_of(values * f), scheme)) for f in (1.0, 1024.0))
    np.testing.assert_allclose(large, plain * 1024, rtol=1e-6)
