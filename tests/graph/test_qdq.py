"""The arithmetic of 8-bit integers is ONNX's, to the last integer."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, helper

from vitdeploy.graph.qdq import MIN_SCALE, S8, U8, QScheme, QuantParams, quantize_weight

QSCHEMES = {"s8": S8, "u8": U8, "s8 asymmetric": QScheme(signed=True, symmetric=False)}
any_qscheme = pytest.mark.parametrize("scheme", QSCHEMES.values(), ids=QSCHEMES.keys())

finite = st.floats(-1e6, 1e6, width=32)


@cache
def runtime(signed: bool) -> ort.InferenceSession:
    """Q and DQ as nodes; outputs the integers and what they stand for."""
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "pair",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("zero", kind, []),
        ],
        [
            helper.make_tensor_value_info("q", kind, [None]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def by_runtime(params: QuantParams, values: np.ndarray) -> list[np.ndarray]:
    zero = np.asarray(params.zero_point, params.scheme.dtype)
    return runtime(params.scheme.signed).run(
        ["q", "y"], {"x": values, "scale": np.asarray(params.scale, np.float32), "zero": zero}
    )


@any_qscheme
@given(
    values=npst.arrays(np.float32, st.integers(1, 40), elements=finite),
    bounds=st.tuples(finite, finite).map(sorted),
)
def test_integers_and_values_are_those_of_onnx_runtime(
    scheme: QScheme, values: np.ndarray, bounds: list[float]
) -> None:
    params = scheme.params(*bounds)
    integers, back = by_runtime(params, values)
    np.testing.assert_array_equal(params.quantize(values), integers)
    np.testing.assert_array_equal(params.round_trip(values), back)


def test_halves_round_to_even() -> None:
    params = QuantParams(1.0, 0, S8)
    values = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=np.float32)
    assert params.quantize(values).tolist() == [-2, -2, 0, 0, 2, 2]


def test_values_beyond_the_range_saturate() -> None:
    values = np.array([-1e30, -1000, 1000, 1e30], dtype=np.float32)
    assert S8.params(-1, 1).quantize(values).tolist() == [-128, -128, 127, 127]
    assert U8.params(-1, 1).quantize(values).tolist() == [0, 0, 255, 255]


@any_qscheme
@given(bounds=st.tuples(finite, finite).map(sorted))
def test_zero_stays_zero(scheme: QScheme, bounds: list[float]) -> None:
    params = scheme.params(*bounds)
    assert scheme.low <= params.zero_point <= scheme.high
    assert params.round_trip(np.zeros(1, dtype=np.float32)) == 0


@given(bounds=st.tuples(finite, finite).map(sorted))
def test_symmetric_zero_point_is_zero_and_the_range_holds_both_ends(bounds: list[float]) -> None:
    params = S8.params(*bounds)
    assert params.zero_point == 0
    low, high = params.range
    assert low <= bounds[0] + 1e-9 * abs(bounds[0])
    assert high >= bounds[1] - 1e-9 * abs(bounds[1])


@any_qscheme
@given(values=npst.arrays(np.float32, st.integers(1, 40), elements=finite))
def test_inside_the_range_the_error_is_at_most_half_a_step(scheme: QScheme, values: np.ndarray) -> None:
    params = scheme.params(float(values.min()), float(values.max()))
    # The zero point is rounded too, which moves an asymmetric range by up to half a step.
    limit = params.scale * (0.5 if scheme.symmetric else 1.0)
    assert np.abs(params.round_trip(values) - values).max() <= limit * (1 + 1e-3) + MIN_SCALE


def test_an_empty_range_has_a_usable_scale() -> None:
    for scheme in QSCHEMES.values():
        params = scheme.params(0.0, 0.0)
        assert np.float32(params.scale) > 0
        assert np.isfinite(1 / np.float32(params.scale))


@given(
    weight=npst.arrays(np.float32, (5, 7), elements=st.floats(-100, 100, width=32)),
    axis=st.sampled_from([0, 1, -1]),
)
def test_weights_come_back_within_half_a_step_of_their_channel(weight: np.ndarray, axis: int) -> None:
    integers, scales = quantize_weight(weight, axis)
    assert integers.dtype == np.int8
    assert scales.shape == (weight.shape[axis],)
    assert (scales > 0).all()
    shape = (-1, 1) if axis == 0 else (1, -1)
    error = np.abs(integers * scales.reshape(shape) - weight)
    assert (error <= scales.reshape(shape) * 0.5001).all()


def test_a_channel_of_zeros_takes_the_smallest_living_scale() -> None:
    weight = np.array([[0.0, 0.0], [1.0, -2.0], [5.0, 4.0]], dtype=np.float32)
    _, scales = quantize_weight(weight, 0)
    np.testing.assert_allclose(scales, np.array([2, 2, 5]) / 127, rtol=1e-6)


def test_weights_saturate_where_their_limit_says() -> None:
    weight = np.array([[0.1, -3.0]], dtype=np.float32)
    integers, scales = quantize_weight(weight, 0, limits=np.array([1.0]))
    np.testing.assert_allclose(scales, [1 / 127], rtol=1e-6)
    assert integers.tolist() == [[13, -127]]
