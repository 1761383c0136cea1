"""The smallest failing part: valid graphs of any subset of nodes, and culprits of any number and place."""

from __future__ import annotations

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.conftest import examples
from tests.transformer import transformer
from vitdeploy.graph.parts import Parts
from vitdeploy.graph.smallest import smallest_failing

WHOLE = onnx.load_model_from_string(transformer(half=True))
NAMES = [node.name for node in WHOLE.graph.node]


@settings(max_examples=examples(20))
@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=2))
def test_what_is_found_fails_and_is_no_larger_than_the_way_between_the_culprits(culprits: set[str]) -> None:
    def fails(model: onnx.ModelProto) -> bool:
        onnx.checker.check_model(model, full_check=True)
        return culprits <= {node.name for node in model.graph.node}

    found = smallest_failing(WHOLE, fails, trials=300)
    assert fails(found)
    assert {node.name for node in found.graph.node} == culprits


@settings(max_examples=examples(20))
@given(st.sets(st.integers(0, len(NAMES) - 1), min_size=1))
def test_any_part_is_a_valid_model(indices: set[int]) -> None:
    part = Parts(WHOLE).part(sorted(indices))
    assert part is not None
    onnx.checker.check_model(part, full_check=True)


def test_without_trials_the_whole_is_what_fails() -> None:
    assert smallest_failing(WHOLE, lambda model: True, trials=0) is WHOLE


def test_a_part_whose_ends_have_no_type_is_not_asked() -> None:
    """A custom operator tells no shapes, so nothing can be cut behind it."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    nodes = [
        helper.make_node("Custom", ["x"], ["h"], name="a", domain="com.example"),
        helper.make_node("Relu", ["h"], ["y"], name="b"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    parts = Parts(helper.make_model(graph, opset_imports=domains))
    assert parts.part([0]) is None
    assert parts.part([0, 1]) is not None


def test_constants_and_the_inside_of_branches_come_along() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 4] x, bool c) => (float[1, 4] y) {
      two = Constant <value = float {2.0}> ()
      h = Relu (x)
      y = If (c) <
        then_branch = t () => (float[1, 4] t1) { t1 = Mul (h, two) },
        else_branch = e () => (float[1, 4] e1) { e1 = Add (h, two) }
      >
    }"""
    part = Parts(onnx.parser.parse_model(text)).part([1])
    assert part is not None
    assert {value.name for value in part.graph.input} == {"c", "h"}
    assert [tensor.name for tensor in part.graph.initializer] == ["two"]
    onnx.checker.check_model(part, full_check=True)
