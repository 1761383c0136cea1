from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, ops, parsed, prove
from tests.rows import TARGETS
from vitdeploy.graph.edit import constant, of_type
from vitdeploy.passes.pad_columns import PadColumns

COMPILED = TARGETS["tensorrt10"]


def widths(model: ir.Model) -> list[int]:
    weights = [constant(node.inputs[1]) for node in of_type(model.graph, "MatMul")]
    return sorted(weight.shape[1] for weight in weights if weight is not None)


def layers(first: int, second: int) -> ir.Model:
    return parsed(
        "agraph (float[batch, 5, 8] x) => (y, z) { g = MatMul (x, w) a = Sigmoid (g) y = Add (a, one) "
        "p = MatMul (x, v) z = Tanh (p) }",
        w=batch(8, first, seed=1),
        v=batch(8, second, seed=2),
        one=batch(1),
    )


@settings(max_examples=examples(20), deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_layers_of_one_input_get_whole_columns(first: int, second: int) -> None:
    model = layers(first, second)
    prove(PadColumns, model, batch(2, 5, 8), target=COMPILED)
    assert widths(model) == sorted(-(-width // 8) * 8 for width in (first, second))
    assert ops(model)["Slice"] == sum(width % 8 > 0 for width in (first, second))


LEFT_ALONE = {
    "alone": "g = MatMul (x, w) y = Sigmoid (g)",
    "beside what is no linear layer": "g = MatMul (x, w) s = Tanh (x) m = MatMul (s, w) a = Add (g, m) y = Relu (a)",
    "an output": "y = MatMul (x, w) p = MatMul (x, v) r = Relu (p)",
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    model = parsed(
        f"agraph (float[batch, 5, 8] x) => (y) {{ {LEFT_ALONE[case]} }}", w=batch(8, 3, seed=1), v=batch(8, 16, seed=2)
    )
    assert prove(PadColumns, model, batch(2, 5, 8), target=COMPILED).changes == []


def test_only_where_the_target_asks() -> None:
    assert prove(PadColumns, layers(3, 8), batch(2, 5, 8), target=PORTABLE).changes == []
