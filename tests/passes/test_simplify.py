"""onnxsim as one pass among others: what it may do, and what happens where it fails."""

from __future__ import annotations

from typing import Any

import onnxsim
import pytest

from tests.graph_cases import assert_same, batch, ops, parsed, run
from tests.rows import TARGETS
from vitdeploy.passes.simplify import Simplify

LAYERS = (
    "agraph (float[2, 5, 8] x) => (float[2, 5, 8] y) { m = MatMul (x, wq) q = Add (m, b) n = MatMul (x, wk) "
    "k = Add (n, b) o = MatMul (x, wv) v = Add (o, b) w = Add (b, b) a = Add (q, w) c = Add (a, k) y = Add (c, v) }"
)
WEIGHTS = {name: batch(8, 8, seed=seed) for seed, name in enumerate(("wq", "wk", "wv"))} | {"b": batch(8, seed=9)}


def simplified() -> list[str]:
    """What the pass says of `LAYERS`: the sum is computed once, and three layers compute what they did."""
    model, x = parsed(LAYERS, **WEIGHTS), batch(2, 5, 8)
    before = run(model, {"x": x})
    found = Simplify(TARGETS["portable"])
    found(model)
    assert_same(before, run(model, {"x": x}))
    assert ops(model) == {"MatMul": 3, "Add": 6}
    return found.changes


def test_layers_that_read_an_input_of_the_graph_stay_three() -> None:
    assert simplified() == ["10 nodes became 9"]


def test_constants_are_folded_where_a_stock_fusion_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simplify, tried = onnxsim.simplify, []

    def failing(model: Any, **options: Any) -> Any:
        tried.append(options)
        if options.get("perform_optimization", True):
            raise RuntimeError("Assertion `n->inGraphList()` failed.")
        return simplify(model, **options)

    monkeypatch.setattr(onnxsim, "simplify", failing)
    changes = simplified()
    assert len(tried) == 2
    assert changes[1] == "without the stock fusions, for onnxsim failed: Assertion `n->inGraphList()` failed."
    assert changes[1] in caplog.text
