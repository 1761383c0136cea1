"""Half precision as graph types: what is unsafe stays FP32 with a reason, and the emulation rounds as FP16 does."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import ops, parsed, run
from vitdeploy.exporter.emulation import activation_ranges, emulate_half, half_snr_db
from vitdeploy.exporter.half import HalfReport, Quality, to_half
from vitdeploy.exporter.half_parts import HALF, keep_single

HEADER = '<ir_version: 10, opset_import: ["": 17]> '


def convert(body: str, x: np.ndarray, *, min_snr_db: float = 45.0) -> tuple[ir.Model, ir.Model, HalfReport]:
    model = parsed(HEADER + body)
    for node in model.graph:
        node.name = f"{node.outputs[0].name}/{node.op_type}"
    typed, report = to_half(model, {"x": x}, against(run(model, {"x": x})[0]), min_snr_db=min_snr_db)
    return model, typed, report


def against(reference: np.ndarray) -> Quality:
    signal = float(np.square(reference.astype(np.float64)).sum())

    def quality(outputs: Mapping[str, np.ndarray]) -> float:
        noise = float(np.square(outputs["y"].astype(np.float64) - reference).sum())
        return 10 * np.log10(signal / noise) if noise else np.inf

    return quality


def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def dtype_of(model: ir.Model, name: str) -> ir.DataType | None:
    return next(value.dtype for node in model.graph for value in node.outputs if value.name == name)


def test_an_ordinary_graph_is_half_inside_and_float32_at_its_ends() -> None:
    body = (
        "g (float[2, 8] x) => (float[2, 8] y) <float[8] b = {1, 2, 3, 4, 5, 6, 7, 8}> { h = Mul (x, b) y = Tanh (h) }"
    )
    model, typed, report = convert(body, normal(2, 8))
    assert report.kept == {}
    assert report.half_nodes == 2
    assert report.more_bytes == 0
    assert dtype_of(typed, "h") == HALF
    assert typed.graph.inputs[0].dtype == typed.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert all(v.dtype == HALF for v in typed.graph.initializers.values())
    onnx.checker.check_model(ir.to_proto(typed), full_check=True)
    np.testing.assert_allclose(run(typed, {"x": normal(2, 8)})[0], run(model, {"x": normal(2, 8)})[0], atol=2e-2)


def test_a_tensor_that_would_overflow_stays_fp32_with_its_range_as_the_reason() -> None:
    body = (
        "g (float[2, 8] x) => (float[2, 8] y) <float big = {40000.0}, float small = {0.00005}>"
        "{ a = Tanh (x) h = Mul (a, big) b = Mul (h, small) y = Tanh (b) }"
    )
    _, typed, report = convert(body, normal(2, 8))
    assert dtype_of(typed, "h") == ir.DataType.FLOAT
    assert dtype_of(typed, "a") == HALF
    assert "overflow: h reaches" in report.kept["h/Mul"]
    assert set(report.kept) == {"h/Mul", "b/Mul"}
    assert np.isfinite(run(typed, {"x": normal(2, 8)})[0]).all()


def test_an_epsilon_below_half_precision_keeps_its_addition_in_fp32() -> None:
    body = (
        "g (float[2, 8] x) => (float[2, 8] y) <float eps = {1e-6}>"
        "{ v = Mul (x, x) e = Add (v, eps) s = Sqrt (e) y = Div (x, s) }"
    )
    _, _, report = convert(body, normal(2, 8))
    assert "underflow: constant eps" in report.kept["e/Add"]


def test_tiny_activations_stay_fp32() -> None:
    body = (
        "g (float[2, 8] x) => (float[2, 8] y) <float tiny = {0.001}, float huge = {1000.0}>"
        "{ a = Mul (x, tiny) b = Mul (a, a) c = Mul (b, huge) d = Mul (c, huge) y = Tanh (d) }"
    )
    _, typed, report = convert(body, normal(2, 8))
    assert "underflow: b" in report.kept["b/Mul"]
    assert dtype_of(typed, "b") == ir.DataType.FLOAT


def test_a_mean_whose_sum_would_overflow_stays_fp32_although_the_mean_fits() -> None:
    body = "g (float[1, 4096] x) => (float[1, 1] y) { m = ReduceMean <axes = [1]> (x) y = Tanh (m) }"
    x = np.abs(normal(1, 4096, scale=20.0))
    _, _, report = convert(body, x)
    assert "a sum over 4096 values" in report.kept["m/ReduceMean"]
    _, _, report = convert(body, x / 100)
    assert report.kept == {}


def test_an_infinite_attention_mask_becomes_finite_and_keeps_the_probabilities() -> None:
    model = parsed(
        HEADER + "g (float[2, 4] x) => (float[2, 4] y) <float[4] m = {0, 0, 0, 0}> { s = Add (x, m) y = Softmax (s) }"
    )
    mask = np.asarray([0, -np.inf, 0, -np.inf], dtype=np.float32)
    model.graph.initializers["m"].const_value = ir.tensor(mask, name="m")
    for node in model.graph:
        node.name = node.op_type
    x = normal(2, 4)
    expected = run(model, {"x": x})[0]
    typed, report = to_half(model, {"x": x}, against(expected), min_snr_db=45)
    assert report.kept == {}
    assert all(np.isfinite(v.const_value.numpy()).all() for v in typed.graph.initializers.values() if v.const_value)
    np.testing.assert_allclose(run(typed, {"x": x})[0], expected, atol=1e-3)


def test_the_block_that_costs_most_accuracy_is_reverted_to_fp32() -> None:
    # Cancellation: (x + 1000) - 1000 loses ten bits in half precision, and nothing overflows.
    body = (
        "g (float[4, 64] x) => (float[4, 64] y) <float c = {1000.0}>"
        "{ t = Tanh (x) up = Add (t, c) down = Sub (up, c) y = Mul (down, t) }"
    )
    model = parsed(HEADER + body)
    for node, path in zip(model.graph, ("harmless", "lossy", "lossy", "harmless"), strict=True):
        node.name = f"{path}/{node.op_type}"
    x = normal(4, 64)
    quality = against(run(model, {"x": x})[0])
    typed, report = to_half(model, {"x": x}, quality, min_snr_db=45)
    assert [step["block"] for step in report.repairs] == ["lossy"]
    assert report.snr_db >= 45
    assert report.repairs[0]["snr_db_before"] < 45
    assert dtype_of(typed, "up") == ir.DataType.FLOAT
    assert dtype_of(typed, "t") == HALF


def test_marked_nodes_stay_fp32() -> None:
    model = parsed(HEADER + "g (float[2, 8] x) => (float[2, 8] y) { h = Tanh (x) y = Tanh (h) }")
    for node in model.graph:
        node.name = str(node.outputs[0].name)
    keep_single(model.graph[0], "selection")
    x = normal(2, 8)
    typed, report = to_half(model, {"x": x}, against(run(model, {"x": x})[0]), min_snr_db=45)
    assert dtype_of(typed, "h") == ir.DataType.FLOAT
    assert report.kept == {"h": "selection"}
    # Tanh 128 bytes, Cast 96, Tanh 64, Cast 96, instead of Cast 96, Tanh 64, Tanh 64, Cast 96
    assert report.more_bytes == pytest.approx(384 / 320 - 1)


def test_resize_keeps_its_scales_in_float32() -> None:
    body = (
        "g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) <float[4] scales = {1, 1, 2, 2}>"
        '{ h = Tanh (x) y = Resize <mode = "nearest"> (h, , scales) }'
    )
    _, typed, _ = convert(body, normal(1, 2, 3, 3))
    assert typed.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    onnx.checker.check_model(ir.to_proto(typed), full_check=True)


@settings(max_examples=examples(20))
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-3, 1.0, 100.0]))
def test_the_emulation_rounds_every_tensor_as_numpy_does(seed: int, scale: float) -> None:
    body = "g (float[8] x) => (float[8] y) { a = Mul (x, x) b = Add (a, x) y = Neg (b) }"
    x = (scale * np.random.default_rng(seed).standard_normal(8)).astype(np.float32)
    _, typed, _ = convert(body, x, min_snr_db=-1000)
    half = x.astype(np.float16)
    if any(dtype_of(typed, name) != HALF for name in "ab"):
        return  # the range analysis kept something in FP32; other tests cover it
    expected = -(half * half + half)
    actual = run(emulate_half(typed), {"x": x})[0]
    np.testing.assert_array_equal(actual, expected.astype(np.float32))


def test_ranges_are_those_of_the_tensors_themselves() -> None:
    model = parsed(HEADER + "g (float[2, 8] x) => (float[2, 8] y) { a = Mul (x, x) y = Neg (a) }")
    x = normal(2, 8, scale=3.0)
    seen = activation_ranges(model, {"x": x})
    assert seen["a"].max_abs == pytest.approx((x * x).max())
    assert seen["a"].half_snr_db == pytest.approx(half_snr_db(x * x), abs=0.01)
    assert ops(model) == {"Mul": 1, "Neg": 1}  # the graph itself is left alone


def test_a_graph_of_fixed_batch_is_watched_over_all_samples() -> None:
    body = "g (float[1, 8] x) => (float[1, 8] y) { a = Mul (x, x) y = Neg (a) }"
    model = parsed(HEADER + body)
    x = np.concatenate([normal(1, 8), normal(1, 8, scale=5.0)])
    seen = activation_ranges(model, {"x": x})
    assert seen["a"].max_abs == pytest.approx((x * x).max())
    assert seen["a"].half_snr_db == pytest.approx(half_snr_db(x * x), abs=0.01)


@pytest.mark.parametrize("ratio", [math.inf, -math.inf, math.nan])
def test_the_record_of_a_module_that_is_exact_or_broken_is_json(ratio: float) -> None:
    record = HalfReport(snr_db=ratio).to_dict()
    assert record["snr_db"] is None
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize(
    ("body", "largest", "kept"),
    [
        ("y = Exp (x)", 5.4, False),
        ("y = Exp (x)", 5.7, True),  # e^5.7 fits, e^11.4 does not
        ("y = Exp (x)", -9.0, False),
        ("y = Mul (x, x)", 120.0, False),
        ("y = Mul (x, x)", 135.0, True),
        ("c = Constant <value_float = 3.0> () y = Pow (x, c)", 19.0, False),
        ("c = Constant <value_float = 3.0> () y = Pow (x, c)", 21.0, True),
        ("y = ReduceSumSquare <axes = [-1]> (x)", 60.0, False),
        ("y = ReduceSumSquare <axes = [-1]> (x)", 70.0, True),
        ("n = ReduceL2 <axes = [-1]> (x) y = Identity (n)", 60.0, False),
        ("n = ReduceL2 <axes = [-1]> (x) y = Identity (n)", 70.0, True),
    ],
)
def test_headroom_is_that_of_the_input_where_a_result_grows_faster(body: str, largest: float, kept: bool) -> None:
    x = np.full((2, 4), largest, np.float32)
    model = parsed(f"{HEADER}g (float[2, 4] x) => (float[M, N] y) {{ {body} }}")
    for node in model.graph:
        node.name = f"{node.outputs[0].name}/{node.op_type}"
    _, report = to_half(model, {"x": x}, lambda outputs: 100.0, min_snr_db=45)
    assert any("times as large" in reason for reason in report.kept.values()) == kept
