"""Q/DQ where a plan wants it, integers that stay in their range, and graphs that break the rules of their target."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph_cases import parsed, run
from tests.quantize.blocks import network, photos
from tests.rows import RULES
from vitdeploy.graph.edit import constant
from vitdeploy.graph.qdq import QuantizedWeight, QuantParams, quantize_weight
from vitdeploy.graph.run import open_session
from vitdeploy.quantize.gptq import round_weight
from vitdeploy.quantize.insert import insert, make_room, violations
from vitdeploy.quantize.placement import Plan, place, restrict, tensors
from vitdeploy.statistics import snr_db
from vitdeploy.targets import Int8Rules


def ranges_of(model: ir.Model, plan: Plan, rules: Int8Rules, images: np.ndarray) -> dict[str, QuantParams]:
    """Min-max ranges of what the plan makes integers of."""
    observed = model.clone()
    values = {value.name: value for node in observed.graph for value in node.outputs}
    names = [name for name in tensors(model.graph, plan) if name != "images"]
    observed.graph.outputs.extend(values[name] for name in names)
    found = dict(zip(names, run(observed, {"images": images})[1:], strict=True)) | {"images": images}
    return {name: rules.activation.params(array.min(), array.max()) for name, array in found.items()}


def quantized(target: str, batch: int | str = "batch") -> tuple[ir.Model, ir.Model]:
    model, rules = network(batch), RULES[target]
    plan = place(model.graph, rules)
    count = batch if isinstance(batch, int) else 8
    ranges = ranges_of(model, plan, rules, photos(count))
    return model, insert(model, plan, ranges, {}, rules)


def kernels(model: ir.Model, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs."""
    open_session(model, optimized=folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("target", list(RULES))
def test_the_quantized_graph_is_valid_keeps_the_rules_and_is_close(target: str) -> None:
    model, small = quantized(target)
    onnx.checker.check_model(ir.to_proto(small), full_check=True)
    assert violations(small.graph, RULES[target]) == []
    images = photos(8, seed=5)
    assert snr_db(run(model, {"images": images})[0], run(small, {"images": images})[0]) > 25


def test_the_original_is_left_alone() -> None:
    model = network()
    before = ir.to_proto(model).SerializeToString()
    plan = place(model.graph, RULES["portable"])
    insert(model, plan, ranges_of(model, plan, RULES["portable"], photos(4)), {}, RULES["portable"])
    assert ir.to_proto(model).SerializeToString() == before


def test_layers_that_read_one_tensor_share_one_pair() -> None:
    _, small = quantized("tensorrt10")
    kinds = Counter(node.op_type for node in small.graph)
    assert kinds["QuantizeLinear"] == 5  # images, act, norm, sum, pooled
    assert kinds["DequantizeLinear"] == 5 + 7


def test_every_linear_layer_finds_an_integer_kernel_in_onnxruntime(tmp_path: Path) -> None:
    """Without the bias's rank, or the weights' zero points, ONNX Runtime computes them in float."""
    _, small = quantized("portable")
    found = kernels(small, tmp_path)
    assert found["MatMulIntegerToFloat"] == 4  # q, k, v, fc
    assert found["Gemm"] == 1  # the head, whose float bias no integer kernel takes


def test_for_onnxruntime_convolutions_and_biases_are_integer_too(tmp_path: Path) -> None:
    _, small = quantized("onnxruntime")
    found = kernels(small, tmp_path)
    assert found["QLinearConv"] == 1  # the stem, of three channels, is faster in float
    assert found["QGemm"] == 1
    assert found["Gemm"] == 0


def test_a_bias_that_int32_cannot_hold_widens_its_channel_only() -> None:
    model, rules = network(), RULES["onnxruntime"]
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    weight, bias = constant(gemm.inputs[1]).copy(), constant(gemm.inputs[2]).copy()
    weight[:, 3] *= 1e-9
    bias[3] = 5.0
    gemm.inputs[1].const_value, gemm.inputs[2].const_value = ir.tensor(weight), ir.tensor(bias)
    plan = restrict(place(model.graph, rules), lambda layer: None if layer.node == "head_Gemm" else "other")
    small = insert(model, plan, ranges_of(model, plan, rules, photos(4)), {}, rules)
    images = photos(4, seed=9)
    expected, found = run(model, {"images": images})[0], run(small, {"images": images})[0]
    assert np.abs(found[:, 3] - 5.0).max() < 1e-2
    assert snr_db(np.delete(expected, 3, 1), np.delete(found, 3, 1)) > 30


def test_a_given_weight_is_taken_as_it_is() -> None:
    model, rules = network(), RULES["portable"]
    plan = restrict(place(model.graph, rules), lambda layer: None if layer.node == "fc_MatMul" else "other")
    ranges = ranges_of(model, plan, rules, photos(4))
    integers, scales = quantize_weight(np.random.default_rng(3).standard_normal((32, 64)), 1)
    small = insert(model, plan, ranges, {"fc_MatMul": QuantizedWeight(integers, scales)}, rules)
    held = [array for value in small.graph.initializers.values() if (array := constant(value)).dtype == np.int8]
    assert any(array.shape == integers.shape and (array == integers).all() for array in held)


@given(
    seed=st.integers(0, 10_000),
    form=st.sampled_from([((6, 12), 0), ((12, 6), 1), ((6, 3, 2, 2), 0)]),
    size=st.sampled_from([1e-9, 1e-4, 1.0]),
    room=st.lists(st.floats(0.0, 40.0), min_size=6, max_size=6),
    spread=st.floats(0, 3),
)
def test_rounding_keeps_every_integer_in_its_range_and_the_sign_of_the_largest(
    seed: int, form: tuple[tuple[int, ...], int], size: float, room: list[float], spread: float
) -> None:
    """Also where a scale that saturates the largest weight is widened for a bias, be it only by a little."""
    shape, axis = form
    rng = np.random.default_rng(seed)
    weight = (size * rng.standard_normal(shape) ** 3).astype(np.float32)
    mixing = rng.standard_normal((12, 12)) * np.exp(-spread * np.linspace(0, 1, 12))
    rounded = round_weight(weight, axis, mixing @ mixing.T + 1e-3 * np.eye(12))
    for least in (rounded.scales * np.float32(1.1), rounded.scales * np.array(room)):
        found = make_room(rounded, weight, axis, least)
        assert found.integers.dtype == np.int8
        assert found.integers.min() >= -127
        assert (found.scales >= np.maximum(rounded.scales, least) * (1 - 1e-6)).all()
        rows, integers = (np.moveaxis(array, axis, 0).reshape(6, -1) for array in (weight, found.integers))
        for row, whole, scale, before in zip(rows, integers.astype(int), found.scales, rounded.scales, strict=True):
            largest = int(np.abs(row).argmax())
            assert whole[largest] * np.sign(row[largest]) >= (0 if abs(row[largest]) < scale / 2 else 1)
            if scale > before:  # rounded anew
                assert (np.abs(row - whole * scale) <= np.maximum(0.501 * scale, np.abs(row) - 127 * scale)).all()


def test_a_scale_between_the_clipped_and_the_full_one_does_not_wrap_around() -> None:
    weight = np.array([[1e-6, 2e-7, -3e-7]], np.float32)
    clipped = QuantizedWeight(np.array([[127, 30, -45]], np.int8), np.array([0.85e-6 / 127], np.float32))
    found = make_room(clipped, weight, 0, np.array([0.9e-6 / 127]))
    assert found.integers.tolist() == [[127, 28, -42]]
    np.testing.assert_allclose(found.scales, 0.9e-6 / 127, rtol=1e-6)


def test_a_weight_with_room_is_left_as_it_is() -> None:
    rounded = quantize_weight(np.random.default_rng(0).standard_normal((4, 5)), 0)
    assert make_room(rounded, np.ones((4, 5)), 0, rounded.scales * 0.99) is rounded


_GOOD = """
network (float[n, 32] x) => (float[n, 16] y) {
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  w = DequantizeLinear <axis = 1> (wi, ws, wz)
  y = MatMul (d, w)
}
"""


def weights(**other: np.ndarray) -> dict[str, np.ndarray]:
    made = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "wi": np.ones((32, 16), np.int8),
        "ws": np.full(16, 0.1, np.float32),
        "wz": np.zeros(16, np.int8),
    }
    return {name: np.asarray(array) for name, array in {**made, **other}.items()}


