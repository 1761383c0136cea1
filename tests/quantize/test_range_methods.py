"""Each method gives the range that its definition says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy.graph.qdq import S8, U8, QScheme
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.options import OWN_METHODS, RANGE_METHODS
from vitdeploy.quantize.range_methods import minmax, mse, percentile

ROOT = Path(__file__).resolve().parents[2]

S8_ASYMMETRIC = QScheme(signed=True, symmetric=False)
any_qscheme = pytest.mark.parametrize("scheme", [S8, U8, S8_ASYMMETRIC], ids=["s8", "u8", "s8 asymmetric"])


def statistics_of(values: np.ndarray) -> Statistics:
    statistics = Statistics("t")
    statistics.update(values.astype(np.float32)[None])
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
@pytest.mark.parametrize("method", OWN_METHODS)
@given(seed=st.integers(0, 99), shift=st.sampled_from([-9.0, -1.0, 0.0, 0.3, 9.0]), size=st.sampled_from([1, 7, 999]))
def test_no_range_reaches_beyond_the_values(method: str, scheme: QScheme, seed: int, shift: float, size: int) -> None:
    values = gaussian(seed, size) + np.float32(shift)
    low, high = RANGE_METHODS.find(method)(statistics_of(values), scheme)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert min(values.min(), 0) <= low <= high <= max(values.max(), 0)


def test_minmax_is_the_extremes() -> None:
    values = gaussian()
    assert minmax(statistics_of(values), S8) == (values.min(), values.max())


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
def test_mse_is_not_worse_than_the_extremes_or_a_percentile(scheme: QScheme, seed: int, kind: str) -> None:
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
    assert best <= error(values, scheme, minmax(statistics, scheme)) * 1.001
    assert best <= error(values, scheme, percentile(statistics, scheme)) * 1.05


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
@pytest.mark.parametrize("method", OWN_METHODS)
def test_methods_scale_with_the_tensor(method: str, scheme: QScheme) -> None:
    values = with_outliers()
    plain, large = (np.array(RANGE_METHODS.find(method)(statistics_of(values * f), scheme)) for f in (1.0, 1024.0))
    np.testing.assert_allclose(large, plain * 1024, rtol=1e-6)


_ASK = """
import json, numpy as np
from vitdeploy.graph.qdq import S8
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.ranges import choose_range
statistics = Statistics("t")
statistics.update(np.linspace(-2, 2, 1000, dtype=np.float32))
found = choose_range(statistics, S8, method=Int8Options(method="half").method)
automatic = choose_range(statistics, S8)
print(json.dumps([found.method, found.high, sorted(automatic.candidates)]))
"""


def test_an_installed_package_adds_a_method_and_auto_tries_ours(tmp_path: Path) -> None:
    (tmp_path / "halving.py").write_text(
        "def half(statistics, scheme):\n    return statistics.low / 2, statistics.high / 2\n"
    )
    record = tmp_path / "halving-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: halving\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[vitdeploy.range_methods]\nhalf = halving:half\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True, env=environment)
    method, high, candidates = json.loads(done.stdout)
    assert (method, high) == ("half", pytest.approx(1.0))
    assert candidates == sorted(OWN_METHODS)
