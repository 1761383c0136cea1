from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxsim
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, captured, ops, parsed, prove, run
from tests.rows import TARGETS
from vitdeploy.passes.hoist_broadcast import HoistBroadcast
from vitdeploy.passes.simplify import SKIPPED
from vitdeploy.passes.static_shapes import StaticShapes

WEIGHTS = {
    "tokens": batch(1, 4, 6, seed=1),
    "w": batch(6, 6, seed=2) / 2,
    "b": batch(6, seed=3),
    "g": batch(6, seed=4),
    "heads": np.array([0, 4, 2, 3]),
    "rows": np.array([-1, 6]),
    "tail": np.array([4, 6]),
    "one": np.array([1]),
    "zero": np.array([0]),
    "pixels": np.array([1, 2]),
    "two": np.array([2]),
    "three": np.array([3]),
}
EXPAND = "n = Shape <start = 0, end = 1> (x) s = Concat <axis = 0> (n, tail) c = Expand (tokens, s)"


def graph(body: str, inputs: str = "float[batch, 5, 6] x", outputs: str = "y") -> ir.Model:
    """Tokens [1, 4, 6], expanded to `c` [batch, 4, 6], then `body`."""
    return parsed(f"agraph ({inputs}) => ({outputs}) {{ {EXPAND} {body} }}", **WEIGHTS)


def shape_of(model: ir.Model, name: str) -> list[int]:
    value = next(value for node in model.graph for value in node.outputs if value.name == name)
    assert value.shape is not None
    return list(value.shape)


# What leaves the images apart from each other: from I [batch, 4, 6] to O, and the shape of O for one image.
ALIKE = {
    "linear": ("OM = MatMul (I, w) O = Add (OM, b)", [1, 4, 6]),
    "norm": ("O = LayerNormalization <axis = -1> (I, g, b)", [1, 4, 6]),
    "activation": ("OE = Gelu (I) O = Erf (OE)", [1, 4, 6]),
    "softmax": ("O = Softmax <axis = 1> (I)", [1, 4, 6]),
    "with itself": ("OE = Sigmoid (I) O = Mul (I, OE)", [1, 4, 6]),
    "with one image": ("O = Add (I, tokens)", [1, 4, 6]),
    "heads": ("OR = Reshape (I, heads) O = Transpose <perm = [0, 2, 1, 3]> (OR)", [1, 2, 4, 3]),
    "products": ("OT = Transpose <perm = [0, 2, 1]> (I) O = MatMul (I, OT)", [1, 4, 4]),
    "a constant times it": ("OT = Transpose <perm = [0, 2, 1]> (I) O = MatMul (w, OT)", [1, 6, 4]),
    "mean": ("O = ReduceMean <keepdims = 1> (I, one)", [1, 1, 6]),
    "parts": ("OE, OF = Split <axis = 2, num_outputs = 2> (I) O = Concat <axis = 1> (OF, OE)", [1, 8, 3]),
    "slice": ("O = Slice (I, one, three, one)", [1, 2, 6]),
    "gather": ("O = Gather <axis = 1> (I, two)", [1, 1, 6]),
    "axes": ("OE = Unsqueeze (I, two) O = Squeeze (OE, two)", [1, 4, 6]),
}
SHAPE_KEEPING = [name for name, (_, shape) in ALIKE.items() if shape == [1, 4, 6]]


@pytest.mark.parametrize("case", ALIKE)
def test_what_treats_images_alike_is_computed_once_and_folds_away(case: str) -> None:
    body, shape = ALIKE[case]
    body = body.replace("I,", "c,").replace("I)", "c)")
    model = graph(f"{body} flat = Flatten (O) y = Mul (flat, x)", inputs="float[batch, 1] x")
    prove(HoistBroadcast, model, batch(1, 1), batch(3, 1))
    assert shape_of(model, "O") == shape
    assert ops(model).keys().isdisjoint({"Expand", "Shape"})
    proto, _ = onnxsim.simplify(ir.serde.serialize_model(model))
    assert ops(ir.serde.deserialize_model(proto)) == {"Mul": 1}


