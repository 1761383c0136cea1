from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import batch, folded, ops, parsed, prove
from vitdeploy.models.lemevit import CrossAttention, SelfAttention
from vitdeploy.passes.drop_key_bias import DropKeyBias

WEIGHTS = {
    "wq": batch(8, 8, seed=1),
    "wk": batch(8, 8, seed=2),
    "wv": batch(8, 8, seed=3),
    "bk": 3 * batch(8, seed=4),
    "one": np.array([[3.0]], dtype=np.float32),
    "wqkv": batch(8, 24, seed=5),
    "bqkv": 3 * batch(24, seed=6),
    "mask": batch(5, 5, seed=7),
    "learned": batch(1, 2, 3, 4, seed=11),
    "factor": np.array(0.4, dtype=np.float32),
    "by_head": batch(2, 1, 1, seed=8),
    "by_key": batch(5, seed=9),
    "thirds": np.array([8, 8, 8]),
    "heads": np.array([-1, 5, 2, 4]),
    "groups": np.array([-1, 2, 4, 5]),
    "rows": np.array([-1, 8]),
    "windows": np.array([-1, 1, 2, 5, 5]),
    "whole": np.array([-1, 2, 5, 5]),
}
QUERY = "m = MatMul (x, wq) qr = Reshape (m, heads) q = Transpose <perm = [0, 2, 1, 3]> (qr) "
LINEAR = "n = MatMul (x, wk) k = Add (n, bk) "
KEYS = "kr = Reshape (k, heads) t = Transpose <perm = [0, 2, 3, 1]> (kr) "
SCORES = "s = MatMul (q, t) "

DROPPED = {
    "a layer of its own": LINEAR + KEYS + SCORES + "y = Softmax (s)",
    "one number for all channels": "n = MatMul (x, wk) k = Add (one, n) "
    + KEYS
    + SCORES
    + "y = Softmax <axis = 3> (s)",
    "a mask": LINEAR + KEYS + SCORES + "z = Add (mask, s) y = Softmax (z)",
    "scores that are scaled": LINEAR + KEYS + SCORES + "z = Mul (s, factor) u = Div (z, by_head) y = Softmax (u)",
    "scores by window": LINEAR
    + KEYS
    + SCORES
    + "z = Reshape (s, windows) u = Add (z, mask) v = Reshape (u, whole) y = Softmax (v)",
    "two products in one softmax": LINEAR + KEYS + SCORES + "p = MatMul (q, q2) z = Add (s, p) y = Softmax (z)",
    "two Transposes": LINEAR
    + "kr = Reshape (k, heads) kt = Transpose <perm = [0, 2, 1, 3]> (kr) t = Transpose <perm = [0, 1, 3, 2]> (kt) "
    + SCORES
    + "y = Softmax (s)",
    "queries that do not depend on the image": LINEAR + KEYS + "s = MatMul (learned, t) y = Softmax (s)",
    "a Gemm": "x2 = Reshape (x, rows) k = Gemm (x2, wk, bk) " + KEYS + SCORES + "y = Softmax (s)",
}  # fmt: skip


def graph(body: str, outputs: str = "y") -> ir.Model:
    second = "xt = Transpose <perm = [0, 2, 1]> (x) q2 = Reshape (xt, groups) "
    return parsed(f"agraph (float[2, 5, 8] x) => ({outputs}) {{ {QUERY} {second} {body} }}", **WEIGHTS)


@pytest.mark.parametrize("case", DROPPED)
def test_a_bias_that_no_softmax_sees_is_dropped(case: str) -> None:
    model = graph(DROPPED[case])
    assert len(prove(DropKeyBias, model, batch(2, 5, 8)).changes) == 1
    assert not {"bk", "one"} & set(model.graph.initializers)


