from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import batch, ops, parsed, prove
from tests.rows import TARGETS
from vitdeploy.passes.gemm_form import GemmForm

GEMM = TARGETS["onnxruntime"]


@settings(max_examples=examples(25))
@given(
    n=st.integers(1, 5),
    k=st.integers(1, 5),
    m=st.integers(1, 5),
    bias_first=st.booleans(),
    shape=st.sampled_from(["channels", "row", "scalar"]),
)
def test_product_and_bias_become_one_gemm(n: int, k: int, m: int, bias_first: bool, shape: str) -> None:
    operands = "b, p" if bias_first else "p, b"
    bias = batch(*{"channels": (m,), "row": (1, m), "scalar": (1,)}[shape], seed=2)
    model = parsed(
        f"agraph (float[{n}, {k}] x) => (y) {{ p = MatMul (x, w) y = Add ({operands}) }}", w=batch(k, m, seed=1), b=bias
    )
    assert len(prove(GemmForm, model, batch(n, k), target=GEMM).changes) == 1
    assert ops(model) == {"Gemm": 1}


LEFT_ALONE = {
    "rank three": "u = Unsqueeze (x, zero) p = MatMul (u, w) y = Add (p, b)",
    "a bias for each row": "p = MatMul (x, w) y = Add (p, rows)",
    "two matrices that are computed": "r = Relu (x) t = Transpose (r) p = MatMul (x, t) y = Add (p, square)",
    "product read elsewhere": "p = MatMul (x, w) q = Add (p, b) y = Mul (p, q)",
    "a computed bias": "p = MatMul (x, w) e = ReduceMax (x) y = Add (p, e)",
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    weights = {"w": batch(4, 3, seed=1), "b": batch(3, seed=2), "rows": batch(5, 1, seed=3), "square": batch(5, seed=4)}
    model = parsed(f"agraph (float[5, 4] x) => (y) {{ {LEFT_ALONE[case]} }}", **weights, zero=np.array([0]))
    assert prove(GemmForm, model, batch(5, 4), target=GEMM).changes == []


def test_other_targets_keep_matmul() -> None:
    model = parsed(
        "agraph (float[5, 4] x) => (y) { p = MatMul (x, w) y = Add (p, b) }", w=batch(4, 3, seed=1), b=batch(3, seed=2)
    )
    assert prove(GemmForm, model, batch(5, 4), target=TARGETS["openvino"]).changes == []
