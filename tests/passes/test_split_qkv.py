from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import examples
from tests.graph_cases import batch, folded, ops, parsed, prove
from vitdeploy.passes.split_qkv import SplitQKV

HEADS, D, N = 2, 4, 5
C = HEADS * D

Cut = Callable[[Tensor], tuple[Tensor, ...]]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Self-attention whose q, k, v are cut out of one projection by `cut`, as [B, h, N, d]."""

    def __init__(self, cut: Cut, columns: int = 3 * C, bias: bool = True) -> None:
        super().__init__()
        self.cut, self.qkv = cut, nn.Linear(C, columns, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return attend(*self.cut(self.qkv(tokens)))


def timm_unbind(t: Tensor) -> tuple[Tensor, ...]:
    return t.reshape(t.shape[0], N, 3, HEADS, D).permute(2, 0, 3, 1, 4).unbind(0)


def timm_index(t: Tensor) -> tuple[Tensor, ...]:
    t = t.reshape(t.shape[0], N, 3, HEADS, D).permute(2, 0, 3, 1, 4)
    return t[0], t[1], t[-1]


def without_permute(t: Tensor) -> tuple[Tensor, ...]:
    t = t.reshape(t.shape[0], N, 3, HEADS, D)
    return tuple(t[:, :, i].transpose(1, 2) for i in range(3))


def three_parts_only(t: Tensor) -> tuple[Tensor, ...]:
    t = t.reshape(t.shape[0], N, 3, C).permute(2, 0, 1, 3)
    return tuple(part.unflatten(2, (HEADS, D)).transpose(1, 2) for part in (t[0], t[1], t[2]))


def head_major_chunk(t: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.transpose(1, 2) for part in t.reshape(t.shape[0], N, HEADS, 3 * D).chunk(3, dim=-1))


def head_major_split_behind_permute(t: Tensor) -> tuple[Tensor, ...]:
    return t.reshape(t.shape[0], N, HEADS, 3 * D).permute(0, 2, 1, 3).split(D, dim=-1)


def innermost_index(t: Tensor) -> tuple[Tensor, ...]:
    return t.reshape(t.shape[0], N, HEADS, D, 3).permute(4, 0, 2, 1, 3).unbind(0)


def slices(t: Tensor) -> tuple[Tensor, ...]:
    parts = (t[..., :C], t[..., C : 2 * C], t[..., 2 * C :])
    return tuple(part.unflatten(2, (HEADS, D)).transpose(1, 2) for part in parts)


def kv_of_three(t: Tensor) -> tuple[Tensor, ...]:
    t = t.reshape(t.shape[0], N, 3, HEADS, D).permute(2, 0, 3, 1, 4)
    return t[1], t[1], t[2]


CUTS = [
    timm_unbind,
    timm_index,
    without_permute,
    three_parts_only,
    head_major_chunk,
    head_major_split_behind_permute,
    innermost_index,
    slices,
    kv_of_three,
]


@pytest.mark.parametrize(("cut", "dynamic"), [(cut, True) for cut in CUTS] + [(timm_unbind, False)])
def test_every_idiom_becomes_one_split_of_the_last_axis(cut: Cut, dynamic: bool) -> None:
    model = folded(Attention(cut), torch.randn(2, N, C), dynamic_batch=dynamic)
    batches = [batch(3, N, C), batch(1, N, C, seed=1)] if dynamic else [batch(2, N, C)]

    prove(SplitQKV, model, *batches)

    count = ops(model)
    assert count["Split"] == 1
    assert count["Gather"] == count["Slice"] == count["Squeeze"] == 0
    assert count["MatMul"] + count["Gemm"] == 3  # the projection and the two products of the attention
    assert max(len(value.shape) for node in model.graph for value in node.outputs) == 4


@settings(max_examples=examples(25))
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5)),
    parts=st.integers(2, 4),
    head_major=st.booleans(),
    bias=st.booleans(),
)
def test_any_shape_and_number_of_parts(
    size: tuple[int, int, int, int], parts: int, head_major: bool, bias: bool
) -> None:
    b, n, h, d = size
    shape, perm = ((b, n, h, parts, d), "3, 0, 2, 1, 4") if head_major else ((b, n, parts, h, d), "2, 0, 3, 1, 4")
    columns = parts * h * d
    chosen = "".join(f"q{i} = Gather <axis = 0> (t, i{i}) " for i in range(parts))
    model = parsed(
        f"agraph (float[{b}, {n}, 6] x) => ({', '.join(f'y{i}' for i in range(parts))}) {{ m = MatMul (x, w) "
        + ("p = Add (m, b) " if bias else "p = Identity (m) " if not head_major else "p = Add (b, m) ")
        + f"r = Reshape (p, shape) t = Transpose <perm = [{perm}]> (r) {chosen}"
        + "".join(f"y{i} = Relu (q{i}) " for i in range(parts))
        + "}",
        w=batch(6, columns, seed=1),
        b=batch(columns, seed=2),
        shape=torch.tensor(shape).numpy(),
        **{f"i{i}": torch.tensor(i - parts if i % 2 else i).numpy() for i in range(parts)},
    )

    prove(SplitQKV, model, batch(b, n, 6))

    assert ops(model)["Gather"] == 0
    assert ops(model)["Split"] == 1


BODY = "m = MatMul (x, w) p = Add (m, b) r = Reshape (p, shape) "
WEIGHTS = {
    "w": batch(8, 24, seed=1),
    "b": batch(24, seed=2),
    "part_major": torch.tensor([-1, 5, 3, 2, 4]).numpy(),
    "head_major": torch.tensor([-1, 5, 2, 3, 4]).numpy(),
    "tokens_cut": torch.tensor([-1, 5, 24]).numpy(),
    "zero": torch.tensor(0).numpy(),
    "one": torch.tensor(1).numpy(),
}

LEFT_ALONE = {
    "an index that is computed": ("part_major", "i = ArgMax <keepdims = 0> (flat) y = Gather <axis = 2> (r, i)"),
    "tokens chosen, not columns": ("part_major", "y = Gather <axis = 1> (r, zero)"),
    "another consumer of the whole": ("part_major", "g = Gather <axis = 2> (r, zero) s = ReduceSum (r) y = Add (g, s)"),
    "two axes": ("part_major", "g = Gather <axis = 2> (r, zero) s = Gather <axis = 3> (r, one) e = ReduceSum (s) "
    "y = Add (g, e)"),
    "a part that is an output": ("part_major", "y = Gather <axis = 2> (r, zero) s = Gather <axis = 2> (r, one)"),
    "columns out of order of a projection read elsewhere": (
        "head_major",
        "g = Gather <axis = 3> (r, zero) h = Gather <axis = 3> (r, one) a = Mul (g, h) "
        "s = ReduceSum (p) y = Add (a, s)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    shape, rest = LEFT_ALONE[case]
    flat = "flat = Constant <value_floats = [1.0, 2.0]> () "
    body = BODY.replace("(p, shape)", f"(p, {shape})") + (flat if "flat" in rest else "") + rest
    model = parsed(f"agraph (float[batch, 5, 8] x) => (y) {{ {body} }}", **WEIGHTS)
    assert prove(SplitQKV, model, batch(2, 5, 8)).changes == []


def test_slices_that_leave_a_gap_or_overlap_stay() -> None:
    for cuts in (((0, 4), (4, 7)), ((0, 5), (4, 8)), ((0, 8),)):
        body = "".join(
            f"s{i} = Slice (x, a{start}, a{stop}, a2) y{i} = Relu (s{i}) " for i, (start, stop) in enumerate(cuts)
        )
        outputs = ", ".join(f"y{i}" for i in range(len(cuts)))
        edges = {f"a{edge}": torch.tensor([edge]).numpy() for edge in (0, 2, 4, 5, 7, 8)}
        model = parsed(f"agraph (float[2, 3, 8] x) => ({outputs}) {{ {body} }}", **edges)
        assert prove(SplitQKV, model, batch(2, 3, 8)).changes == []


def test_weights_shared_with_another_layer_are_copied_before_their_columns_move() -> None:
    model = parsed(
        "agraph (float[2, 5, 8] x) => (y) { m = MatMul (x, w) r = Reshape (m, head_major) "
        "g = Gather <axis = 3> (r, zero) h = Gather <axis = 3> (r, one) a = Mul (g, h) "
        "u = Relu (x) other = MatMul (u, w) s = ReduceSum (other) y = Add (a, s) }",
        **WEIGHTS,
    )
    assert "order" in prove(SplitQKV, model, batch(2, 5, 8)).changes[0]
