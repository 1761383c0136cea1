from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, ops, parsed, prove
from vitdeploy.graph.edit import attribute
from vitdeploy.passes.merge_transposes import MergeTransposes

WEIGHTS = {
    "c": batch(6, seed=1),
    "column": batch(6, 1, 1, seed=2),
    "scalar": np.array(0.5, dtype=np.float32),
    "pixels": batch(20, 1, seed=3),
    "w": batch(6, 6, seed=4),
    "low": np.array(-1.0, dtype=np.float32),
    "tokens": np.array([0, 6, 20]),
    "rows": np.array([0, 20, 6]),
    "map": np.array([0, 6, 4, 5]),
    "nhwc": np.array([0, 4, 5, 6]),
    "last": np.array([2]),
    "hw": np.array([2, 3]),
    "first": np.array([1]),
}


def graph(body: str, inputs: str = "float[batch, 6, 4, 5] x", outputs: str = "y") -> ir.Model:
    return parsed(f"agraph ({inputs}) => ({outputs}) {{ {body} }}", **WEIGHTS)


def moves(model: ir.Model) -> tuple[int, int]:
    return ops(model)["Transpose"], ops(model)["Reshape"]


TO_LAST = "<perm = [0, 2, 3, 1]>"
TO_FIRST = "<perm = [0, 3, 1, 2]>"

CANCELLING = {
    "inverse": f"t = Transpose {TO_LAST} (x) y = Transpose {TO_FIRST} (t)",
    "identity": "y = Transpose <perm = [0, 1, 2, 3]> (x)",
    "three of them": f"t = Transpose {TO_LAST} (x) u = Transpose {TO_LAST} (t) y = Transpose {TO_LAST} (u)",
    "through a chain": f"t = Transpose {TO_LAST} (x) a = Gelu (t) b = Mul (a, c) d = Add (scalar, b) "
    f"e = Clip (d, low) y = Transpose {TO_FIRST} (e)",
    "with itself": f"t = Transpose {TO_LAST} (x) a = Mul (t, t) y = Transpose {TO_FIRST} (a)",
    "two branches": f"t = Transpose {TO_LAST} (x) r = Relu (x) u = Transpose {TO_LAST} (r) a = Sub (t, u) "
    f"y = Transpose {TO_FIRST} (a)",
    "through reshapes": "f = Reshape (x, tokens) t = Transpose <perm = [0, 2, 1]> (f) a = Add (t, c) "
    "u = Transpose <perm = [0, 2, 1]> (a) y = Reshape (u, map)",
    "a map flattened behind the transpose": f"t = Transpose {TO_LAST} (x) f = Reshape (t, rows) a = Add (f, c) "
    "b = Mul (a, pixels) u = Transpose <perm = [0, 2, 1]> (b) y = Reshape (u, map)",
    "a map unflattened in between": "f = Reshape (x, tokens) t = Transpose <perm = [0, 2, 1]> (f) "
    f"m = Reshape (t, nhwc) a = Sigmoid (m) y = Transpose {TO_FIRST} (a)",
}


@pytest.mark.parametrize("case", CANCELLING)
def test_transposes_and_reshapes_that_meet_their_inverse_vanish(case: str) -> None:
    model = graph(CANCELLING[case] + " z = Relu (y)", outputs="z")
    prove(MergeTransposes, model, batch(1, 6, 4, 5), batch(2, 6, 4, 5))
    assert moves(model) == (0, 0)


@settings(max_examples=examples(25))
@given(perms=st.lists(st.permutations(range(4)), min_size=1, max_size=4), between=st.lists(st.booleans(), min_size=4))
def test_any_chain_of_transposes_leaves_at_most_one(perms: list[list[int]], between: list[bool]) -> None:
    body, last = "", "x"
    for index, perm in enumerate(perms):
        body += f"t{index} = Transpose <perm = {list(perm)}> ({last}) "
        body += f"a{index} = Gelu (t{index}) " if between[index] else ""
        last = f"a{index}" if between[index] else f"t{index}"
    model = graph(f"{body} y = Neg ({last})")
    prove(MergeTransposes, model, batch(2, 6, 4, 5))
    assert moves(model)[0] <= 1


def test_head_and_key_transposes_compose() -> None:
    model = graph(
        "s = Reshape (x, nhwc) h = Transpose <perm = [0, 2, 1, 3]> (s) k = Transpose <perm = [0, 1, 3, 2]> (h) "
        "y = MatMul (w, k)",
        inputs="float[batch, 4, 30] x",
    )
    prove(MergeTransposes, model, batch(2, 4, 30))
    assert moves(model) == (1, 1)
    transpose = next(node for node in model.graph if node.op_type == "Transpose")
    assert list(attribute(transpose, "perm")) == [0, 2, 3, 1]


