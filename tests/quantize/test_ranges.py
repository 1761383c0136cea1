"""The range of each tensor is the one that changes the layers behind it least, and never garbage."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest

from tests.quantize.graphs import weights
from tests.quantize.test_layers import linear, node_map
from vitdeploy.errors import ExportError, UsageError
from vitdeploy.graph.qdq import S8, U8, QScheme
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.options import OWN_METHODS, RANGE_METHODS
from vitdeploy.quantize.ranges import choose_range, choose_ranges

METHODS = {name: RANGE_METHODS.find(name) for name in OWN_METHODS}


def statistics_of(
    values: np.ndarray, axis: int | None = -1, name: str = "t", window: tuple[int, int] | None = None
) -> Statistics:
    statistics = Statistics(name, axis, window)
    statistics.update(values.astype(np.float32))
    return statistics


def outlier_channel(rows: int = 60_000) -> np.ndarray:
    """Seven quiet channels, and one in which few values are large."""
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    values[:, 3] *= np.where(np.arange(rows) % 50 == 0, 12, 0.1)
    return values


@pytest.mark.parametrize("scheme", [S8, U8])
@pytest.mark.parametrize("method", METHODS)
def test_one_method_for_all_is_followed(method: str, scheme: QScheme) -> None:
    statistics = statistics_of(outlier_channel(2000))
    chosen = choose_range(statistics, scheme, method=method)
    assert chosen.method == method
    assert chosen.params == scheme.params(*METHODS[method](statistics, scheme))
    assert (chosen.low, chosen.high) == chosen.params.range


@pytest.mark.parametrize("scheme", [S8, U8])
def test_without_consumers_the_tensors_own_error_decides(scheme: QScheme) -> None:
    values = outlier_channel()
    statistics = statistics_of(values)
    chosen = choose_range(statistics, scheme)
    errors = {
        name: float(np.square(scheme.params(*method(statistics, scheme)).round_trip(values) - values).sum())
        for name, method in METHODS.items()
    }
    assert errors[chosen.method] <= min(errors.values()) * 1.02
    measured = 10 * math.log10(float(np.square(values).sum()) / errors[chosen.method])
    assert chosen.sqnr_db == pytest.approx(measured, abs=0.1)
    assert chosen.layer_sqnr_db is None


@pytest.mark.parametrize("heard", ["outliers", "rest"])
def test_the_error_at_the_consumers_decides(heard: str) -> None:
    """A layer that reads the odd channel needs the wide range, one that ignores it the narrow one."""
    values = outlier_channel()
    weight = np.full((8, 3), 0.001 if heard == "outliers" else 1.0)
    weight[3] = 1.0 if heard == "outliers" else 0.0
    statistics = statistics_of(values)
    chosen = choose_range(statistics, S8, consumers=[linear(weight)])
    # A percentile that cuts into the outliers hurts the one layer and helps the other.
    errors = {}
    for name, method in METHODS.items():
        params = S8.params(*method(statistics, S8))
        errors[name] = float(np.square((params.round_trip(values) - values) @ weight).sum())
    assert errors[chosen.method] <= min(errors.values()) * 1.1
    assert chosen.layer_sqnr_db is not None


def test_consumers_differ_in_what_they_want() -> None:
    values = outlier_channel()
    statistics = statistics_of(values)
    only, without = np.zeros((8, 3)), np.ones((8, 3))
    only[3], without[3] = 1, 0
    wide = choose_range(statistics, S8, consumers=[linear(only)])
    narrow = choose_range(statistics, S8, consumers=[linear(without)])
    assert (wide.method, narrow.method) == ("minmax", "percentile")
    assert wide.high > 1.4 * narrow.high


def test_layer_error_is_that_of_all_rows_though_few_are_kept() -> None:
    """60 values of 480,000 are clipped by a narrow range: a sample of 1,024 rows holds about one of them."""
    values = np.random.default_rng(1).normal(size=(60_000, 8)).astype(np.float32)
    values[::1000, 2] = 60
    weight = np.random.default_rng(2).normal(size=(8, 16))
    chosen = choose_range(statistics_of(values), S8, consumers=[linear(weight)])
    for name, estimate in chosen.candidates.items():
        params = S8.params(*METHODS[name](statistics_of(values), S8))
        error = np.square((params.round_trip(values) - values) @ weight).sum()
        truth = 10 * math.log10(np.square(values @ weight).sum() / error)
        assert estimate == pytest.approx(truth, abs=2.5), name


def test_convolutions_are_asked_too() -> None:
    values = np.random.default_rng(0).normal(size=(20, 3, 24, 24)).astype(np.float32)
    kernel = node_map("Conv", weights()["kernel"])
    chosen = choose_range(statistics_of(values, axis=1, window=(3, 3)), S8, consumers=[kernel])
    params = chosen.params
    assert params is not None
    windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    windows = windows.reshape(-1, 3, 3, 3)
    outputs, rounded = kernel(windows), kernel(params.round_trip(windows))
    truth = 10 * math.log10(np.square(outputs).sum() / np.square(rounded - outputs).sum())
    assert chosen.layer_sqnr_db == pytest.approx(truth, abs=0.5)


def test_a_layer_of_another_shape_is_not_asked() -> None:
    kernel = node_map("Conv", weights()["kernel"])
    assert choose_range(statistics_of(outlier_channel(100)), S8, consumers=[kernel]).layer_sqnr_db is None
    narrow = statistics_of(np.ones((2, 3, 8, 8)) * outlier_channel(16).reshape(2, 1, 8, 8), axis=1, window=(2, 3))
    assert choose_range(narrow, S8, consumers=[kernel]).layer_sqnr_db is None


def test_a_dead_tensor_gets_no_scale_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    statistics = {name: statistics_of(np.zeros((4, 8)), name=name) for name in ("one", "two")}
    statistics["alive"] = statistics_of(outlier_channel(100))
    with caplog.at_level(logging.WARNING):
        chosen = choose_ranges(statistics, dict.fromkeys(statistics, S8))
    assert chosen["one"].params is None
    assert chosen["alive"].params is not None
    assert "zero on every calibration image, left in float: one, two" in caplog.text


@pytest.mark.parametrize("value", [3.0, -0.25])
@pytest.mark.parametrize("scheme", [S8, U8])
def test_a_constant_tensor_keeps_its_value_and_is_named(value: float, scheme: QScheme) -> None:
    chosen = choose_range(statistics_of(np.full((4, 8), value)), scheme)
    assert chosen.params is not None
    assert chosen.params.round_trip(np.array([value], np.float32)) == pytest.approx(value, rel=1e-6)
    assert "one and the same value" in str(chosen.note)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_tensor_with_nan_or_inf_is_an_error_that_names_it(bad: float) -> None:
    values = outlier_channel(10)
    values[2, 2] = bad
    with pytest.raises(ExportError, match=r"blocks\.3 holds"):
        choose_range(statistics_of(values, name="blocks.3"), S8)


def test_a_tensor_that_no_image_reached_is_an_error() -> None:
    with pytest.raises(ExportError, match="no calibration image reached lonely"):
        choose_range(Statistics("lonely"), S8)


@pytest.mark.parametrize("method", ["median", "entropy", "average"])
def test_an_unknown_method_is_a_usage_error_that_names_those_that_exist(method: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){method}.*auto, minmax, percentile, mse"):
        choose_range(statistics_of(outlier_channel(10)), S8, method=method)


@pytest.mark.parametrize("bounds", [(math.nan, 1.0), (-1.0, math.inf), (1.0, -1.0)])
def test_a_method_that_finds_no_range_is_named(bounds: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RANGE_METHODS._loaded, "mse", lambda statistics, scheme: bounds)
    with pytest.raises(ExportError, match="mse finds no range for t"):
        choose_range(statistics_of(outlier_channel(10)), S8, method="mse")


def test_the_record_is_json() -> None:
    for values in (outlier_channel(100), np.zeros((4, 8)), np.ones((4, 8))):
        record = choose_range(statistics_of(values), S8).to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
