"""Nodes compute in another float type, everybody else in their own, and the graph gives the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import batch, ops, parsed, run
from vitdeploy.graph.names import names_in
from vitdeploy.graph.retype import retype

SINGLE, HALF, BRAIN = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def graph(body: str, *, opset: int = 20, outputs: str = "float[2, 4] y", **weights: np.ndarray) -> ir.Model:
    """A graph of x [2, 4] whose nodes are called after their results."""
    header = f'<ir_version: 10, opset_import: ["": {opset}]>'
    model = parsed(f"{header} g (float[2, 4] x) => ({outputs}) {{ {body} }}", **weights)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def retyped(model: ir.Model, names: str, dtype: ir.DataType = HALF) -> int:
    """Retype the nodes of these names; the result is a valid model."""
    changed = retype(model.graph, [node for node in model.graph if node.name in names.split()], dtype)
    model.graph.sort()
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return changed


def types(model: ir.Model) -> dict[str, str]:
    return {str(node.name): str(node.outputs[0].dtype) for node in model.graph if ".as_" not in str(node.name)}


def test_a_run_of_nodes_gets_one_cast_at_either_end_and_its_own_constants() -> None:
    weights = {"w": batch(4)}
    model = graph("a = Mul (x, w) b = Add (a, w) c = Neg (b) d = Abs (b) y = Sub (c, d)", **weights)
    expected = run(model, {"x": batch(2, 4)})[0]
    assert retyped(model, "a b") == 2
    assert types(model) == {"a": "FLOAT16", "b": "FLOAT16", "c": "FLOAT", "d": "FLOAT", "y": "FLOAT"}
    assert ops(model)["Cast"] == 2, "one in; one out, for both consumers"
    assert {str(value.dtype) for value in model.graph.initializers.values()} == {"FLOAT", "FLOAT16"}
    np.testing.assert_allclose(run(model, {"x": batch(2, 4)})[0], expected, atol=1e-2)
    assert retyped(model, "a b") == 0, "nothing is left to change"
    assert retyped(model, "a b", SINGLE) == 2
    assert set(types(model).values()) == {"FLOAT"}


def test_outputs_keep_their_names_and_types_though_their_values_are_used_inside() -> None:
    model = graph("y = Neg (x) h = Abs (y) z = Neg (h)", outputs="float[2, 4] y, float[2, 4] z")
    expected = run(model, {"x": batch(2, 4)})
    assert retyped(model, "y h") == 2
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("y", SINGLE), ("z", SINGLE)]
    assert next(node for node in model.graph if node.name == "h").inputs[0].dtype == HALF, "it skips the way back"
    for old, new in zip(expected, run(model, {"x": batch(2, 4)}), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-2)


def test_a_cast_among_them_gives_the_type_itself_and_a_shape_asks_for_none() -> None:
    body = "b = Greater (x, zero) c = Cast <to = 1> (b) s = Shape (c) n = Neg (c) y = Reshape (n, s)"
    model = graph(body, zero=np.zeros(1, np.float32))
    assert retyped(model, "c n") == 2
    assert types(model)["c"] == "FLOAT16"
    assert ops(model)["Cast"] == 2, "the Cast itself, and one behind n"


def test_what_onnx_types_stays() -> None:
    body = "s = Shape (x) r = ConstantOfShape (s) a = Add (r, x) y = Neg (a)"
    model = graph(body)
    assert retyped(model, "r a y") == 2
    assert types(model)["r"] == "FLOAT"
    resize = parsed(
        'g (float[1, 2, 3, 3] x) => (float[1, 2, 6, 6] y) { y = Resize <mode = "nearest"> (x, , scales) }',
        scales=np.asarray([1, 1, 2, 2], np.float32),
    )
    retype(resize.graph, list(resize.graph), HALF)
    assert resize.graph.initializers["scales"].dtype == SINGLE
    onnx.checker.check_model(ir.to_proto(resize), full_check=True)


@pytest.mark.parametrize(("opset", "changed"), [(17, 1), (20, 2)])
def test_quantization_takes_other_types_from_opset_19_on(opset: int, changed: int) -> None:
    body = "q = QuantizeLinear (x, s) d = DequantizeLinear (q, s) y = Neg (d)"
    model = graph(body, opset=opset, s=np.asarray(0.25, np.float32))
    assert retyped(model, "q d y") == changed


def test_names_that_are_taken_are_not_given_again() -> None:
    model = graph("taken = Abs (x) y = Add (x, taken)")
    model.graph[0].outputs[0].name = "x.as_float16"
    retyped(model, "y")
    values = [str(node.outputs[0].name) for node in model.graph]
    nodes = [str(node.name) for node in model.graph]
    assert len({*values, *nodes, "x"}) == len(names_in(model.graph)) == 2 * len(nodes), "y is a node and its result"
    assert "x.as_float16_1" in nodes


_OPERATORS = ("Abs", "Neg", "Relu", "Tanh")


@settings(max_examples=examples(25))
@given(
    steps=st.lists(st.tuples(st.sampled_from(_OPERATORS), st.integers(0, 5), st.booleans()), min_size=1, max_size=6),
    outputs=st.sets(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from([HALF, BRAIN]),
)
def test_any_graph_stays_valid_and_its_interface_the_same(
    steps: list[tuple[str, int, bool]], outputs: set[int], dtype: ir.DataType
) -> None:
    body, chosen = [], []
    for index, (operator, source, is_chosen) in enumerate(steps):
        above = f"v{min(source, index - 1)}" if index else "x"
        body.append(f"v{index} = Add ({above}, x)" if operator == "Abs" else f"v{index} = {operator} ({above})")
        chosen += [f"v{index}"] if is_chosen else []
    shown = sorted({min(index, len(steps) - 1) for index in outputs} | {len(steps) - 1})
    model = graph(" ".join(body), outputs=", ".join(f"float[2, 4] v{index}" for index in shown))
    expected = run(model, {"x": batch(2, 4)})
    assert retyped(model, " ".join(chosen), dtype) == len(chosen)
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [(f"v{index}", SINGLE) for index in shown]
    if dtype == HALF:  # the CPU's kernels know no bfloat16
        for old, new in zip(expected, run(model, {"x": batch(2, 4)}), strict=True):
            np.testing.assert_allclose(new, old, atol=0.05)
    retype(model.graph, list(model.graph), SINGLE)
    assert {node.outputs[0].dtype for node in model.graph} == {SINGLE}, "and all of it back"
