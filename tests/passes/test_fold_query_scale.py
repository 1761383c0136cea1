from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, folded, ops, parsed, prove, run
from vitdeploy.models.lemevit import DualCrossAttention, SelfAttention, TiedDualCrossAttention
from vitdeploy.passes.fold_query_scale import FoldQueryScale

WEIGHTS = {
    "wq": batch(8, 8, seed=1),
    "wt": batch(8, 8, seed=5),
    "bq": batch(8, seed=2),
    "wqkv": batch(8, 24, seed=3),
    "bqkv": batch(1, 1, 24, seed=4),
    "thirds": np.array([8, 8, 8]),
    "heads": np.array([-1, 5, 2, 4]),
    "rows": np.array([-1, 8]),
    "tokens": np.array([-1, 5, 8]),
    "s": np.array(0.3, dtype=np.float32),
    "s111": np.array([[[0.3]]], dtype=np.float32),
    "vector": batch(4, seed=6),
    "batched": np.array([0.3], dtype=np.float32),
}

MAP = np.array([-1, 2, 4, 5])
KEYS = "kr = Reshape (x, heads) k = Transpose <perm = [0, 2, 3, 1]> (kr) "
HEADS = "qr = Reshape (p, heads) q = Transpose <perm = [0, 2, 1, 3]> (qr) "
LINEAR = "m = MatMul (x, wq) p = Add (m, bq) "

FOLDED = {
    "behind the heads": LINEAR + HEADS + KEYS + "z = Mul (q, s) y = MatMul (z, k)",
    "scalar first": LINEAR + HEADS + KEYS + "z = Mul (s, q) y = MatMul (z, k)",
    "before the heads": LINEAR
    + KEYS
    + "z = Mul (p, s) qr = Reshape (z, heads) q = Transpose <perm = [0, 2, 1, 3]> (qr) y = MatMul (q, k)",
    "divided": LINEAR + HEADS + KEYS + "z = Div (q, s) y = MatMul (z, k)",
    "of rank three": LINEAR + HEADS + KEYS + "z = Mul (q, s111) y = MatMul (z, k)",
    "without bias": "p = MatMul (x, wq) " + HEADS + KEYS + "z = Mul (q, s) y = MatMul (z, k)",
    "on the product": LINEAR + HEADS + KEYS + "a = MatMul (q, k) z = Mul (a, s) y = Softmax (z)",
    "on the product, divided": LINEAR + HEADS + KEYS + "a = MatMul (q, k) z = Div (a, s) y = Softmax (z)",
    "on the right operand": LINEAR + HEADS + "k = Reshape (x, heads) t = Transpose <perm = [0, 2, 1, 3]> (k) "
    "z = Mul (q, s) zt = Transpose <perm = [0, 1, 3, 2]> (z) y = MatMul (t, zt)",
    "Gemm": "x2 = Reshape (x, rows) p = Gemm (x2, wq, bq) " + HEADS + KEYS + "z = Mul (q, s) y = MatMul (z, k)",
    "Gemm with factors": "x2 = Reshape (x, rows) p = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x2, wt, bq) "
    + HEADS
    + KEYS
    + "z = Mul (q, s) y = MatMul (z, k)",
    "part of a fused projection": "m = MatMul (x, wqkv) f = Add (m, bqkv) p, kp, v = Split <axis = -1> (f, thirds) "
    + HEADS
    + "kr = Reshape (kp, heads) k = Transpose <perm = [0, 2, 3, 1]> (kr) z = Mul (q, s) a = MatMul (z, k) "
    "vr = Reshape (v, heads) vt = Transpose <perm = [0, 2, 1, 3]> (vr) y = MatMul (a, vt)",
    "queries of a map, into the keys": "qr = Reshape (x, map) q = Transpose <perm = [0, 1, 3, 2]> (qr) "
    "m = MatMul (x, wq) p = Add (m, bq) kr = Reshape (p, heads) k = Transpose <perm = [0, 2, 3, 1]> (kr) "
    "z = Mul (q, s) y = MatMul (z, k)",
    "middle part of a fused Gemm": "x2 = Reshape (x, rows) g = Gemm (x2, wqkv) u = Reshape (g, fused) "
    "o, p, w = Split <axis = 2> (u, thirds) n = Add (o, w) " + HEADS + "kr = Reshape (n, heads) "
    "k = Transpose <perm = [0, 2, 3, 1]> (kr) z = Mul (q, s) y = MatMul (z, k)",
}  # fmt: skip