def test_a_transposed_constant_folds() -> None:
    model = graph("t = Transpose (w) y = MatMul (x, t)", inputs="float[batch, 6] x")
    prove(MergeTransposes, model, batch(2, 6))
    assert ops(model) == {"MatMul": 1}


def test_a_sum_of_two_layouts_needs_one_transpose_only() -> None:
    model = graph(
        f"t = Transpose {TO_LAST} (x) a = Add (t, z) y = Transpose {TO_FIRST} (a)",
        inputs="float[batch, 6, 4, 5] x, float[batch, 4, 5, 6] z",
    )
    kind = MergeTransposes(PORTABLE)
    kind(model)
    assert ops(model) == {"Transpose": 1, "Add": 1}


def test_a_transpose_with_other_readers_stays_for_them() -> None:
    model = graph(
        f"t = Transpose {TO_LAST} (x) a = Relu (t) y = Transpose {TO_FIRST} (a) z = MatMul (t, w)", outputs="y, z"
    )
    prove(MergeTransposes, model, batch(2, 6, 4, 5))
    assert ops(model) == {"Transpose": 1, "Relu": 1, "MatMul": 1}


@pytest.mark.parametrize(
    ("reduction", "left"),
    [
        ("f = Reshape (u, map) y = ReduceMean <keepdims = 0> (f, hw)", 0),
        ("f = Reshape (u, map) y = ReduceMax <keepdims = 1> (f, hw)", 1),
        ("y = ReduceSum <keepdims = 0> (u, last)", 0),
        ("y = ReduceMean <keepdims = 1> (u, last)", 1),
    ],
)
def test_a_reduction_takes_the_axes_before_the_transpose(reduction: str, left: int) -> None:
    model = graph(f"g = Softmax (x) u = Transpose <perm = [0, 2, 1]> (g) {reduction}", inputs="float[batch, 20, 6] x")
    prove(MergeTransposes, model, batch(1, 20, 6), batch(2, 20, 6))
    assert moves(model) == (0, left)


def test_axes_given_as_an_attribute_stay_one() -> None:
    model = parsed(
        """<ir_version: 8, opset_import: ["": 17]> agraph (float[batch, 5, 6] x) => (y) {
            t = Transpose <perm = [0, 2, 1]> (x) y = ReduceMean <axes = [2], keepdims = 0> (t)
        }"""
    )
    prove(MergeTransposes, model, batch(2, 5, 6))
    assert ops(model) == {"ReduceMean": 1}


@pytest.mark.parametrize(
    "body",
    [
        f"t = Transpose {TO_LAST} (x) y = MatMul (t, w)",
        f"t = Transpose {TO_LAST} (x) s = Softmax <axis = -1> (t) y = Transpose {TO_FIRST} (s)",
        f"t = Transpose {TO_LAST} (x) a = Relu (t) b = Neg (a) y = Transpose {TO_FIRST} (a) z = MatMul (b, w)",
        f"t = Transpose {TO_LAST} (x) m = ReduceMean <keepdims = 1> (t, hw) r = Relu (t) a = Mul (r, m) "
        f"y = Transpose {TO_FIRST} (a)",
        f"g = ReduceMax <keepdims = 0> (x, hw) m = Unsqueeze (g, first) t = Transpose {TO_LAST} (x) "
        "f = Reshape (t, rows) a = Add (f, m) u = Transpose <perm = [0, 2, 1]> (a) y = Reshape (u, map)",
        "f = Reshape (x, tokens) t = Transpose <perm = [0, 2, 1]> (f) y = Relu (t)",
        "t = Transpose <perm = [0, 3, 2, 1]> (x) y = ReduceMean <keepdims = 0> (t, first)",  # the rest turns
    ],
)
def test_what_would_not_end_in_fewer_of_them_is_left_alone(body: str) -> None:
    model = graph(body, outputs="y, z" if " z = " in body else "y")
    assert prove(MergeTransposes, model, batch(2, 6, 4, 5)).changes == []


def test_an_output_that_is_the_input_again_keeps_its_name() -> None:
    model = graph(CANCELLING["inverse"])
    prove(MergeTransposes, model, batch(2, 6, 4, 5))
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_unknown_shapes_are_left_alone() -> None:
    model = graph(CANCELLING["through a chain"])
    for node in model.graph:
        node.outputs[0].shape = None
    kind = MergeTransposes(PORTABLE)
    kind(model)
    assert kind.changes == []
