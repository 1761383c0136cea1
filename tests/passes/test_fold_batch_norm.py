from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import batch, ops, parsed, prove
from vitdeploy.passes.fold_batch_norm import FoldBatchNorm


def statistics(channels: int) -> dict[str, np.ndarray]:
    values = batch(4, channels, seed=channels)
    return {"gamma": values[0], "beta": values[1], "mu": values[2], "var": np.abs(values[3]) + 0.1}


def model_of(body: str, inputs: str, outputs: str = "y", **weights: np.ndarray) -> ir.Model:
    return parsed(f"agraph ({inputs}) => ({outputs}) {{ {body} }}", **weights)


NORM = "BatchNormalization <epsilon = 0.001>"


@settings(max_examples=examples(25))
@given(
    group=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_it_goes_into_the_convolution_before_it(
    group: int, widths: tuple[int, int], kernel: int, bias: bool, transposed: bool
) -> None:
    inputs, outputs = group * widths[0], group * widths[1]
    shape = (inputs, widths[1], kernel, kernel) if transposed else (outputs, widths[0], kernel, kernel)
    weights = {"w": batch(*shape, seed=1), **({"bias": batch(outputs, seed=2)} if bias else {}), **statistics(outputs)}
    model = model_of(
        f"c = {'ConvTranspose' if transposed else 'Conv'} <group = {group}> (x, w{', bias' if bias else ''})"
        f"y = {NORM} (c, gamma, beta, mu, var)",
        f"float[batch, {inputs}, 5, 4] x",
        **weights,
    )
    prove(FoldBatchNorm, model, batch(2, inputs, 5, 4))
    assert sum(ops(model).values()) == 1
    assert "w" in model.graph.initializers


@settings(max_examples=examples(15))
@given(group=st.integers(1, 3), widths=st.tuples(st.integers(1, 3), st.integers(1, 3)), kernel=st.integers(1, 3))
def test_it_goes_into_the_convolution_behind_it_where_that_does_not_pad(
    group: int, widths: tuple[int, int], kernel: int
) -> None:
    inputs, outputs = group * widths[0], group * widths[1]
    model = model_of(
        f"n = {NORM} (x, gamma, beta, mu, var) y = Conv <group = {group}> (n, w, bias)",
        f"float[batch, {inputs}, 5, 4] x",
        w=batch(outputs, widths[0], kernel, kernel, seed=1),
        bias=batch(outputs, seed=2),
        **statistics(inputs),
    )
    prove(FoldBatchNorm, model, batch(2, inputs, 5, 4))
    assert ops(model) == {"Conv": 1}


MEANS = {
    "mean over height and width": "y = ReduceMean <keepdims = 0> (n, hw)",
    "the same, counted from the end": "y = ReduceMean <keepdims = 1> (n, back)",
    "global pool": "y = GlobalAveragePool (n)",
    "flattened first": "f = Reshape (n, flat) y = ReduceMean <keepdims = 0> (f, last)",
    "flattened first, pooled": "f = Reshape (n, flat) y = GlobalAveragePool (f)",
}
MEAN_WEIGHTS: dict[str, Any] = {
    "hw": np.array([2, 3]),
    "back": np.array([-1, -2]),
    "flat": np.array([0, 6, 20]),
    "last": np.array([-1]),
    "rows": np.array([0, 6]),
    "m": batch(6, 3, seed=1),
    "mt": batch(3, 6, seed=1),
    "bias": batch(3, seed=2),
    **statistics(6),
}


@pytest.mark.parametrize("case", MEANS)
def test_it_goes_behind_a_mean_over_all_positions(case: str) -> None:
    model = model_of(f"n = {NORM} (x, gamma, beta, mu, var) {MEANS[case]}", "float[batch, 6, 5, 4] x", **MEAN_WEIGHTS)
    prove(FoldBatchNorm, model, batch(2, 6, 5, 4))
    assert "BatchNormalization" not in ops(model)
    assert [node.op_type for node in model.graph][-2:] == ["Mul", "Add"]


@pytest.mark.parametrize("case", MEANS)
@pytest.mark.parametrize(
    "linear",
    [
        "z = Gemm (v, m, bias)",
        "z = Gemm (v, m)",
        "z = Gemm <transB = 1> (v, mt, bias)",
        "p = MatMul (v, m) z = Add (bias, p)",
    ],
)
def test_a_linear_layer_behind_that_mean_takes_it(case: str, linear: str) -> None:
    model = model_of(
        f"n = {NORM} (x, gamma, beta, mu, var) {MEANS[case]} v = Reshape (y, rows) {linear}",
        "float[batch, 6, 5, 4] x",
        outputs="z",
        **MEAN_WEIGHTS,
    )
    before = sum(ops(model).values())
    prove(FoldBatchNorm, model, batch(2, 6, 5, 4))
    assert "BatchNormalization" not in ops(model)
    assert sum(ops(model).values()) == before - 1


@pytest.mark.parametrize(
    "linear",
    ["z = Gemm <alpha = 0.5> (y, m, bias)", "z = MatMul (y, m)", "p = Gemm (y, m) z = Concat <axis = 1> (y, p)"],
)
def test_a_linear_layer_that_cannot_take_it_finds_it_in_front(linear: str) -> None:
    model = model_of(
        f"n = {NORM} (x, gamma, beta, mu, var) {MEANS['mean over height and width']} {linear}",
        "float[batch, 6, 5, 4] x",
        outputs="z",
        **MEAN_WEIGHTS,
    )
    prove(FoldBatchNorm, model, batch(2, 6, 5, 4))
    assert ops(model).keys() >= {"Mul", "Add"}


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w) r = Relu (c) y = Add (c, r) z = NORM (c, gamma, beta, mu, var)",  # c has two consumers
        "n = NORM (x, gamma, beta, mu, var) z = Conv <pads = [1, 1, 1, 1]> (n, w)",  # the border would see the shift
        'n = NORM (x, gamma, beta, mu, var) z = Conv <auto_pad = "SAME_UPPER"> (n, w)',
        "n = NORM (x, gamma, beta, mu, var) y = Relu (n) z = Conv (n, w)",
        "n = NORM (x, gamma, beta, mu, var) z = ReduceMean (n, only_height)",
        "n = NORM (x, gamma, beta, mu, var) r = Reshape (n, other) z = ReduceMean (r, last)",
        "z = NORM (x, gamma, beta, mu, var)",
    ],
)
def test_it_stays_where_no_neighbour_can_take_it(body: str) -> None:
    weights = {
        "w": batch(6, 6, 2, 2, seed=1),
        "only_height": np.array([2]),
        "other": np.array([0, 3, 40]),
        **MEAN_WEIGHTS,
    }
    model = model_of(body.replace("NORM", NORM), "float[batch, 6, 5, 4] x", outputs="z", **weights)
    assert prove(FoldBatchNorm, model, batch(2, 6, 5, 4)).changes == []


