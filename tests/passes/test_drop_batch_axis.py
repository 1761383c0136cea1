from __future__ import annotations

from collections.abc import Sequence

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
from tests.rows import TARGETS
from vitdeploy.models.lemevit import CrossBlock, DualCrossBlock, StandardBlock
from vitdeploy.passes.drop_batch_axis import DropBatchAxis
from vitdeploy.passes.fold_query_scale import FoldQueryScale
from vitdeploy.passes.merge_transposes import MergeTransposes

DROPS = TARGETS["onnxruntime"]
WEIGHTS = {
    "w": batch(4, 4, seed=1),
    "g": batch(4, seed=2),
    "position": batch(1, 6, 4, seed=3),
    "query": batch(1, 2, 3, 2, seed=4),
    "token": batch(1, 1, 4, seed=6),
    "lower": batch(2, 1, seed=7),
    "wh": batch(2, 2, seed=9),
    "tokens": np.array([1, 6, 4]),
    "image": np.array([1, 4, 2, 3]),
    "heads": np.array([1, -1, 2, 2]),
    "rows": np.array([-1, 4]),
    "halves": np.array([2, 4]),
    "channels": np.array([1, 3]),
    "one_six": np.array([1, 6]),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
}
ENTER = "t = Reshape (x, tokens) "
LEAVE = "y = Reshape (z, image)"

DROPPED = {
    "a layer": "m = MatMul (t, w) z = Add (m, g) ",
    "a position": "p = Add (position, t) z = MatMul (p, w) ",
    "norm and activation": "n = LayerNormalization (t, g) a = Gelu (n) z = MatMul (a, w) ",
    "norm over a positive axis": "n = LayerNormalization <axis = 2> (t, g) z = MatMul (n, w) ",
    "softmax over a positive axis": "n = Softmax <axis = 1> (t) z = MatMul (n, w) ",
    "a product of tokens": "u = Transpose <perm = [0, 2, 1]> (t) s = MatMul (t, u) z = MatMul (s, t) ",
    "tokens split and joined": "m = MatMul (t, w) a, b = Split <axis = 1> (m, halves) z = Concat <axis = 1> (b, a) ",
    "channels split and joined": "m = MatMul (t, w) a, b = Split <axis = -1> (m, channels) "
    "z = Concat <axis = 2> (b, a) ",
    "a learned token": "c = Concat <axis = 1> (token, t) m = MatMul (c, w) r = ReduceMean <keepdims = 1> (m, one) "
    "a, b = Split <axis = 1> (m, one_six) z = Mul (b, r) ",
    "a mean of rows": "m = MatMul (t, w) r = ReduceMean <keepdims = 0> (m, one) q = Mul (r, g) "
    "u = Unsqueeze (q, one) z = Add (m, u) ",
    "a sum by heads": "m = MatMul (t, w) h = Reshape (m, heads) o = MatMul (h, wh) "
    "r = ReduceSum <keepdims = 0> (o, two) u = Unsqueeze (r, two) k = Mul (o, u) f = Flatten <axis = 2> (k) "
    "e = Reshape (f, tokens) z = Add (e, m) ",
    "attention": "m = MatMul (t, w) h = Reshape (m, heads) q = Transpose <perm = [0, 2, 1, 3]> (h) "
    "k = Transpose <perm = [0, 2, 3, 1]> (h) s = MatMul (q, k) p = Softmax (s) o = MatMul (p, q) "
    "u = Transpose <perm = [0, 2, 1, 3]> (o) e = Reshape (u, tokens) z = Add (e, m) ",
    "learned queries": "m = MatMul (t, w) h = Reshape (m, heads) k = Transpose <perm = [0, 2, 3, 1]> (h) "
    "s = MatMul (query, k) p = Softmax (s) j = Transpose <perm = [0, 2, 1, 3]> (h) o = MatMul (p, j) "
    "r = ReduceSum <keepdims = 1> (o, two) c = Mul (j, r) u = Transpose <perm = [0, 2, 1, 3]> (c) "
    "e = Reshape (u, tokens) z = MatMul (e, w) ",
    "an operand of lower rank": "m = MatMul (t, w) h = Reshape (m, heads) o = MatMul (h, wh) a = Add (o, lower) "
    "e = Reshape (a, tokens) z = Add (e, m) ",
    "a condition": "m = MatMul (t, w) c = Greater (m, t) z = Where (c, m, t) ",
}  # fmt: skip


def graph(body: str) -> ir.Model:
    """An image [1, 4, 2, 3] that becomes tokens and an image again."""
    return parsed(f"agraph (float[1, 4, 2, 3] x) => (y) {{ {ENTER} {body} {LEAVE} }}", **WEIGHTS)


def with_batch_axis(model: ir.Model) -> list[Sequence[int]]:
    shapes = [value.shape for node in model.graph for value in node.outputs if not value.is_graph_output()]
    return [shape for shape in shapes if shape is not None and len(shape) > 2 and shape[0] == 1]  # type: ignore[misc]