@settings(max_examples=examples(25))
@given(chain=st.lists(st.sampled_from(SHAPE_KEEPING), max_size=5), images=st.integers(1, 3))
def test_any_chain_of_them_gives_the_same_numbers(chain: list[str], images: int) -> None:
    steps = ["O0 = Relu (c)"]
    for number, kind in enumerate(chain):
        body = ALIKE[kind][0].replace("O", f"O{number + 1}")
        steps.append(body.replace("I,", f"O{number},").replace("I)", f"O{number})"))
    model = graph(f"{' '.join(steps)} t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (O{len(chain)}, t)")
    prove(HoistBroadcast, model, batch(images, 5, 6), target=TARGETS["onnxruntime"])
    assert "Expand" not in ops(model)


@pytest.mark.parametrize(
    ("mixing", "expands"),
    [
        ("y = MatMul (d, xt)", 1),  # could broadcast by itself; see below
        ("q = Reshape (d, heads) h = Transpose <perm = [0, 2, 1, 3]> (q) u = Unsqueeze (x0, one) y = Mul (h, u)", 0),
        ("y = Concat <axis = 1> (d, x)", 1),
        ("r = Reshape (d, rows) y = Softmax <axis = 0> (r)", 1),
        ("y = Softmax <axis = 0> (d)", 1),
        ("y = ReduceSum <keepdims = 0> (d, zero)", 1),
        ("r = Reshape (d, rows) y = MatMul (r, w)", 1),
        ("y = Identity (d)", 1),
    ],
)
def test_the_batch_comes_back_at_the_first_operator_that_mixes(mixing: str, expands: int) -> None:
    body = "m = MatMul (c, w) d = Add (m, b) xt = Transpose <perm = [0, 2, 1]> (x) x0 = ReduceMean (x, pixels)"
    model = graph(f"{body} {mixing}")
    prove(HoistBroadcast, model, batch(1, 5, 6), batch(2, 5, 6))
    assert shape_of(model, "d") == [1, 4, 6]
    assert ops(model)["Expand"] == expands


def test_a_product_broadcasts_where_no_fused_attention_of_tensorrt_is_at_stake() -> None:
    model = graph("m = MatMul (c, w) d = Add (m, b) xt = Transpose <perm = [0, 2, 1]> (x) y = MatMul (d, xt)")
    prove(HoistBroadcast, model, batch(1, 5, 6), batch(2, 5, 6), target=TARGETS["onnxruntime"])
    assert ops(model)["Expand"] == 0


def test_an_expand_that_is_mixed_at_once_stays_as_it_is() -> None:
    model = graph("y = Concat <axis = 1> (c, x)")
    assert prove(HoistBroadcast, model, batch(2, 5, 6)).changes == []


def test_one_value_serves_readers_that_broadcast_and_readers_that_do_not() -> None:
    model = graph(
        "d = Relu (c) e = Sigmoid (d) f = Neg (d) xs = ReduceMean <keepdims = 1> (x, one) y = Add (e, xs) "
        "z = Concat <axis = 1> (f, x) v = Concat <axis = 2> (f, f)",
        outputs="y, z, v, e",
    )
    prove(HoistBroadcast, model, batch(1, 5, 6), batch(3, 5, 6))
    assert ops(model)["Expand"] == 3  # f for z, and the outputs v and e


def test_a_left_factor_of_rank_two_and_a_bias_of_the_same_batch() -> None:
    model = parsed(
        """agraph (float[batch, 6] x) => (y, z) {
            s = Shape (x) c = Expand (b, s) r = Relu (c) m = MatMul (r, w) y = Add (m, x)
            g0 = Gemm (r, w, b) z = Gemm (x, w, g0)
        }""",
        **WEIGHTS,
    )
    prove(HoistBroadcast, model, batch(1, 6), batch(3, 6))
    assert shape_of(model, "m") == [1, 6]
    assert shape_of(model, "g0") == [1, 6]
    assert "Shape" not in ops(model)


def test_a_right_factor_of_rank_two_is_summed_over_its_first_axis() -> None:
    model = parsed(
        "agraph (float[6, 4] x) => (y) { t = Expand (b, square) y = MatMul (w, t) }", square=np.array([6, 6]), **WEIGHTS
    )
    prove(HoistBroadcast, model, batch(6, 4))
    assert ops(model) == {"Expand": 1, "MatMul": 1}