def broken(text: str = _GOOD, target: str = "portable", **other: np.ndarray) -> list[str]:
    return violations(parsed(text, **weights(**other)).graph, RULES[target])


def test_a_symmetric_pair_on_both_factors_keeps_the_rules() -> None:
    assert broken() == []


def test_an_asymmetric_activation_breaks_portable_and_not_onnxruntime() -> None:
    zero = np.uint8(7)
    assert any("zero point is 7" in line for line in broken(z=zero))
    assert broken(target="onnxruntime", z=zero) == []


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_no_positive_number_is_named(scale: float) -> None:
    assert any("positive" in line for line in broken(s=np.float32(scale)))


def test_a_factor_left_in_float_is_named() -> None:
    text = _GOOD.replace("w = DequantizeLinear <axis = 1> (wi, ws, wz)", "w = Cast <to = 1> (wi)")
    assert any("only one of its two factors" in line for line in broken(text))


def test_integers_that_something_else_reads_are_named() -> None:
    text = """
    network (float[n, 32] x) => (float[n, 32] y) {
      q = QuantizeLinear (x, s, z)
      y = Cast <to = 1> (q)
    }
    """
    assert any("read by Cast" in line for line in broken(text))


def test_integer_operators_are_named() -> None:
    text = """
    network (uint8[4, 32] x) => (int32[4, 16] y) {
      y = MatMulInteger (x, wi)
    }
    """
    assert any("MatMulInteger is an integer operator" in line for line in broken(text))
