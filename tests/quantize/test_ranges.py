"""The range of each tensor is the one that hurts its readers least, and never garbage."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.quantize.graphs import network, weights
from vitdeploy.errors import ExportError, UsageError
from vitdeploy.graph.qdq import S8, U8, QScheme
from vitdeploy.quantize.methods import METHODS
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.ranges import choose_range, choose_ranges
from vitdeploy.quantize.readers import Reader, channel_axis, reader, widest_window


def statistics_of(
    values: np.ndarray, axis: int | None = -1, name: str = "t", window: tuple[int, int] | None = None
) -> Statistics:
    statistics = Statistics(name, axis, window)
    statistics.update(values.astype(np.float32), len(values))
    return statistics


def outlier_channel(rows: int = 60_000) -> np.ndarray:
    """Seven quiet channels, and one in which few values are large."""
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    values[:, 3] *= np.where(np.arange(rows) % 50 == 0, 12, 0.1)
    return values


def linear(weight: np.ndarray) -> Reader:
    return node_reader("MatMul", weight)


def node_reader(op_type: str, weight: np.ndarray, **attributes: object) -> Reader:
    found = reader(a_node(op_type, weight, **attributes))
    assert found is not None
    return found


def a_node(op_type: str, weight: np.ndarray, *, bias: np.ndarray | None = None, **attributes: object) -> ir.Node:
    image = op_type in ("Conv", "ConvTranspose")
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", *constants], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * (4 if image else 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).graph[0]


def test_readers_compute_what_the_layers_compute() -> None:
    rng = np.random.default_rng(0)
    rows, weight, bias = rng.normal(size=(9, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    rows = rows.astype(np.float32)
    np.testing.assert_allclose(linear(weight)(rows), rows @ weight, rtol=1e-4, atol=1e-5)
    gemm = node_reader("Gemm", weight.T, bias=bias, transB=1)
    np.testing.assert_allclose(gemm(rows), rows @ weight + bias, rtol=1e-4, atol=1e-5)
    assert (linear(weight).window, gemm.window) == (None, None)


@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions_read_one_window_at_a_time(dilation: int) -> None:
    rng = np.random.default_rng(0)
    span = 1 + 2 * dilation
    windows, kernel = rng.normal(size=(7, 4, span, span)).astype(np.float32), rng.normal(size=(8, 2, 3, 3))
    conv = node_reader(
        "Conv", kernel, group=2, strides=[2, 2], pads=[1, 1, 1, 1], dilations=[dilation, dilation], bias=np.ones(8)
    )
    assert conv.window == (span, span)
    taps = windows[:, :, ::dilation, ::dilation].reshape(7, 2, 2, 3, 3)
    expected = 1 + np.einsum("ngcij,gocij->ngo", taps, kernel.reshape(2, 4, 2, 3, 3)).reshape(7, 8, 1, 1)
    np.testing.assert_allclose(conv(windows), expected, rtol=1e-4, atol=1e-5)


def test_deconvolutions_read_the_pixels_that_meet_in_one_output() -> None:
    rng = np.random.default_rng(0)
    plain = node_reader("ConvTranspose", rng.normal(size=(4, 5, 2, 2)), strides=[2, 2])
    overlapping = node_reader(
        "ConvTranspose", rng.normal(size=(4, 5, 3, 3)), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    )
    assert (plain.window, overlapping.window) == ((1, 1), (2, 2))
    assert plain(rng.normal(size=(7, 4, 1, 1)).astype(np.float32)).shape == (7, 5, 2, 2)
    assert overlapping(rng.normal(size=(7, 4, 2, 2)).astype(np.float32)).shape == (7, 5, 5, 5)


def test_the_widest_window_of_all_readers_is_observed() -> None:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "tall"], ["a"]), helper.make_node("Conv", ["x", "wide"], ["b"])],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * 4)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "ab"],
        [
            numpy_helper.from_array(np.ones((2, 2, *size), np.float32), name)
            for name, size in {"tall": (5, 1), "wide": (3, 3)}.items()
        ],
    )
    read = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])).graph
    assert widest_window(read.inputs[0]) == (5, 3)
    assert widest_window(read.outputs[0]) is None


def test_only_layers_of_constant_weights_are_readers() -> None:
    nodes = {node.name: node for node in ir.from_proto(network()).graph}
    assert reader(nodes["Scores"]) is None
    assert {name: channel_axis(node) for name, node in nodes.items() if name} == {
        "Conv": 1,
        "Scores": None,
        "Linear": -1,
    }
    assert channel_axis(a_node("Gemm", np.ones((4, 5)), transA=1)) is None
    assert channel_axis(a_node("Gemm", np.ones((4, 5)), bias=np.ones(5))) == -1
    assert channel_axis(a_node("Gemm", np.ones((4, 5)), bias=np.ones((7, 5)))) is None


@pytest.mark.parametrize("scheme", [S8, U8])
@pytest.mark.parametrize("method", METHODS)
def test_one_method_for_all_is_followed(method: str, scheme: QScheme) -> None:
    statistics = statistics_of(outlier_channel(2000))
    chosen = choose_range(statistics, scheme, method=method)
    assert chosen.method == method
    assert chosen.params == scheme.params(*METHODS[method](statistics, scheme))
    assert (chosen.low, chosen.high) == chosen.params.range


@pytest.mark.parametrize("scheme", [S8, U8])
def test_without_readers_the_tensors_own_error_decides(scheme: QScheme) -> None:
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
def test_the_error_at_the_readers_decides(heard: str) -> None:
    """Who reads the large values of the odd channel needs the wide range, who ignores that channel the narrow one."""
    values = outlier_channel()
    weight = np.full((8, 3), 0.001 if heard == "outliers" else 1.0)
    weight[3] = 1.0 if heard == "outliers" else 0.0
    statistics = statistics_of(values)
    chosen = choose_range(statistics, S8, readers=[linear(weight)])
    # A percentile that cuts into the outliers hurts the one reader and helps the other.
    errors = {}
    for name, method in METHODS.items():
        params = S8.params(*method(statistics, S8))
        errors[name] = float(np.square((params.round_trip(values) - values) @ weight).sum())
    assert errors[chosen.method] <= min(errors.values()) * 1.1
    assert chosen.layer_sqnr_db is not None


def test_readers_differ_in_what_they_want() -> None:
    values = outlier_channel()
    statistics = statistics_of(values)
    only, without = np.zeros((8, 3)), np.ones((8, 3))
    only[3], without[3] = 1, 0
    wide = choose_range(statistics, S8, readers=[linear(only)])
    narrow = choose_range(statistics, S8, readers=[linear(without)])
    assert wide.high > 2 * narrow.high


def test_layer_error_is_that_of_all_rows_though_few_are_kept() -> None:
    """60 values of 480,000 are clipped by a narrow range: a sample of 1,024 rows holds about one of them."""
    values = np.random.default_rng(1).normal(size=(60_000, 8)).astype(np.float32)
    values[::1000, 2] = 60
    weight = np.random.default_rng(2).normal(size=(8, 16))
    chosen = choose_range(statistics_of(values), S8, readers=[linear(weight)])
    for name, estimate in chosen.candidates.items():
        params = S8.params(*METHODS[name](statistics_of(values), S8))
        error = np.square((params.round_trip(values) - values) @ weight).sum()
        truth = 10 * math.log10(np.square(values @ weight).sum() / error)
        assert estimate == pytest.approx(truth, abs=2.5), name


def test_convolutions_are_asked_too() -> None:
    values = np.random.default_rng(0).normal(size=(20, 3, 24, 24)).astype(np.float32)
    kernel = node_reader("Conv", weights()["kernel"])
    chosen = choose_range(statistics_of(values, axis=1, window=(3, 3)), S8, readers=[kernel])
    params = chosen.params
    assert params is not None
    outputs, rounded = kernel(values), kernel(params.round_trip(values))
    truth = 10 * math.log10(np.square(outputs).sum() / np.square(rounded - outputs).sum())
    assert chosen.layer_sqnr_db == pytest.approx(truth, abs=0.5)


def test_a_reader_of_another_shape_is_not_asked() -> None:
    kernel = node_reader("Conv", weights()["kernel"])
    assert choose_range(statistics_of(outlier_channel(100)), S8, readers=[kernel]).layer_sqnr_db is None
    narrow = statistics_of(np.ones((2, 3, 8, 8)) * outlier_channel(16).reshape(2, 1, 8, 8), axis=1, window=(2, 3))
    assert choose_range(narrow, S8, readers=[kernel]).layer_sqnr_db is None


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


def test_an_unknown_method_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="median"):
        choose_range(statistics_of(outlier_channel(10)), S8, method="median")


def test_the_record_is_json() -> None:
    for values in (outlier_channel(100), np.zeros((4, 8)), np.ones((4, 8))):
        record = choose_range(statistics_of(values), S8).to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