def test_maps_go_through_convolutions_and_a_tile_is_an_expand() -> None:
    model = parsed(
        """agraph (float[batch, 3, 5, 5] x) => (y) <float[batch, 2, 5, 5] p> {
            n = Shape <start = 0, end = 1> (x) s = Concat <axis = 0> (n, ones) p = Tile (position, s)
            c = Conv <pads = [1, 1, 1, 1]> (p, kernel) m = MaxPool <kernel_shape = [1, 1]> (c) y = Add (m, x)
        }""",
        ones=np.ones(3, dtype=np.int64),
        position=batch(1, 2, 5, 5, seed=1),
        kernel=batch(3, 2, 3, 3, seed=2),
    )
    prove(HoistBroadcast, model, batch(1, 3, 5, 5), batch(2, 3, 5, 5))
    assert shape_of(model, "c") == [1, 3, 5, 5]
    assert "Tile" not in ops(model)


def test_more_axes_than_the_batch_are_expanded_once() -> None:
    model = graph(
        "k = Expand (b, s) d = Gelu (k) e = Add (d, c) xs = ReduceMean <keepdims = 1> (x, one) y = Add (e, xs)"
    )
    prove(HoistBroadcast, model, batch(1, 5, 6), batch(2, 5, 6))
    expand = next(node for node in model.graph if node.op_type == "Expand")
    assert shape_of(model, expand.outputs[0].name) == [1, 4, 6]
    assert ops(model)["Expand"] == 1


def test_a_fixed_batch_works_alike() -> None:
    model = parsed(
        f"agraph (float[2, 5, 6] x) => (y) {{ {EXPAND} d = Relu (c) y = Concat <axis = 1> (d, x) }}", **WEIGHTS
    )
    prove(HoistBroadcast, model, batch(2, 5, 6))
    assert shape_of(model, "d") == [1, 4, 6]


@pytest.mark.parametrize("mixing", ["ReduceSum <keepdims = 0> (d, zero)", "Gather <axis = 0> (d, order)"])
def test_a_batch_as_long_as_another_axis_is_not_mistaken_for_it(mixing: str) -> None:
    model = parsed(
        f"agraph (float[4, 1, 1] x) => (y) {{ {EXPAND} d = Relu (c) e = {mixing} y = Concat <axis = 0> (e, e) }}",
        order=np.array([0, 0, 1, 3]),
        **WEIGHTS,
    )
    prove(HoistBroadcast, model, batch(4, 1, 1))
    assert shape_of(model, "d") == [1, 4, 6]
    assert ops(model)["Expand"] == 1


def test_captured_meta_tokens_leave_no_expand_and_fold_with_their_projection() -> None:
    class Meta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Parameter(torch.randn(4, 8))
            self.project = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())
            self.q, self.kv = nn.Linear(8, 8), nn.Linear(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.project(self.tokens.expand(x.shape[0], -1, -1))
            k, v = self.kv(x.flatten(2).transpose(1, 2)).chunk(2, dim=2)
            q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in (self.q(tokens), k, v))
            update = nn.functional.scaled_dot_product_attention(q, k, v)
            return tokens + update.transpose(1, 2).flatten(2)

    model = captured(Meta(), torch.randn(2, 8, 3, 3), dynamic_batch=True)
    feed = {"images": batch(3, 8, 3, 3)}
    StaticShapes(PORTABLE)(model)
    before = run(model, feed)
    prove(HoistBroadcast, model, feed["images"], batch(1, 8, 3, 3), target=TARGETS["onnxruntime"])
    assert "Shape" not in ops(model)
    proto, _ = onnxsim.simplify(ir.serde.serialize_model(model), skipped_optimizers=list(SKIPPED))
    folded = ir.serde.deserialize_model(proto)
    assert ops(folded).keys().isdisjoint({"Expand", "LayerNormalization", "Gelu"})
    assert ops(folded)["MatMul"] == 3
    np.testing.assert_allclose(run(folded, feed)[0], before[0], rtol=1e-4, atol=1e-5)
