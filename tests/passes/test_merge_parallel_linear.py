from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, ops, parsed, prove
from vitdeploy.passes.merge_parallel_linear import MergeParallelLinear

WEIGHTS = {
    "w": batch(6, 4, seed=1),
    "w_t": batch(4, 6, seed=2),
    "v": batch(6, 4, seed=3),
    "b": batch(4, seed=4),
    "c": batch(1, 1, 4, seed=5),
    "gamma": batch(4, seed=6) + 3,
    "row": batch(1, 1, 4, seed=7),
    "channel": batch(4, 1, 1, seed=8),
    "number": np.array(0.5, np.float32),
    "one": batch(1, seed=9) + 2,
    "tokens": batch(3, 1, seed=10),
    "wide": batch(5, 2, 3, 4, seed=11),
    "tiny": np.full(4, 1e-7, np.float32),
    "zero": np.array([1, 2, 0, 3], np.float32),
}


def model_of(body: str, inputs: str = "float[batch, 3, 6] x", outputs: str = "y") -> ir.Model:
    return parsed(f"agraph ({inputs}) => ({outputs}) {{ {body} }}", **WEIGHTS)


@settings(max_examples=examples(40))
@given(
    biased=st.booleans(),
    scale=st.sampled_from(["gamma", "row", "number", "one"]),
    form=st.sampled_from(["Mul (l, {})", "Mul ({}, l)", "Div (l, {})"]),
    twice=st.booleans(),
)
def test_a_scale_goes_into_the_layer(biased: bool, scale: str, form: str, twice: bool) -> None:
    layer = "p = MatMul (x, w) l = Add (p, b)" if biased else "l = MatMul (x, w)"
    tail = "y = Mul (s, gamma)" if twice else "y = Identity (s)"
    model = model_of(f"{layer} s = {form.format(scale)} {tail}")
    prove(MergeParallelLinear, model, batch(2, 3, 6))
    assert ops(model) == {"MatMul": 1} | ({"Add": 1} if biased else {}) | ({} if twice else {"Identity": 1})


@pytest.mark.parametrize("attributes", ["", "<transB = 1>", "<alpha = 0.5, beta = 2.0>"])
def test_a_scale_goes_into_gemm(attributes: str) -> None:
    weight = "w_t" if "transB" in attributes else "w"
    model = model_of(f"l = Gemm {attributes} (x, {weight}, b) y = Div (l, gamma)", "float[3, 6] x")
    prove(MergeParallelLinear, model, batch(3, 6))
    assert ops(model) == {"Gemm": 1}


def test_a_scale_of_channels_goes_into_the_layer_before_the_transpose() -> None:
    body = "p = MatMul (x, w) l = Add (b, p) t = Transpose <perm = [0, 3, 1, 2]> (l) y = Mul (t, channel)"
    model = model_of(body, "float[batch, 2, 3, 6] x")
    prove(MergeParallelLinear, model, batch(2, 2, 3, 6))
    assert ops(model) == {"MatMul": 1, "Add": 1, "Transpose": 1}


@pytest.mark.parametrize("sign", ["Add", "Sub"])
@pytest.mark.parametrize("attributes", ["", "<transB = 1>"])
def test_two_heads_are_one(sign: str, attributes: str) -> None:
    weights = ("w_t", "w_t") if attributes else ("w", "v")
    heads = " ".join(f"h{i} = Gemm {attributes} (x, {weight}, b)" for i, weight in enumerate(weights))
    model = model_of(f"{heads} s = {sign} (h0, h1) y = Mul (s, number)", "float[3, 6] x")
    prove(MergeParallelLinear, model, batch(3, 6))
    assert ops(model) == {"Gemm": 1}


def test_three_layers_of_tokens_are_one() -> None:
    body = "p = MatMul (x, w) q = MatMul (x, v) r = MatMul (x, w) i = Add (p, b) j = Add (q, c) k = Add (r, b) "
    model = model_of(body + "s = Sub (i, j) y = Add (k, s)")
    prove(MergeParallelLinear, model, batch(2, 3, 6))
    assert ops(model) == {"MatMul": 1, "Add": 1}


@pytest.mark.parametrize(
    "body",
    [
        "l = MatMul (x, w) y = Mul (l, tokens)",  # another factor for each row
        "l = MatMul (x, w) y = Mul (l, wide)",  # and for each image: broadcast
        "l = MatMul (x, w) s = Mul (l, gamma) y = Add (s, l)",  # the layer has another consumer
        "l = MatMul (x, w) y = Div (gamma, l)",
        "l = MatMul (x, w) y = Mul (l, tiny)",  # FP16 holds no such weights
        "l = MatMul (x, w) r = Relu (l) y = Mul (r, gamma)",
        "l = MatMul (x, w) r = Relu (x) m = MatMul (r, v) y = Add (l, m)",  # layers of other inputs
        "l = MatMul (x, w) m = MatMul (x, v) i = Add (l, b) y = Add (i, m)",  # one without a bias: two Adds either way
        "l = MatMul (x, w) m = MatMul (x, v) s = Add (l, m) y = Mul (s, m)",
        "l = MatMul (x, w) y = Add (l, l)",
    ],
)
def test_what_is_another_function_stays(body: str) -> None:
    assert prove(MergeParallelLinear, model_of(body), batch(2, 3, 6)).changes == []


def test_a_division_by_zero_stays() -> None:
    model = model_of("l = MatMul (x, w) y = Div (l, zero)")
    changer = MergeParallelLinear(PORTABLE)
    changer(model)
    assert changer.changes == []


def test_weights_that_another_layer_shares_are_left_to_it() -> None:
    model = model_of("l = MatMul (x, w) s = Mul (l, gamma) m = MatMul (x, w) r = Relu (m) y = Add (s, r)")
    prove(MergeParallelLinear, model, batch(2, 3, 6))
    assert ops(model) == {"MatMul": 2, "Relu": 1, "Add": 1}
