from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.exporter.zoo_models import BlockOfMaps
from tests.graph_cases import PORTABLE, batch, folded, ops, prove
from tests.rows import TARGETS
from vitdeploy.graph.attention import find_attentions
from vitdeploy.graph.edit import constant
from vitdeploy.models.layers import attend
from vitdeploy.models.lemevit import StandardBlock
from vitdeploy.passes.merge_shared_attention import MASK, MAX_MASKED_TOKENS, MergeSharedAttention
from vitdeploy.passes.merge_shared_linear import MergeSharedLinear

COMPILED = TARGETS["tensorrt10"]


class Streams(nn.Module):
    """Two streams, cut from the input at `cut`, through attentions that share what `shared` says."""

    def __init__(self, cut: int, heads: int, *, separate: bool = False, bias: bool = True, shared: bool = True) -> None:
        super().__init__()
        width, self.cut, self.heads, self.separate = 4 * heads, cut, heads, separate
        kind = (lambda: nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(3))) if separate else (
            lambda: nn.ModuleList([nn.Linear(width, 3 * width, bias=bias)])
        )  # fmt: skip
        self.first = kind()
        self.second = self.first if shared else kind()
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def attention(self, tokens: Tensor, layers: nn.ModuleList) -> Tensor:
        normed = self.norm(tokens)
        parts = [layer(normed) for layer in layers] if self.separate else layers[0](normed).chunk(3, dim=2)
        return attend(*parts, heads=self.heads)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x[:, : self.cut].sin(), x[:, self.cut :].cos()
        return torch.cat([self.attention(one, self.first).tanh(), self.attention(two, self.second).sigmoid()], 1)


def streams(cut: int, heads: int = 2, tokens: int = 8, batch: int = 2, free: bool = True, **options: bool) -> ir.Model:
    torch.manual_seed(0)
    module = Streams(cut, heads, **options)
    return folded(module, torch.randn(batch, tokens, 4 * heads), dynamic_batch=free)


@settings(max_examples=examples(6), deadline=None)
@given(
    st.integers(2, 6),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_streams_of_any_length_see_only_themselves(
    cut: int, heads: int, separate: bool, bias: bool, free: bool
) -> None:
    """The shorter and the longer stream in either order, of equal length, one or several layers, free batch or not."""
    model = streams(cut, heads, separate=separate, bias=bias, free=free)
    products = ops(model)["MatMul"]
    done = prove(MergeSharedAttention, model, batch(2, 8, 4 * heads), target=COMPILED)
    assert len(done.changes) == len(find_attentions(model.graph)) == 1
    assert ops(model)["MatMul"] == products // 2


def test_what_one_stream_holds_does_not_reach_the_other() -> None:
    """Numbers as large as the other stream's are small change nothing in it: the mask hides, it does not dim."""
    model = streams(5)
    prove(MergeSharedAttention, model, batch(2, 8, 8), 100 * batch(2, 8, 8, seed=3), target=COMPILED)
    masks = [array for value in model.graph.initializers.values() if (array := constant(value)) is not None]
    mask = next(array for array in masks if array.shape == (1, 1, 8, 8))
    assert set(np.unique(mask)) == {MASK, 0}
    assert np.exp(np.float16(MASK + 200)) == 0


def test_blocks_of_lemevit_run_both_streams_as_one() -> None:
    torch.manual_seed(0)
    module = BlockOfMaps(StandardBlock(32, 2))
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    model = folded(module, torch.randn(2, 64, 3, 4), dynamic_batch=True)
    images = batch(2, 64, 3, 4)
    prove(MergeSharedAttention, model, images, target=COMPILED)
    prove(MergeSharedLinear, model, images, target=COMPILED)
    count = ops(model)
    assert (count["Softmax"], count["MatMul"], count["Gelu"]) == (1, 2 + 4, 1)


LEFT_ALONE = {
    "other weights": {"shared": False},
    "a stream of one token": {"cut": 1},
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_left_alone(case: str) -> None:
    model = streams(**{"cut": 5, **LEFT_ALONE[case]})
    assert prove(MergeSharedAttention, model, batch(2, 8, 8), target=COMPILED).changes == []


def test_a_mask_of_its_own_stays() -> None:
    class Masked(Streams):
        def attention(self, tokens: Tensor, layers: nn.ModuleList) -> Tensor:
            q, k, v = layers[0](tokens).chunk(3, dim=2)
            scores = q @ k.transpose(1, 2) + tokens.mean(2, keepdim=True)
            return scores.softmax(2) @ v

    torch.manual_seed(0)
    model = folded(Masked(5, 2), torch.randn(2, 8, 8), dynamic_batch=True)
    assert prove(MergeSharedAttention, model, batch(2, 8, 8), target=COMPILED).changes == []


class Twice(Streams):
    """Two attentions of the same queries, keys and values in each stream."""

    def attention(self, tokens: Tensor, layers: nn.ModuleList) -> Tensor:
        q, k, v = layers[0](self.norm(tokens)).chunk(3, dim=2)
        return attend(q, k, v, heads=self.heads) + attend(k, v, q, heads=self.heads)


class Tied(Streams):
    """The queries of one stream are the keys of the other."""

    def forward(self, x: Tensor) -> Tensor:
        one, two = (part.sin() for part in x.split([self.cut, x.shape[1] - self.cut], 1))
        (p, u), (r, v) = (self.first[0](part).split([8, 16], 2) for part in (one, two))
        return torch.cat([attend(p, r, v[..., :8], heads=2), attend(r, p, u[..., :8], heads=2)], 1).tanh()


class Reduced(Streams):
    """Keys and values are every other token of a stream."""

    def attention(self, tokens: Tensor, layers: nn.ModuleList) -> Tensor:
        q = layers[0](tokens)[..., :8]
        k, v = layers[0](tokens[:, ::2])[..., 8:].chunk(2, dim=2)
        return attend(q, k, v, heads=self.heads)


@pytest.mark.parametrize("kind", [Twice, Tied, Reduced])
@pytest.mark.parametrize("cut", [2, 4, 5])
def test_whatever_the_streams_share_is_computed_right(kind: type[Streams], cut: int) -> None:
    torch.manual_seed(0)
    model = folded(kind(cut, 2), torch.randn(2, 8, 8), dynamic_batch=True)
    before = len(find_attentions(model.graph))
    prove(MergeSharedAttention, model, batch(2, 8, 8), target=COMPILED)
    assert len(find_attentions(model.graph)) == (before // 2 if kind is Twice else before)


def test_long_streams_stay_apart() -> None:
    model = streams(200, tokens=400, batch=1, free=False)
    assert prove(MergeSharedAttention, model, batch(1, 400, 8), target=COMPILED).changes == []


@pytest.mark.parametrize("tokens", [MAX_MASKED_TOKENS, MAX_MASKED_TOKENS + 1])
def test_where_a_mask_costs_something_only_few_tokens_in_all_are_one(tokens: int) -> None:
    model, images = streams(tokens - 16, tokens=tokens, batch=1), batch(1, tokens, 8)
    few = prove(MergeSharedAttention, model, images, target=TARGETS["onnxruntime"])
    assert len(find_attentions(model.graph)) == (1 if tokens == MAX_MASKED_TOKENS else 2)
    assert len(few.changes) == 2 - len(find_attentions(model.graph))


def test_only_where_the_target_asks() -> None:
    assert prove(MergeSharedAttention, streams(5), batch(2, 8, 8), target=PORTABLE).changes == []
