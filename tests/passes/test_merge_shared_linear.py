from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import examples
from tests.exporter.zoo_models import BlockOfMaps
from tests.graph_cases import batch, folded, ops, parsed, prove
from vitdeploy.graph.edit import sizes
from vitdeploy.models.lemevit import CrossBlock, DualCrossBlock, StandardBlock
from vitdeploy.passes.merge_shared_linear import MergeSharedLinear
from vitdeploy.passes.streams import MAX_SHORT_TOKENS

WEIGHTS = {
    "w": batch(8, 8, seed=1),
    "same": batch(8, 8, seed=1),
    "v": batch(8, 8, seed=2),
    "b": batch(8, seed=3),
    "g": batch(8, seed=4),
    "position": batch(5, 8, seed=5),
    "cut": np.array([5, 3]),
    "half": np.array([4, 4]),
    "square": batch(8, 8, 8, seed=6),
}


def graph(body: str, outputs: str = "y, z", inputs: str = "float[batch, 8, 8] x") -> ir.Model:
    """Two streams of 5 and 3 tokens, `t` and `c`, cut from x by nodes that cannot be merged."""
    streams = "o, p = Split <axis = 1> (x, cut) t = Softmax <axis = 2> (o) c = Tanh (p) "
    return parsed(f"agraph ({inputs}) => ({outputs}) {{ {streams} {body} }}", **WEIGHTS)


MERGED = {
    "one layer": ("a = MatMul (t, w) d = MatMul (c, w) y = Relu (a) z = Abs (d)", {"MatMul": 1, "Concat": 1}),
    "equal weights in two initializers": (
        "a = MatMul (t, w) d = MatMul (c, same) y = Relu (a) z = Abs (d)",
        {"MatMul": 1, "Concat": 1},
    ),
    "norm and bias": (
        "n = LayerNormalization (t, g, b) k = LayerNormalization (c, g, b) a = MatMul (n, w) d = MatMul (k, w) "
        "e = Add (a, b) f = Add (d, b) y = Softmax <axis = 2> (e) z = Abs (f)",
        {"LayerNormalization": 1, "MatMul": 1, "Add": 1, "Concat": 1},
    ),
    "residual MLP": (
        "n = LayerNormalization (t, g) k = LayerNormalization (c, g) a = MatMul (n, w) d = MatMul (k, w) "
        "e = Gelu (a) f = Gelu (d) h = MatMul (e, v) i = MatMul (f, v) j = Add (t, h) l = Add (c, i) "
        "y = Softmax <axis = 2> (j) z = Abs (l)",
        {"LayerNormalization": 1, "Gelu": 1, "MatMul": 2, "Add": 1, "Concat": 1},
    ),
    "streams that swap": (
        "a = MatMul (t, w) d = MatMul (c, w) e = MatMul (t, v) f = MatMul (c, v) m = Mul (a, e) n = Mul (d, f) "
        "y = Softmax <axis = 2> (m) z = Abs (n)",
        {"MatMul": 2, "Mul": 1, "Concat": 1},
    ),
}


@pytest.mark.parametrize("case", MERGED)
def test_shared_chain_runs_once(case: str) -> None:
    body, expected = MERGED[case]
    model = graph(body)
    prove(MergeSharedLinear, model, batch(2, 8, 8), batch(1, 8, 8, seed=9))
    count = ops(model)
    assert {kind: count[kind] for kind in expected} == expected
    assert count["Split"] == 2  # the streams' own, and the one where they part