@pytest.mark.parametrize("case", DROPPED)
def test_no_value_between_products_keeps_the_axis(case: str) -> None:
    model = graph(DROPPED[case])
    nodes = ops(model)
    assert with_batch_axis(model)
    assert len(prove(DropBatchAxis, model, batch(1, 4, 2, 3), target=DROPS).changes) == 1
    assert with_batch_axis(model) == []
    assert sum(ops(model).values()) == sum(nodes.values())


LEFT_ALONE = {
    "no product": "n = LayerNormalization (t, g) z = Add (position, n) ",
    "batch moved": "u = Transpose <perm = [1, 0, 2]> (t) v = Transpose <perm = [1, 0, 2]> (u) z = MatMul (v, w) ",
    "an operator that needs the axis": "m = MatMul (t, w) u = Transpose <perm = [0, 2, 1]> (m) "
    "v = GlobalAveragePool (u) z = Mul (m, v3) v3 = Transpose <perm = [0, 2, 1]> (v) ",
    "softmax over the batch": "n = Softmax <axis = 0> (t) z = MatMul (n, w) ",
    "a sum over the batch": "m = MatMul (t, w) r = ReduceSum <keepdims = 1> (m, zero) z = Add (m, r) ",
    "joined along the batch": "m = MatMul (t, w) c = Concat <axis = 0> (m, t) z = ReduceSum (c, zero) ",
    "broadcast over a batch": "m = MatMul (t, w) c = Add (m, pair) z = ReduceSum (c, zero) ",
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    text = f"agraph (float[1, 4, 2, 3] x) => (y) {{ {ENTER} {LEFT_ALONE[case]} {LEAVE} }}"
    model = parsed(text, **WEIGHTS, pair=batch(2, 6, 4, seed=8))
    model.graph.sort()
    assert prove(DropBatchAxis, model, batch(1, 4, 2, 3), target=DROPS).changes == []


def test_inputs_and_outputs_keep_their_shape() -> None:
    model = parsed(
        "agraph (float[1, 6, 4] x) => (y) { m = MatMul (x, w) r = Reshape (m, rows) n = Reshape (r, tokens) "
        "a = MatMul (n, w) q = Reshape (a, rows) k = Reshape (q, tokens) y = MatMul (k, w) }",
        **WEIGHTS,
    )
    prove(DropBatchAxis, model, batch(1, 6, 4), target=DROPS)
    assert [len(node.outputs[0].shape or ()) for node in model.graph if node.op_type == "MatMul"] == [3, 2, 3]


@pytest.mark.parametrize("size", ["2", "batch"])
def test_another_batch_keeps_its_axis(size: str) -> None:
    model = parsed(
        f"agraph (float[{size}, 6, 4] x) => (y) {{ r = Relu (x) m = MatMul (r, w) y = Add (m, g) }}", **WEIGHTS
    )
    assert prove(DropBatchAxis, model, batch(2, 6, 4), target=DROPS).changes == []


@settings(max_examples=examples(25))
@given(
    n=st.integers(1, 5),
    h=st.integers(1, 3),
    d=st.integers(1, 4),
    axes=st.permutations([1, 2, 3]),
    keepdims=st.booleans(),
    negative=st.booleans(),
)
def test_any_axes_are_those_that_are_left(
    n: int, h: int, d: int, axes: list[int], keepdims: bool, negative: bool
) -> None:
    """A reduction, a softmax and a Transpose over axes of any sign, of heads that a product made."""
    axis, perm = axes[0] - 4 * negative, [0, *axes]
    shape = [1, n, h, d]
    model = parsed(
        f"agraph (float[{n}, {h * d}] x) => (y, z) {{ m = MatMul (x, w) t = Reshape (m, heads) p = MatMul (t, v) "
        f"s = Softmax <axis = {axis}> (p) u = Transpose <perm = {perm}> (s) y = Reshape (u, flat) "
        f"r = ReduceMax <keepdims = {int(keepdims)}> (p, axes) z = Reshape (r, flat) }}",
        w=batch(h * d, h * d, seed=1),
        v=batch(d, d, seed=2),
        heads=np.array(shape),
        axes=np.array([axis]),
        flat=np.array([-1]),
    )

    assert prove(DropBatchAxis, model, batch(n, h * d), target=DROPS).changes
    assert {len(node.outputs[0].shape or ()) for node in model.graph if node.op_type == "Softmax"} <= {2, 3}


@pytest.mark.parametrize("kind", [StandardBlock, DualCrossBlock, CrossBlock])
def test_blocks_of_lemevit(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = folded(BlockOfMaps(kind(32, 2)), torch.randn(1, 64, 3, 4))
    for step in (FoldQueryScale, MergeTransposes):
        step(DROPS)(model)
    prove(DropBatchAxis, model, batch(1, 64, 3, 4), target=DROPS)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert {len(node.outputs[0].shape or ()) for node in products} <= {2, 3}
