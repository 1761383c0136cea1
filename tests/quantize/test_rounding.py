"""No rounded weight or bias wraps around: each integer is the nearest one in its range, whatever its channel's scale.

The nearest integer times its scale is at most half a step away from the weight, or from the end of the range where the
weight saturates, and it has the weight's sign. One that had wrapped around would be 256 steps away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.conftest import examples
from tests.quantize.blocks import CLASSES, network
from tests.rows import RULES
from vitdeploy.graph.edit import constant, producer
from vitdeploy.graph.qdq import QuantizedWeight, QuantParams, quantize_weight
from vitdeploy.quantize.gptq import LIMITS, round_weight
from vitdeploy.quantize.insert import insert, make_room
from vitdeploy.quantize.placement import Plan, place, restrict, tensors

HALF = 0.5 + 1e-4  # of a step; both the scale and the quotient are float32
CHANNELS = 3

# The largest magnitude of a weight: near the smallest scale, where a bias needs room, as usual, and near overflow.
sizes = st.sampled_from([1e-35, 1e-29, 1e-9, 1.0, 1e30])


class Rounded(NamedTuple):
    """A weight, the axis of its channels, and what each channel's limit is of its largest magnitude."""

    weight: np.ndarray
    axis: int
    parts: np.ndarray


@st.composite
def weights(draw: st.DrawFn) -> Rounded:
    axis = draw(st.sampled_from([0, 1, -1]))
    shape = draw(st.sampled_from([(CHANNELS, 7), (CHANNELS, 2, 2, 2)])) if axis == 0 else (7, CHANNELS)
    elements = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.0, 1.0, -1.0, 1e-6]))
    weight = draw(npst.arrays(np.float32, shape, elements=elements)) * np.float32(draw(sizes))
    parts = draw(st.lists(st.sampled_from([*LIMITS, 0.3, 1.7]), min_size=CHANNELS, max_size=CHANNELS))
    return Rounded(weight.astype(np.float32), axis, np.array(parts))


def channels(array: np.ndarray, axis: int) -> np.ndarray:
    """One row a channel, float64."""
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)


def limits_of(case: Rounded) -> np.ndarray:
    return case.parts * np.abs(channels(case.weight, case.axis)).max(axis=1)


def assert_nearest(real: np.ndarray, integers: np.ndarray, scales: np.ndarray, largest: int) -> None:
    """Of each row of `real` with its integers and its scale."""
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    step = scales.astype(np.float64)[:, None]
    assert np.abs(integers.astype(np.int64)).max() <= largest
    clipped = np.clip(real, -largest * step, largest * step)
    assert (np.abs(integers * step - clipped) <= HALF * step).all()
    assert (integers * np.sign(real) >= 0).all()
    assert (integers[np.abs(real) > HALF * step] != 0).all()


def assert_weight_nearest(case: Rounded, found: QuantizedWeight) -> None:
    assert found.integers.dtype == np.int8
    assert found.integers.shape == case.weight.shape
    assert found.scales.dtype == np.float32
    assert_nearest(channels(case.weight, case.axis), channels(found.integers, case.axis), found.scales, 127)


@given(case=weights())
@settings(max_examples=examples(100))
def test_rounding_to_nearest_does_not_wrap_wherever_a_channel_saturates(case: Rounded) -> None:
    assert_weight_nearest(case, quantize_weight(case.weight, case.axis))
    assert_weight_nearest(case, quantize_weight(case.weight, case.axis, limits_of(case)))


@given(case=weights(), room=st.lists(st.floats(0, 3), min_size=CHANNELS, max_size=CHANNELS))
@settings(max_examples=examples(100))
def test_making_room_for_a_bias_does_not_wrap(case: Rounded, room: list[float]) -> None:
    """Most of all where the wider scale still saturates the largest weights, as 0.9 of the full one does after 0.85."""
    before = quantize_weight(case.weight, case.axis, limits_of(case))
    least = before.scales * np.array(room)
    found = make_room(before, case.weight, case.axis, least)
    assert_weight_nearest(case, found)
    np.testing.assert_array_less(np.maximum(before.scales, least) * (1 - 1e-6), found.scales)


