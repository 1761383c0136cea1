from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.graph_cases import PORTABLE, annotated, batch, captured, ops, parsed, prove
from vitdeploy.graph.edit import constant
from vitdeploy.passes.static_shapes import StaticShapes


class Attention(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(heads * width, 3 * heads * width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, dim=2)
        q, k, v = (t.reshape(n, height * width, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, height * width, channels)
        return out.transpose(1, 2).reshape(n, channels, height, width)


def test_captured_attention_over_a_free_batch_keeps_no_computed_shape() -> None:
    model = captured(Attention(2, 3), torch.randn(2, 6, 4, 5), dynamic_batch=True)
    assert not annotated(model)
    prove(StaticShapes, model, batch(1, 6, 4, 5), batch(3, 6, 4, 5))
    left = ops(model)
    assert left.keys().isdisjoint(
        {"Shape", "Gather", "Concat", "Constant", "Identity", "SplitToSequence", "SequenceAt"}
    )
    assert left["Split"] == 1
    assert annotated(model)
    for node in model.graph:
        if node.op_type == "Reshape":
            shape = constant(node.inputs[1])
            assert shape is not None
            assert shape[0] == -1
            assert (shape[1:] > 0).all()


@settings(max_examples=examples(25))
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), cut=st.integers(0, 3), images=st.integers(1, 3))
def test_any_reshape_of_the_axes_behind_the_batch_becomes_constant(sizes: list[int], cut: int, images: int) -> None:
    merged = [math.prod(sizes[:cut]), *sizes[cut:]]
    before, after = (", ".join(map(str, shape)) for shape in (sizes, merged))
    model = parsed(
        f"""agraph (float[batch, {before}] x) => (float[batch, {after}] y) {{
            b = Shape <start = 0, end = 1> (x)
            s = Concat <axis = 0> (b, tail)
            y = Reshape <allowzero = 1> (x, s)
        }}""",
        tail=np.array(merged),
    )
    prove(StaticShapes, model, batch(images, *sizes))
    assert ops(model).keys() == {"Reshape"}


def test_unequal_chunks_become_one_split() -> None:
    class Chunks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, _, last = x.chunk(3, dim=1)
            return first.sum(1) * last.sum(1)

    model = captured(Chunks(), torch.randn(2, 7, 2, 2), dynamic_batch=True)
    prove(StaticShapes, model, batch(2, 7, 2, 2))
    split = next(node for node in model.graph if node.op_type == "Split")
    assert constant(split.inputs[1]).tolist() == [3, 3, 1]
    assert [tuple(out.shape)[1] for out in split.outputs] == [3, 3, 1]


def test_shape_arithmetic_on_known_dimensions_becomes_constant() -> None:
    class Patches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.unfold(x, 3, padding=1)

    model = captured(Patches(), torch.randn(2, 3, 5, 4), dynamic_batch=True)
    prove(StaticShapes, model, batch(2, 3, 5, 4), batch(1, 3, 5, 4))
    assert ops(model)["Shape"] == 0
    assert ops(model)["Gather"] == 2  # those of pixels


def resize(mode: str, before: tuple[int, int], after: tuple[int, int]) -> ir.Model:
    return parsed(
        f"""agraph (float[batch, 3, {before[0]}, {before[1]}] x) => (float[batch, 3, {after[0]}, {after[1]}] y) {{
            b = Shape <start = 0, end = 2> (x)
            s = Concat <axis = 0> (b, tail)
            y = Resize <mode = "{mode}"> (x, , , s)
        }}""",
        tail=np.array(after),
    )


