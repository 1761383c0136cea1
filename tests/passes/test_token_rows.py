from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import examples
from tests.exporter.zoo_models import BlockOfMaps
from tests.graph_cases import batch, folded, ops, parsed, prove
from tests.rows import TARGETS
from vitdeploy.graph.edit import constant
from vitdeploy.graph.traffic import bytes_moved
from vitdeploy.models.lemevit import CrossBlock, DualCrossBlock, StandardBlock
from vitdeploy.passes.fold_query_scale import FoldQueryScale
from vitdeploy.passes.merge_transposes import MergeTransposes
from vitdeploy.passes.token_rows import TokenRows
from vitdeploy.quantize.placement import place
from vitdeploy.targets import Int8Rules

ROWS = TARGETS["onnxruntime"]
WEIGHTS = {
    "w": batch(4, 4, seed=1),
    "g": batch(4, seed=3),
    "position": batch(1, 6, 4, seed=4),
    "each": batch(3, 6, 4, seed=5),
    "row": batch(1, 1, 4, seed=6),
    "tokens": np.array([-1, 6, 4]),
    "map": np.array([-1, 2, 3, 4]),
    "matrix": np.array([-1, 4]),
    "heads": np.array([-1, 6, 2, 2]),
    "halves": np.array([2, 4]),
    "channels": np.array([1, 3]),
    "first": np.array([1]),
    "end": np.array([5]),
}
BATCHES = {"one": 1, "fixed": 3, "free": "batch"}


def graph(body: str, size: int | str = 3, tail: str = "6, 4") -> ir.Model:
    return parsed(f"agraph (float[{size}, {tail}] x) => (y) {{ {body} }}", **WEIGHTS)


def linear_ranks(model: ir.Model) -> set[int]:
    layers = [node for node in model.graph if node.op_type == "MatMul" and constant(node.inputs[1]) is not None]
    return {len(node.outputs[0].shape or ()) for node in layers}


ON_ROWS = {
    "a layer": ("m = MatMul (x, w) y = Add (m, g)", 2),
    "a row for all": ("p = Add (row, x) y = MatMul (p, w)", 2),
    "norm and activation": ("n = LayerNormalization (x, g) a = Gelu (n) y = MatMul (a, w)", 2),
    "norm over a positive axis": ("n = LayerNormalization <axis = 2> (x, g) y = MatMul (n, w)", 2),
    "softmax over the channels": ("m = MatMul (x, w) y = Softmax (m)", 2),
    "a residual": ("n = LayerNormalization (x, g) m = MatMul (n, w) y = Add (x, m)", 2),
    "a condition": ("m = MatMul (x, w) c = Greater (m, x) y = Where (c, m, x)", 2),
    "channels split and joined": (
        "m = MatMul (x, w) a, b = Split <axis = 2> (m, channels) y = Concat <axis = -1> (b, a)",
        2,
    ),
    "tokens split and joined between": (
        "m = MatMul (x, w) a, b = Split <axis = 1> (m, halves) c = Concat <axis = 1> (b, a) y = MatMul (c, w)",
        4,
    ),
    "positions of a token": ("m = MatMul (x, w) p = Add (m, position) y = MatMul (p, w)", 4),
    "a map on the way": ("m = MatMul (x, w) r = Reshape (m, map) n = MatMul (r, w) y = Reshape (n, tokens)", 2),
    "heads behind": (
        "m = MatMul (x, w) h = Reshape (m, heads) q = Transpose <perm = [0, 2, 1, 3]> (h) "
        "k = Transpose <perm = [0, 2, 3, 1]> (h) s = MatMul (q, k) p = Softmax (s) o = MatMul (p, q) "
        "u = Transpose <perm = [0, 2, 1, 3]> (o) e = Reshape (u, tokens) z = MatMul (e, w) y = Add (z, g)",
        4,
    ),
}


