"""Attention is found by what it computes, with shapes or without, through scales, masks and quantization."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from tests.graph_cases import inferred
from tests.transformer import BLOCKS, transformer
from vitdeploy.graph.attention import find_attentions
from vitdeploy.graph.onnx_file import read_graph

ENDS = "(float[2, 3, 5, 8] q, float[2, 3, 8, 7] k, float[2, 3, 7, 4] v) => (float[2, 3, 5, 4] y)"


def graph(body: str, ends: str = ENDS, *, infer: bool = True, **weights: np.ndarray) -> ir.Graph:
    """`body` between `ends`; each node is called after its result."""
    text = f'<ir_version: 10, opset_import: ["": 23]> g {ends} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    model = ir.from_proto(proto)
    return (inferred(model) if infer else model).graph


def parts(found: ir.Graph, *, operators: bool = False) -> list[tuple[str, ...]]:
    return [
        (str(one.first.name), one.name, str(one.second.name)) for one in find_attentions(found, operators=operators)
    ]


@pytest.mark.parametrize("infer", [False, True])
@pytest.mark.parametrize(
    "body",
    [
        "s = MatMul (q, k) p = Softmax (s) y = MatMul (p, v)",
        "s = MatMul (q, k) m = Add (bias, s) p = Softmax (m) y = MatMul (p, v)",
        "s = MatMul (q, k) f = Mul (s, c) m = Add (f, bias) p = Softmax (m) d = Identity (p) y = MatMul (d, v)",
        "s = MatMul (q, k) a = Reshape (s, flat) b = Add (a, bias) r = Reshape (b, full) p = Softmax (r)"
        " y = MatMul (p, v)",
        "s = MatMul (q, k) p = Softmax (s) i = QuantizeLinear (p, c) d = DequantizeLinear (i, c) y = MatMul (d, v)",
    ],
)
def test_two_products_of_activations_around_a_softmax(body: str, infer: bool) -> None:
    weights = {
        "bias": np.zeros((5, 7), np.float32),
        "c": np.asarray(0.5, np.float32),
        "flat": np.asarray([6, 5, 7]),
        "full": np.asarray([2, 3, 5, 7]),
    }
    assert parts(graph(body, infer=infer, **weights)) == [("s", "p", "y")]


def test_what_stands_between_is_told_in_order() -> None:
    body = "s = MatMul (q, k) f = Mul (s, c) m = Add (f, c) p = Softmax (m) d = Identity (p) y = MatMul (d, v)"
    (found,) = find_attentions(graph(body, c=np.asarray(0.5, np.float32)))
    assert [str(node.name) for node in found.before] == ["f", "m"]
    assert [str(node.name) for node in found.after] == ["d"]
    assert [str(value.name) for value in found.operands] == ["q", "k", "v"]


@pytest.mark.parametrize(
    "body",
    [
        "l = MatMul (x, w) y = Softmax (l)",
        "l = MatMul (x, w) p = Softmax (l) y = MatMul (p, w)",
        "l = MatMul (x, x) p = Softmax (l) y = MatMul (p, w)",
        "d = DequantizeLinear (i, c) l = MatMul (x, d) p = Softmax (l) y = MatMul (p, x)",
        "l = MatMul (x, x) r = Relu (l) p = Softmax (r) y = MatMul (p, x)",
    ],
)
def test_weights_and_other_functions_are_no_attention(body: str) -> None:
    weights = {
        "w": np.ones((4, 4), np.float32),
        "i": np.ones((4, 4), np.int8),
        "c": np.asarray(0.5, np.float32),
    }
    assert parts(graph(body, "(float[4, 4] x) => (float[4, 4] y)", **weights)) == []


def test_queries_may_be_constant_and_heads_may_be_one() -> None:
    stack = {"q": np.ones((1, 3, 5, 8), np.float32)}
    ends = "(float[2, 3, 8, 7] k, float[2, 3, 7, 4] v) => (float[2, 3, 5, 4] y)"
    body = "s = MatMul (q, k) p = Softmax (s) y = MatMul (p, v)"
    assert parts(graph(body, ends, **stack)) == [("s", "p", "y")]
    matrices = "(float[5, 8] q, float[8, 7] k, float[7, 4] v) => (float[5, 4] y)"
    assert parts(graph(body, matrices)) == [("s", "p", "y")]


def test_the_operator_is_one_where_it_is_asked_for() -> None:
    ends = "(float[2, 3, 5, 8] q, float[2, 3, 7, 8] k, float[2, 3, 7, 4] v) => (float[2, 5, 3, 4] y)"
    found = graph("a = Attention (q, k, v) y = Transpose <perm = [0, 2, 1, 3]> (a)", ends)
    assert parts(found) == []
    assert parts(found, operators=True) == [("a", "a", "a")]
    assert find_attentions(found, operators=True)[0].results == ("a", "y")


def test_a_transformer_has_one_a_block() -> None:
    found = find_attentions(read_graph(transformer()).graph)
    assert [one.name for one in found] == [f"blocks.{index}.0.attn/Softmax" for index in range(BLOCKS)]
    assert found[0].results[0] == "blocks.0.0.attn/MatMul_1.out"
    assert len(found[0].results) == 3, "through the Transpose and the Reshape behind it"
