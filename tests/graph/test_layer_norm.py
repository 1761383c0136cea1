"""Layer norm is found by what it computes, over any axes; that it becomes one operator is held with the pass."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.graph_cases import parsed
from vitdeploy.graph.layer_norm import layer_norms, written_out

CONSTANTS = "<float two = {2.0}, float eps = {0.00001}, float one = {1.0}, float n = {8.0}>"


def graph(body: str, *, axes: str = "-1", shape: str = "2, 4, 8") -> ir.Graph:
    """An opset 17 graph of x to y, each node called after its result; AXES stands for the axes."""
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[{shape}] x) => (float[{shape}] y) {CONSTANTS} {{ {body.replace("AXES", f"axes = [{axes}]")} }}"""
    model = parsed(text)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model.graph


def names(found: ir.Graph) -> list[list[str]]:
    return [[str(node.name) for node in nodes] for nodes in layer_norms(found)]


DIVIDED = """m = ReduceMean <AXES> (x) c = Sub (x, m) s = Pow (c, two) v = ReduceMean <AXES> (s)
             e = Add (v, eps) d = Sqrt (e) y = Div (c, d)"""
MULTIPLIED = """m = ReduceMean <AXES> (x) c = Sub (x, m) s = Mul (c, c) v = ReduceMean <AXES> (s)
                e = Add (eps, v) d = Sqrt (e) r = Div (one, d) y = Mul (r, c)"""


@pytest.mark.parametrize(("axes", "expected"), [("-1", (2,)), ("1", (1,)), ("-1, 1", (1, 2))])
@pytest.mark.parametrize("body", [DIVIDED, MULTIPLIED])
def test_the_axes_and_the_epsilon_are_told(body: str, axes: str, expected: tuple[int, ...]) -> None:
    found = graph(body, axes=axes)
    norm = written_out(found[-1])
    assert norm is not None
    assert (norm.x.name, norm.axes, norm.last.name) == ("x", expected, "y")
    assert norm.epsilon == pytest.approx(1e-5)
    assert [written_out(node) for node in list(found)[:-1]] == [None] * (len(list(found)) - 1)


def test_its_nodes_come_in_the_order_of_the_formula() -> None:
    assert names(graph(DIVIDED)) == [["m", "c", "s", "v", "e", "d", "y"]]
    assert names(graph(MULTIPLIED)) == [["m", "c", "s", "v", "e", "d", "r", "y"]]
    body = DIVIDED.replace("y = Div", "q = Div") + " y = LayerNormalization (q, x)"
    assert names(graph(body, shape="8")) == [["m", "c", "s", "v", "e", "d", "q"], ["y"]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("e = Add (v, eps)", "e = Add (v, x)"),
        ("s = Pow (c, two)", "s = Pow (c, one)"),
        ("s = Pow (c, two)", "s = Pow (x, two)"),
        ("v = ReduceMean <AXES> (s)", "v = ReduceMean <axes = [0]> (s)"),
        ("c = Sub (x, m)", "c = Add (x, m)"),
        ("d = Sqrt (e)", "d = Identity (e)"),
    ],
)
def test_another_function_is_none(old: str, new: str) -> None:
    assert old in DIVIDED
    assert names(graph(DIVIDED.replace(old, new))) == []


@pytest.mark.parametrize(("length", "found"), [(8, 1), (4, 0)])
def test_a_sum_over_the_length_is_a_mean(length: int, found: int) -> None:
    body = DIVIDED.replace("m = ReduceMean <AXES> (x)", "t = ReduceSum (x, axis) m = Div (t, n)")
    text = CONSTANTS.replace(">", ", int64[1] axis = {-1}>")
    shape = f"2, 4, {length}"
    model = parsed(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[{shape}] x) => (float[{shape}] y) {text} '
        f"{{ {body.replace('AXES', 'axes = [-1]')} }}"
    )
    assert len(list(layer_norms(model.graph))) == found
