"""Attention reaches the graph as one composite and leaves it in the target's form, with PyTorch's values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.conftest import examples
from tests.graph_cases import ops, run
from tests.pairwise import pairwise
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.lowering.attention import lower_attention


class Attend(nn.Module):
    """Queries from the image, keys and values from it too or from learned tokens."""

    def __init__(self, heads: int, width: int, tokens: int, mask: str, scale: float | None) -> None:
        super().__init__()
        self.heads, self.scale, self.mask_kind = heads, scale, mask
        self.query, self.key, self.value = (nn.Linear(3, heads * width) for _ in range(3))
        self.tokens = nn.Parameter(torch.randn(1, tokens, 3))

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(2).transpose(1, 2)
        c = self.tokens.expand(x.shape[0], -1, -1) * x.mean(1, keepdim=True)
        q, k, v = self.split(self.query(x)), self.split(self.key(c)), self.split(self.value(c))
        mask: Tensor | None = None
        if self.mask_kind == "float":
            mask = torch.linspace(-3, 3, k.shape[2])[None, None, None]
        elif self.mask_kind == "bool":
            mask = torch.arange(k.shape[2])[None] <= torch.arange(q.shape[2])[:, None]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.mask_kind == "causal", scale=self.scale
        )


def assert_equals_pytorch(module: nn.Module, model: ir.Model, images: Tensor) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused kernel misreads a float32 mask of a float64 query on AVX2
        expected = module.double()(images.double()).detach().numpy()
    module.float()
    actual = run(model, {"images": images.numpy()})[0]
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()))


def assert_lowering_equals_pytorch(module: Attend, size: tuple[int, int], batch: int, dynamic: bool) -> None:
    images = torch.randn(batch, 3, *size)
    model = capture(module, images, dynamic_batch=dynamic and batch > 1, output_names=["y"])
    assert ops(model)["CrossAttention"] == 1
    assert_equals_pytorch(module, model, images)  # the composite runs by its function body
    lower_attention(model)
    model.functions.clear()
    assert_equals_pytorch(module, model, images)


ATTENTIONS = pairwise(
    mask=["none", "float", "bool", "causal"],
    scale=[None, 1.0, 0.07],
    heads=[1, 3],
    width=[1, 8],
    tokens=[9, 1],
    size=[(4, 3), (1, 1)],
    batch=[(1, False), (3, True), (2, False)],
)


@pytest.mark.parametrize("row", ATTENTIONS)
def test_the_lowering_and_the_function_body_equal_pytorch(row: dict[str, Any]) -> None:
    def check(size: tuple[int, int], batch: tuple[int, bool], **attention: Any) -> None:
        assert_lowering_equals_pytorch(Attend(**attention).eval(), size, *batch)

    check(**row)


@pytest.mark.slow
@settings(max_examples=examples(25))
@given(
    heads=st.integers(1, 3),
    width=st.integers(1, 8),
    tokens=st.integers(1, 9),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    mask=st.sampled_from(["none", "float", "bool", "causal"]),
    scale=st.sampled_from([None, 1.0, 0.07]),
    batch=st.integers(1, 3),
    dynamic=st.booleans(),
)
def test_the_lowering_of_any_attention_equals_pytorch(
    heads: int,
    width: int,
    tokens: int,
    size: tuple[int, int],
    mask: str,
    scale: float | None,
    batch: int,
    dynamic: bool,
) -> None:
    assert_lowering_equals_pytorch(Attend(heads, width, tokens, mask, scale).eval(), size, batch, dynamic)


def test_nothing_stands_between_the_products_and_the_scale_is_on_the_query() -> None:
    module = Attend(2, 8, 5, "none", None).eval()
    model = capture(module, torch.randn(1, 3, 4, 4), dynamic_batch=False, output_names=["y"])
    lower_attention(model)
    chain, node = [], model.graph.outputs[0].producer()
    for _ in range(3):
        assert node is not None
        chain.append(node.op_type)
        node = node.inputs[0].producer()
    assert chain == ["MatMul", "Softmax", "MatMul"]
    assert node is not None
    assert node.op_type == "Mul"


class RankThree(nn.Module):
    """Attention without a head axis, grouped queries, and nn.MultiheadAttention: what user code writes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(2).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, x, x)
        grouped = x.unsqueeze(1).expand(-1, 4, -1, -1)
        x = x + F.scaled_dot_product_attention(grouped, x[:, None], x[:, None], enable_gqa=True).sum(1)
        y, _ = self.inner(x, x, x, need_weights=False)
        return y


def test_other_ways_to_call_attention_are_caught_too() -> None:
    module, images = RankThree().eval(), torch.randn(2, 4, 3, 2)
    model = capture(module, images, dynamic_batch=True, output_names=["y"])
    assert ops(model)["CrossAttention"] == 3
    assert_equals_pytorch(module, model, images)
    assert_equals_pytorch(module, model, torch.randn(5, 4, 3, 2))
