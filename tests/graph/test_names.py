"""Names: the block that one tells, and one that nothing in the graph has."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph_cases import parsed
from vitdeploy.graph.edit import Builder
from vitdeploy.graph.names import block_of, make_unique, names_in, unused_name


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("stages.3.0.attn.proj/MatMul_1", "stages.3.0"),
        ("stages.1.0.attn.qkv/MatMul", "stages.1.0"),
        ("head/Gemm", "head"),
        ("MatMul_3", "graph"),
        ("images.as_float16", "graph"),
        ("", "graph"),
    ],
)
def test_the_block_is_the_start_of_the_module_path(name: str, block: str) -> None:
    assert block_of(name) == block


def test_names_are_numbered_until_they_are_free() -> None:
    assert unused_name("a", {"b"}) == "a"
    assert unused_name("a", {"a", "a_2"}, {"a_1"}) == "a_3"


def test_no_name_is_given_twice_whatever_has_it() -> None:
    """A node called after a value, an initializer after a node or a value: all of it is one space of names."""
    model = parsed("g (float[2] x) => (float[2] y) { h = Relu (x) y = Tanh (h) }")
    for thing, name in (
        (model.graph.inputs[0], "Neg"),
        (model.graph[0], "w"),
        (model.graph[1], "b/Tanh"),
        (model.graph.outputs[0], "Abs.out"),
    ):
        thing.name = name
    assert names_in(model.graph) == {"Neg", "h", "Abs.out", "w", "b/Tanh"}
    add = Builder(model.graph, model.graph[-1])
    add.scope = ""
    made = [add.op("Neg", [model.graph.inputs[0]]), add.op("Abs", [model.graph.inputs[0]])]
    made += [add.constant(np.zeros(2, np.float32), name) for name in ("w", "h", "Neg_1")]
    assert [value.name for value in made] == ["Neg_1.out", "Abs.out_1", "w_1", "h_1", "Neg_1_1"]
    assert [str(node.name) for node in model.graph] == ["w", "Neg_1", "Abs", "b/Tanh"]
    everything = [str(node.name) for node in model.graph] + [
        str(value.name)
        for value in (*model.graph.inputs, *model.graph.initializers.values(), *(n.outputs[0] for n in model.graph))
    ]
    assert len(everything) == len(set(everything)) == len(names_in(model.graph))


def test_builders_that_live_at_the_same_time_give_no_name_twice() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { h = Relu (x) y = Tanh (h) }")
    first, second = (Builder(model.graph, model.graph[-1]) for _ in range(2))
    made = [
        add.op("Neg", [model.graph.inputs[0]]) for add in (first, second, first, Builder(model.graph, model.graph[0]))
    ]
    assert len({value.name for value in made}) == 4
    assert len({node.name for node in model.graph if node.op_type == "Neg"}) == 4


def test_shared_names_are_numbered_and_those_of_the_interface_kept() -> None:
    model = parsed(
        "g (float[2] x) => (float[2] y) { h = Relu (x) w = Neg (h) y = Add (w, w) }", a=np.ones(2, np.float32)
    )
    graph = model.graph
    graph.initializers["a"].name = "y"  # the name of the output
    graph[0].outputs[0].name, graph[0].name, graph[2].name = "x", "n", "n"
    make_unique(graph)
    assert [value.name for value in (*graph.inputs, *graph.outputs)] == ["x", "y"]
    assert list(graph.initializers) == ["y_1"]
    assert graph.initializers["y_1"].name == "y_1"
    assert [node.name for node in graph] == ["n", "graph/Neg", "n_1"]
    assert [node.outputs[0].name for node in graph] == ["x_1", "w", "y"]
    make_unique(graph)
    assert list(graph.initializers) == ["y_1"]