@pytest.mark.parametrize("size", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("case", ON_ROWS)
def test_linear_layers_compute_on_rows(case: str, size: int | str) -> None:
    body, reshapes = ON_ROWS[case]
    if size == 1 and case == "positions of a token":
        reshapes = 2  # of all tokens there are
    if size == "batch" and case == "a map on the way":
        reshapes = 3  # shape inference gives the free axis another name
    model = graph(body, size)
    changes = prove(TokenRows, model, batch(size if isinstance(size, int) else 5, 6, 4), target=ROWS).changes
    assert len(changes) == 1
    assert linear_ranks(model) == {2}
    assert ops(model)["Reshape"] == reshapes


LEFT_ALONE = {
    "no linear layer": "n = LayerNormalization (x, g) y = Gelu (n)",
    "matrices": "r = Reshape (x, matrix) m = MatMul (r, w) a = Add (m, g) y = Reshape (a, tokens)",
    "a computed matrix": "t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (x, t)",
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    assert prove(TokenRows, graph(LEFT_ALONE[case]), batch(3, 6, 4), target=ROWS).changes == []


MIXING = {
    "Softmax": "s = Softmax <axis = 1> (m) z = Relu (s)",
    "Add": "z = Add (m, position)",
    "Slice": "z = Slice (m, first, end, first)",
}


@pytest.mark.parametrize("case", MIXING)
def test_what_mixes_rows_keeps_its_axes(case: str) -> None:
    model = graph(f"m = MatMul (x, w) {MIXING[case]} y = MatMul (z, w)")
    prove(TokenRows, model, batch(3, 6, 4), target=ROWS)
    assert {len(node.outputs[0].shape or ()) for node in model.graph if node.op_type == case} == {3}
    assert linear_ranks(model) == {2}


def test_a_constant_of_all_rows_is_laid_out_with_them() -> None:
    model = graph("m = MatMul (x, w) p = Add (m, each) y = MatMul (p, w)")
    prove(TokenRows, model, batch(3, 6, 4), target=ROWS)
    assert ops(model) == {"Reshape": 2, "MatMul": 2, "Add": 1}


def test_two_free_axes_are_more_than_one_reshape_can_name() -> None:
    model = graph("m = MatMul (x, w) y = Add (m, g)", "batch", "length, 4")
    assert prove(TokenRows, model, batch(2, 5, 4), target=ROWS).changes == []


def test_outputs_on_the_way_keep_name_and_shape() -> None:
    model = parsed(
        "agraph (float[3, 6, 4] x) => (m, a, r) { m = MatMul (x, w) a = Add (m, g) r = Reshape (a, matrix) }", **WEIGHTS
    )
    prove(TokenRows, model, batch(3, 6, 4), target=ROWS)
    assert [tuple(value.shape or ()) for value in model.graph.outputs] == [(3, 6, 4), (3, 6, 4), (18, 4)]


def test_other_targets_keep_their_axes() -> None:
    model = graph("m = MatMul (x, w) y = Add (m, g)")
    assert prove(TokenRows, model, batch(3, 6, 4), target=TARGETS["openvino"]).changes == []


@pytest.mark.parametrize("body", ["y = MatMul (x, w)", "r = Reshape (x, map) y = MatMul (r, w)"])
def test_the_work_of_one_image_is_counted_as_before(body: str) -> None:
    model = graph(body, "batch")
    for value in (node.outputs[0] for node in model.graph if len(node.outputs[0].shape or ()) == 4):
        value.shape = ir.Shape(["batch", 2, 3, 4])
    rules = ROWS.int8 or Int8Rules()
    before, bytes_before = [layer.macs for layer in place(model.graph, rules)], bytes_moved(model.graph)
    assert before == [6 * 4 * 4]
    assert prove(TokenRows, model, batch(2, 6, 4), target=ROWS).changes
    assert [layer.macs for layer in place(model.graph, rules)] == before
    assert bytes_moved(model.graph) == bytes_before


STEPS = (
    *("MatMul ({0}, w)", "Add ({0}, g)", "Add ({0}, {1})", "Mul ({1}, {0})", "Add (row, {0})", "Gelu ({0})"),
    *("LayerNormalization ({0}, g)", "Softmax <axis = {axis}> ({0})", "Transpose <perm = {perm}> ({0})"),
)


@settings(max_examples=examples(40))
@given(
    size=st.sampled_from([1, 2, "batch"]),
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9)), min_size=1, max_size=8),
    maps=st.booleans(),
)
def test_any_chain_of_operators(size: int | str, steps: list[tuple[str, int]], maps: bool) -> None:
    """Whatever stands between linear layers, some of which mix rows, and whoever reads it again later."""
    shape = (2, 2, 4) if maps else (4, 4)
    rank = len(shape) + 1
    names, lines = ["x"], []
    for index, (step, back) in enumerate([*steps, ("MatMul ({0}, w)", 0)]):
        perm = [0, *([2, 1, 3] if maps else [2, 1])]
        other = names[back % len(names)]
        lines.append(f"v{index} = " + step.format(names[-1], other, axis=back % rank, perm=perm))
        names.append(f"v{index}")
    model = graph(" ".join(lines).replace(f"{names[-1]} =", "y ="), size, ", ".join(map(str, shape)))

    prove(TokenRows, model, batch(size if isinstance(size, int) else 3, *shape), target=ROWS, tolerance=1e-4)

    assert linear_ranks(model) == {2}


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("kind", [StandardBlock, DualCrossBlock, CrossBlock])
def test_blocks_of_lemevit(kind: type[nn.Module], dynamic: bool) -> None:
    torch.manual_seed(0)
    model = folded(BlockOfMaps(kind(32, 2)), torch.randn(2, 64, 3, 4), dynamic_batch=dynamic)
    for step in (FoldQueryScale, MergeTransposes):
        step(ROWS)(model)
    prove(TokenRows, model, batch(2, 64, 3, 4), target=ROWS)
    assert linear_ranks(model) == {2}