def graph(body: str, outputs: str = "y") -> ir.Model:
    return parsed(
        f"agraph (float[batch, 5, 8] x) => ({outputs}) {{ {body} }}", **WEIGHTS, fused=np.array([-1, 5, 24]), map=MAP
    )


def scales(model: ir.Model) -> int:
    return ops(model)["Mul"] + ops(model)["Div"]


@pytest.mark.parametrize("case", FOLDED)
def test_scale_moves_into_the_projection(case: str) -> None:
    model = graph(FOLDED[case])
    assert scales(model) == 1
    assert len(prove(FoldQueryScale, model, batch(2, 5, 8), batch(1, 5, 8, seed=7)).changes) == 1
    assert scales(model) == 0


LEFT_ALONE = {
    "query read elsewhere": LINEAR + HEADS + KEYS + "z = Mul (q, s) a = MatMul (z, k) e = ReduceSum (q) y = Add (a, e)",
    "projection read elsewhere": LINEAR
    + HEADS
    + KEYS
    + "z = Mul (q, s) a = MatMul (z, k) e = ReduceSum (p) y = Add (a, e)",
    "product read before its bias": LINEAR
    + HEADS
    + KEYS
    + "z = Mul (q, s) a = MatMul (z, k) e = ReduceSum (m) y = Add (a, e)",
    "scaled query read elsewhere": LINEAR
    + HEADS
    + KEYS
    + "z = Mul (q, s) a = MatMul (z, k) e = ReduceSum (z) y = Add (a, e)",
    "a factor for each channel": LINEAR + HEADS + KEYS + "z = Mul (q, vector) y = MatMul (z, k)",
    "a factor that is computed": LINEAR + HEADS + KEYS + "c = ReduceMax (x) z = Mul (q, c) y = MatMul (z, k)",
    "no projection": "p = Softmax (x) " + HEADS + KEYS + "z = Mul (q, s) y = MatMul (z, k)",
    "a layer of weights behind it": LINEAR + "z = Mul (p, s) y = MatMul (z, wt)",
    "a product with itself": LINEAR + HEADS + "kk = Transpose <perm = [0, 1, 3, 2]> (q) a = MatMul (q, kk) "
    "y = Mul (a, s)",
    "a square": "p = MatMul (x, wq) r = Reshape (p, square) a = MatMul (r, r) y = Mul (a, s)",
    "rows of a Split": "m = MatMul (x, wq) o, p = Split <axis = 1> (m, rows_cut) z = Mul (p, s) "
    "t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (z, t) e = Relu (o)",
    "scores that are an output": LINEAR + HEADS + KEYS + "a = MatMul (q, k) y = Mul (a, s)",
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    outputs = {"rows of a Split": "y, e", "scores that are an output": "y, a"}.get(case, "y")
    text = f"agraph (float[batch, 5, 8] x) => ({outputs}) {{ {LEFT_ALONE[case]} }}"
    model = parsed(text, **WEIGHTS, square=np.array([-1, 1, 1]), rows_cut=np.array([2, 3]))
    assert prove(FoldQueryScale, model, batch(2, 5, 8)).changes == []


@pytest.mark.parametrize("layout", ["q = Transpose <perm = [0, 1, 3, 2]> (qr)", "q = Reshape (qr, to_heads)"])
@pytest.mark.parametrize("scale", ["Mul (q, s)", "Div (q, s)"])
def test_a_scale_that_stays_goes_before_the_heads(layout: str, scale: str) -> None:
    body = f"c = Relu (x) qr = Reshape (c, map) {layout} {KEYS} z = {scale} y = MatMul (z, k)"
    model = parsed(
        f"agraph (float[batch, 5, 8] x) => (y) {{ {body} }}", **WEIGHTS, map=MAP, to_heads=np.array([-1, 2, 5, 4])
    )
    prove(FoldQueryScale, model, batch(2, 5, 8))
    order = [node.op_type for node in model.graph]
    assert order.index("Mul") == order.index("Relu") + 1
    assert ops(model)["Div"] == 0


def test_weights_that_another_layer_reads_are_copied() -> None:
    model = graph(
        LINEAR + HEADS + KEYS + "z = Mul (q, s) a = MatMul (z, k) o = MatMul (x, wq) e = ReduceMax (o) y = Add (a, e)"
    )
    assert prove(FoldQueryScale, model, batch(2, 5, 8)).changes
    np.testing.assert_array_equal(model.graph.initializers["wq"].const_value.numpy(), WEIGHTS["wq"])


@settings(max_examples=examples(25))
@given(
    b=st.integers(1, 3),
    n=st.integers(1, 6),
    h=st.integers(1, 4),
    d=st.integers(1, 5),
    position=st.integers(0, 2),
    factor=st.floats(0.01, 4.0) | st.floats(-4.0, -0.01),
)
def test_only_the_columns_of_the_scaled_part_change(
    b: int, n: int, h: int, d: int, position: int, factor: float
) -> None:
    c = h * d
    parts = ["p0", "p1", "p2"]
    query = parts.pop(position)
    weight = batch(6, 3 * c, seed=1)
    model = parsed(
        f"agraph (float[{b}, {n}, 6] x) => (y) {{ m = MatMul (x, w) f = Add (m, b) "
        "p0, p1, p2 = Split <axis = 2> (f, split) "
        f"qr = Reshape ({query}, heads) q = Transpose <perm = [0, 2, 1, 3]> (qr) z = Mul (q, s) "
        f"kr = Reshape ({parts[0]}, heads) k = Transpose <perm = [0, 2, 3, 1]> (kr) a = MatMul (z, k) "
        f"vr = Reshape ({parts[1]}, heads) v = Transpose <perm = [0, 2, 1, 3]> (vr) y = MatMul (a, v) }}",
        w=weight,
        b=batch(3 * c, seed=2),
        s=np.array(factor, dtype=np.float32),
        split=np.array([c] * 3),
        heads=np.array([b, n, h, d]),
    )

    prove(FoldQueryScale, model, batch(b, n, 6))

    expected = weight.copy()
    expected[:, position * c : (position + 1) * c] *= np.float32(factor)
    np.testing.assert_allclose(model.graph.initializers["w"].const_value.numpy(), expected, rtol=1e-6)


class _Streams(nn.Module):
    """A block's attention on an image of 12 tokens and 5 meta tokens that depend on it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, tokens: Tensor) -> Tensor:
        if isinstance(self.attention, SelfAttention):
            return self.attention(tokens)
        return torch.cat(self.attention(tokens[:, :12], tokens[:, 12:]), dim=1)


@pytest.mark.parametrize(("kind", "left"), [(SelfAttention, 0), (DualCrossAttention, 0), (TiedDualCrossAttention, 2)])
def test_attentions_of_lemevit(kind: type[nn.Module], left: int) -> None:
    """Queries that are the keys of the other stream keep their scale."""
    model = folded(_Streams(kind(64)), torch.randn(2, 17, 64), dynamic_batch=True)
    prove(FoldQueryScale, model, batch(2, 17, 64), batch(1, 17, 64))
    assert ops(model)["Mul"] == left


@pytest.mark.parametrize("projected", [True, False])
def test_openvino_is_right_where_there_are_as_many_tokens_as_heads(projected: bool, tmp_path: Path) -> None:
    """Queries of a map that something is done to behind the heads are another function there, as are the scores."""
    openvino = pytest.importorskip("openvino")
    keys = "ka = MatMul (x, wk) kb = MatMul (x, wv)" if projected else "ka = Relu (x) kb = Relu (x)"
    text = f"""agraph (float[1, 16, 128] x, float[1, 128, 4, 4] g) => (y) {{
        {keys} kr = Reshape (ka, heads) k = Transpose <perm = [0, 2, 3, 1]> (kr)
        vr = Reshape (kb, heads) v = Transpose <perm = [0, 2, 1, 3]> (vr)
        c = Conv (g, wg) qr = Reshape (c, map) q = Transpose <perm = [0, 1, 3, 2]> (qr) z = Mul (q, s)
        a = MatMul (z, k) b = Add (a, positions) p = Softmax (b) o = MatMul (p, v)
        t = Transpose <perm = [0, 2, 1, 3]> (o) r = Reshape (t, tokens) y = MatMul (r, wv)
    }}"""
    weights = {name: 0.1 * batch(128, 128, seed=seed) for seed, name in enumerate(("wk", "wv"), 3)}
    weights |= {"wg": 0.1 * batch(128, 128, 1, 1, seed=5), "positions": batch(1, 16, 16, 16, seed=6)}
    shapes = {"heads": [1, 16, 16, 8], "map": [1, 16, 8, 16], "tokens": [1, 16, 128]}
    if not projected:
        del weights["wk"]
    model = parsed(text, **weights, **{name: np.array(shape) for name, shape in shapes.items()}, s=WEIGHTS["s"])
    feeds = {"x": batch(1, 16, 128), "g": batch(1, 128, 4, 4, seed=7)}
    (expected,) = run(model, feeds)
    FoldQueryScale(PORTABLE)(model)
    ir.save(model, tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert np.abs(compiled(feeds)[0] - expected).max() <= 1e-4 * np.abs(expected).max()
