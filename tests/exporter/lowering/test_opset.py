"""The same graph in an older opset computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph_cases import ops, parsed, run
from tests.rows import TARGETS
from vitdeploy.errors import ExportError
from vitdeploy.exporter.lowering.opset import lower_opset

HEADER = '<ir_version: 10, opset_import: ["": 20]> '


@pytest.mark.parametrize(
    "body",
    [
        "g (float[2, 5, 6] x) => (float[2, 5] y) <int64[1] axes = {-1}> { y = ReduceMean <keepdims = 0> (x, axes) }",
        "g (float[2, 5, 6] x) => (float[2, 1, 1] y) <int64[2] axes = {1, 2}> { y = ReduceMax (x, axes) }",
        "g (float[2, 5, 6] x) => (float y) { y = ReduceL2 <keepdims = 0> (x) }",
        "g (float[2, 5, 6] x) => (float[2, 2, 6] y, float[2, 2, 6] z, float[2, 1, 6] w)"
        "{ y, z, w = Split <axis = 1, num_outputs = 3> (x) }",
        "g (float[2, 5, 6] x) => (float[2, 8, 6] y) <int64[2] pads = {1, 2}, int64[1] axes = {1}>"
        '{ y = Pad <mode = "constant"> (x, pads, , axes) }',
        "g (float[1, 2, 5, 6] x) => (float[1, 2, 10, 12] y) <float[4] scales = {1.0, 1.0, 2.0, 2.0}>"
        '{ y = Resize <mode = "nearest", keep_aspect_ratio_policy = "stretch"> (x, , scales) }',
    ],
)
def test_forms_of_opset_18_and_later_are_restated_for_17(body: str) -> None:
    model = parsed(HEADER + body)
    x = np.random.default_rng(0).standard_normal(list(model.graph.inputs[0].shape or ()), dtype=np.float32)
    before = run(model, {"x": x})
    changes = lower_opset(model, TARGETS["portable"])
    assert len(changes) == 1
    assert model.graph.opset_imports[""] == 17
    onnx.checker.check_model(parsed_proto(model), full_check=True)
    for old, new in zip(before, run(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(old, new)
    assert lower_opset(model, TARGETS["portable"]) == []


@pytest.mark.parametrize(
    "body",
    [
        f"g (float[2, 5, 6] x) => (float[{shape}] y) <int64[{len(axes)}] axes = {{{str(axes)[1:-1]}}}>"
        f"{{ a = Abs (x) y = {name} <keepdims = {keep}> (a, axes) }}"
        for name in ("ReduceL1", "ReduceLogSum", "ReduceLogSumExp")
        for shape, axes, keep in (("2, 6", [1], 0), ("2, 1, 6", [-2], 1), ("5", [0, -1], 0))
    ]
    + [
        "g (float[2, 5, 6] x) => (float[2, 5, 6] y) { y = Gelu (x) }",
        'g (float[2, 5, 6] x) => (float[2, 5, 6] y) { y = Gelu <approximate = "tanh"> (x) }',
        "g (float[2, 5, 6] x) => (float[2, 5, 6] y) { y = Mish (x) }",
    ],
)
def test_forms_that_take_several_older_operators_agree_up_to_rounding(body: str) -> None:
    model = parsed(HEADER + body)
    x = 10 * np.random.default_rng(0).standard_normal((2, 5, 6), dtype=np.float32)
    (before,) = run(model, {"x": x})
    assert lower_opset(model, TARGETS["portable"])
    onnx.checker.check_model(parsed_proto(model), full_check=True)
    (after,) = run(model, {"x": x})
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
@given(mask=st.integers(-(2**31), 2**31 - 1), values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3))
def test_bits_of_a_constant_mask_are_exact(name: str, mask: int, values: list[int]) -> None:
    model = parsed(HEADER + f"g (int64[3] x) => (int64[3] y) {{ y = {name} (x, m) }}", m=np.array(mask, dtype=np.int64))
    x = np.array(values, dtype=np.int64)
    (before,) = run(model, {"x": x})
    lower_opset(model, TARGETS["portable"])
    assert name not in ops(model)
    (after,) = run(model, {"x": x})
    np.testing.assert_array_equal(after, before)


def parsed_proto(model: object) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.to_proto(model)


def test_a_target_of_the_same_opset_changes_nothing() -> None:
    model = parsed(
        HEADER + "g (float[2, 4] x) => (float[2, 2] y, float[2, 2] z) { y, z = Split <axis=1, num_outputs=2> (x) }"
    )
    assert lower_opset(model, TARGETS["onnxruntime"]) == []
    assert ops(model) == {"Split": 1}


def test_an_operator_that_the_target_does_not_know_is_refused_by_name() -> None:
    body = "g (float[2, 4] x, int64[2] size) => (float[2, 2] y) { y = CenterCropPad (x, size) }"
    model = parsed(HEADER + body)
    with pytest.raises(ExportError, match="CenterCropPad does not exist in opset 17") as caught:
        lower_opset(model, TARGETS["portable"])
    assert "vitdeploy export … --target" in str(caught.value.fix)