@given(case=weights())
@settings(max_examples=examples(100))
def test_weights_of_independent_inputs_do_not_wrap_at_the_scale_that_was_searched(case: Rounded) -> None:
    assert_weight_nearest(case, round_weight(case.weight, case.axis))


@given(case=weights(), seed=st.integers(0, 999), room=st.lists(st.floats(0, 3), min_size=CHANNELS, max_size=CHANNELS))
@settings(max_examples=examples(100))
def test_weights_of_correlated_inputs_do_not_wrap(case: Rounded, seed: int, room: list[float]) -> None:
    """GPTQ passes errors on, so that an integer may be further away; as a whole its channel errs less than to nearest.

    One weight that wraps is 256 steps away, and with a metric whose smallest eigenvalue is not tiny that is seen.
    """
    inputs = case.weight.size // CHANNELS
    mixing = np.random.default_rng(seed).standard_normal((inputs, 2))
    metric = mixing @ mixing.T + np.eye(inputs)
    found = round_weight(case.weight, case.axis, metric)
    real = channels(case.weight, case.axis)

    def errors(rounded: QuantizedWeight) -> np.ndarray:
        lost = real - channels(rounded.integers, case.axis) * rounded.scales[:, None].astype(np.float64)
        return np.einsum("nk,kl,nl->n", lost, metric, lost)

    nearest = quantize_weight(case.weight, case.axis)
    assert (errors(found) <= errors(nearest) * (1 + 1e-9)).all()
    wider = make_room(found, case.weight, case.axis, found.scales * np.array(room))
    anew = wider.scales > found.scales
    rows = channels(wider.integers, case.axis)
    if anew.any():
        assert_nearest(real[anew], rows[anew], wider.scales[anew], 127)
    np.testing.assert_array_equal(rows[~anew], channels(found.integers, case.axis)[~anew])


def head_alone(model: ir.Model) -> Plan:
    rules = RULES["onnxruntime"]
    return restrict(place(model.graph, rules), lambda layer: None if layer.node == "head_Gemm" else "other")


@given(
    bias=npst.arrays(np.float32, CLASSES, elements=st.floats(-1, 1, width=32)),
    sizes=st.tuples(sizes, st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e6])),
    step=st.sampled_from([1e-20, 1e-6, 0.02, 10.0]),
    clipped=st.sampled_from(LIMITS),
)
@settings(max_examples=examples(60))
def test_neither_an_int32_bias_nor_the_weight_that_made_room_for_it_wraps(
    bias: np.ndarray, sizes: tuple[float, float], step: float, clipped: float
) -> None:
    model, rules = network(), RULES["onnxruntime"]
    gemm = next(node for node in model.graph if node.name == "head_Gemm")
    weight = (constant(gemm.inputs[1]) * np.float32(sizes[0])).astype(np.float32)
    bias = (bias * np.float32(sizes[1])).astype(np.float32)
    gemm.inputs[1].const_value, gemm.inputs[2].const_value = ir.tensor(weight), ir.tensor(bias)
    plan = head_alone(model)
    (name,) = tensors(model.graph, plan)
    given = quantize_weight(weight, 1, clipped * np.abs(weight).max(axis=0))
    small = insert(model, plan, {name: QuantParams(step, 0, rules.activation)}, {"head_Gemm": given}, rules)
    head = next(node for node in small.graph if node.op_type == "Gemm")
    (integers, scales), (whole, fine) = (
        tuple(constant(value) for value in producer(head.inputs[index], "DequantizeLinear").inputs[:2])
        for index in (1, 2)
    )
    assert_weight_nearest(Rounded(weight, 1, np.ones(CLASSES)), QuantizedWeight(integers, scales))
    assert whole.dtype == np.int32
    assert_nearest(channels(bias, 0), channels(whole, 0), fine, 1 << 31)
    np.testing.assert_allclose(fine, scales * np.float32(step), rtol=1e-6)
