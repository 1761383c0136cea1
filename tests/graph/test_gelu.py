"""The nodes of a GELU, whichever operators it is written in."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from vitdeploy.graph.gelu import find_gelus
from vitdeploy.graph.onnx_file import read_graph


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, float], opset: int = 17, kind: int = TensorProto.FLOAT
) -> ir.Graph:
    values = [helper.make_tensor_value_info(name, kind, [1, 8]) for name in ("x", "y")]
    initializers = [helper.make_tensor(name, kind, [], [value]) for name, value in constants.items()]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    return read_graph(model.SerializeToString()).graph


def node(op_type: str, inputs: str, output: str, **attributes: str) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], f"mlp.act/{output}", **attributes)


ERF = [
    node("Div", "h root", "a"),
    node("Erf", "a", "b"),
    node("Add", "b one", "c"),
    node("Mul", "h c", "d"),
    node("Mul", "d half", "e"),
]


def test_the_nodes_are_those_between_its_input_and_its_result() -> None:
    around = [node("Relu", "x", "h"), *ERF, node("Relu", "e", "y")]
    (found,) = find_gelus(graph(around, {"root": 2**0.5, "one": 1, "half": 0.5}))
    assert [one.name for one in found.nodes] == [f"mlp.act/{name}" for name in "abcde"]
    assert (found.x.name, found.last.name, found.approximate) == ("h", "mlp.act/e", "none")


def test_an_operator_is_its_only_node() -> None:
    (found,) = find_gelus(graph([node("Gelu", "x", "y", approximate="tanh")], {}, 20))
    assert ([one.name for one in found.nodes], found.approximate) == (["mlp.act/y"], "tanh")


TANH = [
    node("Pow", "h three", "a"),
    node("Mul", "a cubic", "b"),
    node("Add", "h b", "c"),
    node("Mul", "c scale", "d"),
    node("Tanh", "d", "e"),
    node("Add", "e one", "f"),
    node("Mul", "h half", "g"),
    node("Mul", "g f", "i"),
]


def test_constants_in_half_precision_move_neither_curve_to_the_other() -> None:
    erf = [node("Relu", "x", "h"), *ERF, node("Relu", "e", "y")]
    tanh = [node("Relu", "x", "h"), *TANH, node("Relu", "i", "y")]
    scalars = {"root": 2**0.5, "one": 1.0, "half": 0.5, "three": 3.0, "cubic": 0.044715, "scale": 0.7978845608}
    for nodes, curve in ((erf, "none"), (tanh, "tanh")):
        (found,) = find_gelus(graph(nodes, scalars, kind=TensorProto.FLOAT16))
        assert found.approximate == curve


@pytest.mark.parametrize("wrong", [{"root": 1.5}, {"one": 2}, {"half": 0.25}])
def test_another_function_is_none(wrong: dict[str, float]) -> None:
    around = [node("Relu", "x", "h"), *ERF, node("Relu", "e", "y")]
    assert not list(find_gelus(graph(around, {"root": 2**0.5, "one": 1, "half": 0.5, **wrong})))
