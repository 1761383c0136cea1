from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, parsed, prove
from vitdeploy.graph.edit import attribute
from vitdeploy.passes.key_form import KeyForm

APART, MERGED = replace(PORTABLE, key_transpose="apart"), replace(PORTABLE, key_transpose="merged")
QUERY = "q = Transpose <perm = [0, 2, 1, 3]> (x) "
KEY = "k = Transpose <perm = [0, 2, 3, 1]> (x) "


def perms(model: ir.Model) -> list[tuple[int, ...]]:
    return [tuple(attribute(node, "perm")) for node in model.graph if node.op_type == "Transpose"]


@settings(max_examples=examples(25))
@given(b=st.integers(1, 3), n=st.integers(1, 5), h=st.integers(1, 3), d=st.integers(1, 4), free=st.booleans())
def test_heads_first_then_the_last_two_axes(b: int, n: int, h: int, d: int, free: bool) -> None:
    size = "batch" if free else b
    model = parsed(f"agraph (float[{size}, {n}, {h}, {d}] x) => (y) {{ {QUERY} {KEY} y = MatMul (q, k) }}")
    assert len(prove(KeyForm, model, batch(b, n, h, d), target=APART).changes) == 1
    assert sorted(perms(model)) == [(0, 1, 3, 2), (0, 2, 1, 3), (0, 2, 1, 3)]


LEFT_ALONE = {
    "the last two axes only": QUERY + "t = Transpose <perm = [0, 1, 3, 2]> (q) y = MatMul (q, t)",
    "heads only": QUERY + "y = MatMul (w, q)",
    "channels that do not come last": "k = Transpose <perm = [0, 3, 1, 2]> (x) t = Relu (x) y = MatMul (t, k)",
    "queries that are constant weights": KEY + "y = MatMul (w, k)",
    "another consumer": QUERY + KEY + "s = MatMul (q, k) e = ReduceMax (k) y = Add (s, e)",
    "rank three": "r = Reshape (x, rows) k = Transpose <perm = [1, 2, 0]> (r) q = Relu (r) "
    "p = Transpose <perm = [1, 0, 2]> (q) y = MatMul (p, k)",
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    sizes = "[2, 5, 2, 4]" if case != "channels that do not come last" else "[2, 3, 3, 3]"
    shape = tuple(int(size) for size in sizes.strip("[]").split(","))
    model = parsed(
        f"agraph (float{sizes} x) => (y) {{ {LEFT_ALONE[case]} }}",
        w=batch(1, 1, 3, 4 if case != "heads only" else 5, seed=1),
        rows=np.array([10, 2, 4]),
    )
    assert prove(KeyForm, model, batch(*shape), target=APART).changes == []


def test_a_target_with_one_transpose_keeps_it() -> None:
    model = parsed(f"agraph (float[2, 5, 2, 4] x) => (y) {{ {QUERY} {KEY} y = MatMul (q, k) }}")
    assert prove(KeyForm, model, batch(2, 5, 2, 4), target=MERGED).changes == []