def test_weights_that_two_convolutions_share_are_changed_for_one_only() -> None:
    model = model_of(
        f"c = Conv (x, w, b) y = {NORM} (c, gamma, beta, mu, var) z = Conv (y, w, b)",
        "float[batch, 6, 5, 4] x",
        outputs="y, z",
        w=batch(6, 6, 1, 1, seed=1),
        b=batch(6, seed=2),
        **statistics(6),
    )
    prove(FoldBatchNorm, model, batch(2, 6, 5, 4))
    assert ops(model) == {"Conv": 2}
    assert model.graph.initializers.keys() == {"w", "b", "w_1", "b_1"}


@pytest.mark.parametrize(
    "body",
    [
        f"n = {NORM} (x, gamma, beta, mu, var) v = ReduceMean <keepdims = 0> (n, hw)",
        f"a = ReduceMean <keepdims = 0> (x, hw) v = {NORM} (a, gamma, beta, mu, var)",
    ],
)
def test_all_the_heads_behind_it_take_it(body: str) -> None:
    heads = "y = Gemm (v, m, bias) p = MatMul (v, other) z = Add (bias, p)"
    weights = {**MEAN_WEIGHTS, "other": batch(6, 3, seed=3)}
    model = model_of(f"{body} {heads}", "float[batch, 6, 5, 4] x", outputs="y, z", **weights)
    prove(FoldBatchNorm, model, batch(2, 6, 5, 4))
    assert ops(model) == {"ReduceMean": 1, "Gemm": 1, "MatMul": 1, "Add": 1}


def test_a_norm_that_somebody_else_sees_stays_in_front_of_the_heads() -> None:
    body = (
        f"a = ReduceMean <keepdims = 0> (x, hw) v = {NORM} (a, gamma, beta, mu, var) y = Gemm (v, m, bias) z = Abs (v)"
    )
    model = model_of(body, "float[batch, 6, 5, 4] x", outputs="y, z", **MEAN_WEIGHTS)
    assert prove(FoldBatchNorm, model, batch(2, 6, 5, 4)).changes == []