@pytest.mark.parametrize("size", [(7, 7), (10, 3), (4, 9)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_a_resize_to_computed_sizes_uses_scales(size: tuple[int, int], mode: str) -> None:
    model = resize(mode, (5, 6), size)
    prove(StaticShapes, model, batch(2, 3, 5, 6))
    assert ops(model) == {"Resize": 1}


def test_a_resize_whose_scale_would_round_to_a_smaller_size_stays() -> None:
    assert prove(StaticShapes, resize("linear", (7, 6), (31, 6)), batch(2, 3, 7, 6)).changes == []


def test_an_expand_over_the_batch_stays_and_one_over_known_axes_does_not() -> None:
    model = parsed(
        """agraph (float[batch, 1, 4] x) => (float[batch, 3, 4] y, float[batch, 2] z)
        <float[1, 2] c = {1.0, 2.0}, int64[2] tail = {3, 4}, int64[1] two = {2}> {
            b = Shape <start = 0, end = 1> (x)
            s = Concat <axis = 0> (b, tail)
            y = Expand (x, s)
            t = Concat <axis = 0> (b, two)
            z = Expand (c, t)
        }"""
    )
    prove(StaticShapes, model, batch(3, 1, 4))
    assert ops(model) == {"Shape": 1, "Concat": 1, "Expand": 2}
    first = next(node for node in model.graph if node.op_type == "Expand")
    assert constant(first.inputs[1]).tolist() == [1, 3, 4]


def test_what_changes_nothing_goes() -> None:
    model = parsed(
        """agraph (float[batch, 6] x) => (float[batch, 6] y)
        <int64[2] same = {0, -1}, int64[2] ones = {1, 1}> {
            a = Identity (x)
            b = Cast <to = 1> (a)
            c = CastLike (b, x)
            d = Reshape (c, same)
            e = Expand (d, ones)
            y = Relu (e)
        }"""
    )
    prove(StaticShapes, model, batch(2, 6))
    assert ops(model) == {"Relu": 1}


def test_a_cast_to_another_type_stays() -> None:
    model = parsed("agraph (float[b] x) => (float16[b] y) { y = Cast <to = 10> (x) }")
    assert prove(StaticShapes, model, batch(2)).changes == []


def test_an_output_that_only_renames_an_input_or_another_output_keeps_its_name() -> None:
    model = parsed(
        """agraph (float[batch] x) => (float[batch] copy, float[batch] y, float[batch] again) {
            copy = Identity (x)
            y = Relu (x)
            again = Identity (y)
        }"""
    )
    assert prove(StaticShapes, model, batch(2)).changes == []


def test_a_reshape_and_an_expand_to_two_free_dimensions_are_left_alone() -> None:
    model = parsed(
        """agraph (float[a, b, 2] x) => (float[a, c] y, float[a, b] z) <int64[1] rest = {-1}> {
            s = Shape <start = 0, end = 1> (x)
            n = Concat <axis = 0> (s, rest)
            y = Reshape (x, n)
            t = Shape <start = 0, end = 2> (x)
            total = ReduceMax <keepdims = 0> (x)
            z = Expand (total, t)
        }"""
    )
    assert prove(StaticShapes, model, batch(2, 3, 2)).changes == []


def test_a_transposed_weight_keeps_its_name_and_is_one_constant_for_all_its_consumers() -> None:
    model = parsed(
        """agraph (float[batch, 2] x) => (y, z, v) {
            a = Transpose (shared) y = MatMul (x, a) b = Transpose (shared) z = MatMul (x, b)
            c = Transpose <perm = [1, 0]> (kept) d = MatMul (x, c) v = MatMul (d, kept)
        }""",
        shared=batch(3, 2),
        kept=batch(3, 2, seed=1),
    )
    prove(StaticShapes, model, batch(5, 2))
    assert ops(model) == {"MatMul": 4}
    assert model.graph.initializers.keys() == {"shared", "kept", "kept_1"}


def test_a_sequence_with_another_reader_stays() -> None:
    model = parsed(
        """agraph (float[batch, 4] x) => (float[batch, 2] y, int64 n)
        <int64 two = {2}, int64 zero = {0}> {
            s = SplitToSequence <axis = 1> (x, two)
            y = SequenceAt (s, zero)
            n = SequenceLength (s)
        }"""
    )
    for node in model.graph:  # shape inference of onnx-ir states the element type where a sequence type belongs
        if node.op_type == "SplitToSequence":
            node.outputs[0].type = None
            node.outputs[0].shape = None
    StaticShapes(PORTABLE)(model)
    assert ops(model)["SplitToSequence"] == 1