LEFT_ALONE = {
    "the softmax over the queries": LINEAR + KEYS + SCORES + "y = Softmax <axis = 2> (s)",
    "scores read elsewhere": LINEAR + KEYS + SCORES + "z = Softmax (s) e = ReduceMax (s) y = Add (z, e)",
    "keys that are values too": LINEAR
    + KEYS
    + SCORES
    + "w = Softmax (s) v = Transpose <perm = [0, 2, 1, 3]> (kr) y = MatMul (w, v)",
    "the bias of the queries": "n = MatMul (x, wk) b = Add (m, bk) br = Reshape (b, heads) "
    "u = Transpose <perm = [0, 2, 1, 3]> (br) k = Identity (n) " + KEYS + "s = MatMul (u, t) y = Softmax (s)",
    "a factor for each key": LINEAR + KEYS + SCORES + "z = Mul (s, by_key) y = Softmax (z)",
    "something else than a sum": LINEAR + KEYS + SCORES + "z = Tanh (s) y = Softmax (z)",
    "channels that became keys": LINEAR + "r = Reshape (k, groups) u = Transpose <perm = [0, 1, 3, 2]> (r) "
    "c = MatMul (r, u) y = Softmax (c)",
    "keys along the channels": LINEAR + "z = Transpose <perm = [0, 2, 1]> (x) c = MatMul (z, k) y = Softmax (c)",
    "keys that are normalized": "n = MatMul (x, wk) b = Add (n, bk) k = LayerNormalization (b, by_channel) "
    + KEYS
    + SCORES
    + "y = Softmax (s)",
    "no softmax": LINEAR + KEYS + "y = MatMul (q, t)",
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    text = f"agraph (float[2, 5, 8] x) => (y) {{ {QUERY} {LEFT_ALONE[case]} }}"
    model = parsed(text, **WEIGHTS, by_channel=batch(8, seed=10))
    assert prove(DropKeyBias, model, batch(2, 5, 8)).changes == []


def test_a_bias_that_another_layer_adds_stays_with_it() -> None:
    model = graph(LINEAR + KEYS + SCORES + "z = Softmax (s) o = Add (m, bk) y = MatMul (z, o4) "
                  "or = Reshape (o, heads) o4 = Transpose <perm = [0, 2, 1, 3]> (or)")  # fmt: skip
    model.graph.sort()
    assert prove(DropKeyBias, model, batch(2, 5, 8)).changes
    np.testing.assert_array_equal(model.graph.initializers["bk"].const_value.numpy(), WEIGHTS["bk"])


@settings(max_examples=examples(25))
@given(
    b=st.integers(1, 3),
    n=st.integers(1, 6),
    h=st.integers(1, 4),
    d=st.integers(1, 5),
    position=st.integers(0, 2),
    key_first=st.booleans(),
)
def test_only_the_part_of_the_keys_becomes_zero(b: int, n: int, h: int, d: int, position: int, key_first: bool) -> None:
    c = h * d
    parts = ["p0", "p1", "p2"]
    key = parts.pop(position)
    perm, first = ([0, 2, 3, 1], "") if key_first else ([0, 1, 3, 2], "k0 = Transpose <perm = [0, 2, 1, 3]> (kr) ")
    model = parsed(
        f"agraph (float[{b}, {n}, 6] x) => (y) {{ m = MatMul (x, w) f = Add (bias, m) "
        "p0, p1, p2 = Split <axis = 2> (f, split) "
        f"qr = Reshape ({parts[0]}, heads) q = Transpose <perm = [0, 2, 1, 3]> (qr) kr = Reshape ({key}, heads) {first}"
        f"k = Transpose <perm = {perm}> ({'k0' if first else 'kr'}) a = MatMul (q, k) s = Softmax (a) "
        f"vr = Reshape ({parts[1]}, heads) v = Transpose <perm = [0, 2, 1, 3]> (vr) y = MatMul (s, v) }}",
        w=batch(6, 3 * c, seed=1),
        bias=(bias := batch(3 * c, seed=2)),
        split=np.array([c] * 3),
        heads=np.array([b, n, h, d]),
    )

    prove(DropKeyBias, model, batch(b, n, 6))

    expected = bias.copy()
    expected[position * c : (position + 1) * c] = 0
    np.testing.assert_array_equal(model.graph.initializers["bias"].const_value.numpy(), expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_self_attention_of_lemevit(dynamic: bool) -> None:
    attention = SelfAttention(64)
    torch.nn.init.normal_(attention.qkv.bias)
    model = folded(attention, torch.randn(2, 17, 64), dynamic_batch=dynamic)
    prove(DropKeyBias, model, batch(2, 17, 64))
    bias = next(a for a in (v.const_value.numpy() for v in model.graph.initializers.values()) if a.shape == (192,))
    assert [bool(part.any()) for part in np.split(bias, 3)] == [True, False, True]


def test_a_key_layer_of_its_own_loses_its_add() -> None:
    class Attention(CrossAttention):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.k, self.v = torch.nn.Linear(width, width), torch.nn.Linear(width, width)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            shape = (tokens.shape[0], -1, self.heads, tokens.shape[2] // self.heads)
            q, k, v = (part(tokens).reshape(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    model = folded(Attention(64), torch.randn(2, 9, 64))
    adds = ops(model)["Add"]
    prove(DropKeyBias, model, batch(2, 9, 64))
    assert ops(model)["Add"] == adds - 1
