from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, folded, ops, prove
from tests.rows import TARGETS
from vitdeploy.models.layers import attend
from vitdeploy.passes.fold_query_scale import FoldQueryScale
from vitdeploy.passes.merge_transposes import MergeTransposes
from vitdeploy.passes.pack_heads import PackHeads

COMPILED = TARGETS["tensorrt10"]


class Attention(nn.Module):
    """Self-attention of one layer, or of learned queries and one layer of keys and values."""

    def __init__(self, heads: int, *, cross: bool) -> None:
        super().__init__()
        width, self.heads, self.cross = 4 * heads, heads, cross
        self.layer = nn.Linear(width, (2 if cross else 3) * width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.layer(x).chunk(2 if self.cross else 3, dim=2)
        return attend(*([x.sin(), *parts] if self.cross else parts), heads=self.heads)


def model_of(module: nn.Module, width: int, *, free: bool = True) -> ir.Model:
    torch.manual_seed(0)
    model = folded(module, torch.randn(2, 5, width), dynamic_batch=free)
    FoldQueryScale(COMPILED)(model)
    MergeTransposes(COMPILED)(model)
    return model


@settings(max_examples=examples(8), deadline=None)
@given(st.integers(2, 4), st.booleans(), st.booleans())
def test_heads_are_laid_out_before_they_are_cut(heads: int, cross: bool, free: bool) -> None:
    model = model_of(Attention(heads, cross=cross), 4 * heads, free=free)
    done = prove(PackHeads, model, batch(2, 5, 4 * heads), target=COMPILED)
    assert len(done.changes) == ops(model)["Split"] == 1
    (split,) = (node for node in model.graph if node.op_type == "Split")
    assert split.attributes["axis"].value == 0


class Uneven(nn.Module):
    """Parts of different widths, or of different heads."""

    def __init__(self, widths: tuple[int, int], heads: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.widths, self.heads = nn.Linear(8, sum(widths)), widths, heads

    def forward(self, x: Tensor) -> Tensor:
        parts = self.layer(x).split(self.widths, dim=2)
        laid_out = [p.unflatten(2, (h, -1)).transpose(1, 2) for p, h in zip(parts, self.heads, strict=True)]
        return torch.cat([part.tanh().sum(1).flatten(1) for part in laid_out], 1)


@pytest.mark.parametrize(("widths", "heads"), [((8, 4), (2, 1)), ((8, 8), (2, 4))])
def test_uneven_parts_stay(widths: tuple[int, int], heads: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = folded(Uneven(widths, heads), torch.randn(2, 5, 8), dynamic_batch=True)
    assert prove(PackHeads, model, batch(2, 5, 8), target=COMPILED).changes == []


def test_only_where_the_target_asks() -> None:
    model = model_of(Attention(2, cross=False), 8)
    assert prove(PackHeads, model, batch(2, 5, 8), target=PORTABLE).changes == []