LEFT_ALONE = {
    "one stream needs the other": (
        "a = MatMul (t, w) s = ReduceMean (a) k = Add (c, s) d = MatMul (k, w) y = Abs (a) z = Abs (d)",
        "y, z",
    ),
    "different weights": ("a = MatMul (t, w) d = MatMul (c, v) y = Abs (a) z = Abs (d)", "y, z"),
    "a norm alone": (
        "n = LayerNormalization (t, g) k = LayerNormalization (c, g) y = Abs (n) z = Abs (k)",
        "y, z",
    ),
    "a stream without the batch": (
        "a = MatMul (t, w) l = ReduceMean (x, first) k = Tanh (l) d = MatMul (k, w) y = Abs (a) z = Abs (d)",
        "y, z",
    ),
    "a result that is an output": ("y = MatMul (t, w) d = MatMul (c, w) z = Abs (d)", "y, z"),
    "rank two": (
        "r = ReduceMean <keepdims = 0> (t, axis) s = ReduceMean <keepdims = 0> (c, axis) a = MatMul (r, w) "
        "d = MatMul (s, w) y = Abs (a) z = Abs (d)",
        "y, z",
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    body, outputs = LEFT_ALONE[case]
    streams = "o, p = Split <axis = 1> (x, cut) t = Softmax <axis = 2> (o) c = Tanh (p) "
    model = parsed(
        f"agraph (float[batch, 8, 8] x) => ({outputs}) {{ {streams} {body} }}",
        **WEIGHTS,
        axis=np.array([1]),
        first=np.array([0]),
    )
    assert prove(MergeSharedLinear, model, batch(2, 8, 8)).changes == []


def test_what_differs_between_the_streams_stays_apart() -> None:
    """A position encoding of one stream only, and a sum whose other operand is not merged."""
    model = graph(
        "a = MatMul (t, w) d = MatMul (c, w) e = Add (a, position) f = Relu (d) g1 = Relu (e) "
        "h = MatMul (g1, v) i = MatMul (f, v) r = Exp (t) s = Exp (c) j = Add (h, r) k = Add (i, s) "
        "y = Abs (j) z = Abs (k)"
    )
    prove(MergeSharedLinear, model, batch(2, 8, 8))
    count = ops(model)
    assert (count["MatMul"], count["Relu"], count["Add"], count["Exp"]) == (2, 1, 3, 2)


def test_groups_that_cross_do_not_close_a_cycle() -> None:
    """w is shared by the head of one stream and the tail of the other, v the other way round."""
    model = graph(
        "a = MatMul (t, w) b1 = Softmax <axis = 2> (a) e = MatMul (b1, v) "
        "d = MatMul (c, v) f = Softmax <axis = 2> (d) h = MatMul (f, w) y = Abs (e) z = Abs (h)"
    )
    prove(MergeSharedLinear, model, batch(2, 8, 8))
    assert ops(model)["MatMul"] == 3


def test_three_streams() -> None:
    model = graph(
        "s, u = Split <axis = 1> (x, half) q = Sigmoid (s) a = MatMul (t, w) d = MatMul (c, w) e = MatMul (q, w) "
        "f = Add (a, b) h = Add (d, b) i = Add (e, b) y = Abs (f) z = Abs (h) l = Abs (i)",
        "y, z, l",
    )
    prove(MergeSharedLinear, model, batch(2, 8, 8))
    assert (ops(model)["MatMul"], ops(model)["Add"], ops(model)["Concat"]) == (1, 1, 1)


@pytest.mark.parametrize(("short", "merged"), [(MAX_SHORT_TOKENS, True), (MAX_SHORT_TOKENS + 1, False)])
def test_two_long_streams_stay_apart(short: int, merged: bool) -> None:
    model = parsed(
        f"agraph (float[1, {short + 200}, 8] x) => (y, z) {{ t, c = Split <axis = 1> (x, sizes) "
        "o = Softmax <axis = 2> (t) p = Tanh (c) a = MatMul (o, w) d = MatMul (p, w) y = Abs (a) z = Abs (d) }",
        w=WEIGHTS["w"],
        sizes=np.array([200, short]),
    )
    prove(MergeSharedLinear, model, batch(1, short + 200, 8))
    assert (ops(model)["MatMul"] == 1) == merged


@settings(max_examples=examples(25))
@given(
    b=st.integers(1, 3),
    tokens=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    width=st.integers(2, 5),  # ONNX Runtime 1.23 normalizes no single element
    residual=st.booleans(),
    activation=st.sampled_from(["Relu", "Gelu", "Tanh", "Sigmoid"]),
)
def test_any_number_and_length_of_streams(
    b: int, tokens: list[int], width: int, residual: bool, activation: str
) -> None:
    streams = range(len(tokens))
    body = "".join(
        f"t{i} = Softmax <axis = 2> (s{i}) n{i} = LayerNormalization (t{i}, g) m{i} = MatMul (n{i}, w) "
        f"a{i} = Add (b, m{i}) h{i} = {activation} (a{i}) r{i} = MatMul (h{i}, v) "
        + (f"e{i} = Add (t{i}, r{i}) " if residual else f"e{i} = Neg (r{i}) ")
        + f"y{i} = Softmax <axis = 2> (e{i}) "
        for i in streams
    )
    parts, outputs = (", ".join(f"{name}{i}" for i in streams) for name in "sy")
    model = parsed(
        f"agraph (float[{b}, {sum(tokens)}, {width}] x) => ({outputs}) {{ "
        f"{parts} = Split <axis = 1> (x, cut) {body} }}",
        w=batch(width, 7, seed=1),
        v=batch(7, width, seed=2),
        g=batch(width, seed=3),
        b=batch(7, seed=4),
        cut=np.array(tokens),
    )

    prove(MergeSharedLinear, model, batch(b, sum(tokens), width))

    count = ops(model)
    assert (count["MatMul"], count["LayerNormalization"], count[activation]) == (2, 1, 1)
    assert (count["Concat"], count["Split"]) == (1, 2)


@pytest.mark.parametrize(
    ("kind", "saved"),
    [(StandardBlock, {"MatMul": 4, "Gelu": 1}), (DualCrossBlock, {"MatMul": 2, "Gelu": 1}), (CrossBlock, {})],
)
def test_blocks_of_lemevit(kind: type[nn.Module], saved: dict[str, int]) -> None:
    """Kind S shares qkv, proj and both layers of the MLP, kind D the MLP, kind C nothing."""
    torch.manual_seed(0)
    model = folded(BlockOfMaps(kind(32, 2)), torch.randn(2, 64, 3, 4), dynamic_batch=True)
    before = ops(model)
    prove(MergeSharedLinear, model, batch(2, 64, 3, 4), batch(1, 64, 3, 4))
    after = ops(model)
    assert {kind: before[kind] - after[kind] for kind in ("MatMul", "Gelu") if before[kind] != after[kind]} == saved
    assert all(sizes(value) is not None for node in model.graph for value in node.outputs)
