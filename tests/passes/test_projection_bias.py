"""FoldValueBias and BiasAfterHeads: where the biases of queries and values go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import examples
from tests.graph_cases import PORTABLE, batch, folded, ops, prove
from tests.rows import TARGETS
from vitdeploy.graph.edit import constant, of_type, producer
from vitdeploy.models.cagevit import GatedLinearSRA
from vitdeploy.models.layers import attend
from vitdeploy.passes.bias_after_heads import BiasAfterHeads
from vitdeploy.passes.drop_key_bias import DropKeyBias
from vitdeploy.passes.fold_query_scale import FoldQueryScale
from vitdeploy.passes.fold_value_bias import FoldValueBias
from vitdeploy.passes.merge_transposes import MergeTransposes

COMPILED = TARGETS["tensorrt10"]


class Attention(nn.Module):
    """Attention of x to itself; options say what is made by one layer, and what follows."""

    def __init__(
        self, heads: int = 2, *, fused: bool = True, projected: bool = True, residual: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        width, self.heads, self.residual = 4 * heads, heads, residual
        self.layers = nn.ModuleList(
            [nn.Linear(width, 3 * width)] if fused else [nn.Linear(width, width) for _ in "qkv"]
        )
        self.proj = nn.Linear(width, width, bias=bias) if projected else nn.Tanh()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [part for layer in self.layers for part in layer(x).chunk(3 if len(self.layers) == 1 else 1, dim=2)]
        out = attend(*parts, heads=self.heads)
        return self.proj(out + x.sin() if self.residual else out)


def model_of(module: nn.Module, width: int, *, free: bool = True) -> ir.Model:
    """The graph as the passes find it: the scale is in the queries, and the keys are moved once."""
    model = folded(module, torch.randn(2, 5, width), dynamic_batch=free)
    FoldQueryScale(COMPILED)(model)
    MergeTransposes(COMPILED)(model)
    return model


def linear_biases(model: ir.Model) -> list[np.ndarray]:
    """The constants that are added to the results of linear layers."""
    found = []
    for node in of_type(model.graph, "Add"):
        for value, other in (node.inputs, reversed(node.inputs)):
            array, product = constant(other), producer(value, "MatMul")
            if array is not None and product is not None and constant(product.inputs[1]) is not None:
                found.append(array)
    return found


@settings(max_examples=examples(8), deadline=None)
@given(st.integers(1, 3), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_any_attention_computes_the_same(
    heads: int, fused: bool, projected: bool, residual: bool, bias: bool, free: bool
) -> None:
    torch.manual_seed(1)
    module = Attention(heads, fused=fused, projected=projected, residual=residual, bias=bias)
    model, images = model_of(module, 4 * heads, free=free), batch(2, 5, 4 * heads)
    for kind in (DropKeyBias, FoldValueBias, BiasAfterHeads):
        done = prove(kind, model, images, target=COMPILED)
        assert done.changes
    left = linear_biases(model)
    assert len(left) == int(projected and bias)  # no bias of queries, keys and values but that of the heads
    heads_bias = [array for array in map(constant, model.graph.initializers.values()) if array is not None]
    assert any(array.shape[-3:] == (heads, 1, 4) or (heads == 1 and array.shape[-1] == 4) for array in heads_bias)


def test_the_bias_of_the_values_is_in_that_of_the_projection() -> None:
    model = model_of(Attention(), 8)
    before = linear_biases(model)
    prove(DropKeyBias, model, batch(2, 5, 8), target=COMPILED)
    done = prove(FoldValueBias, model, batch(2, 5, 8), target=COMPILED)
    assert len(done.changes) == 2
    after = linear_biases(model)
    qkv = next(array for array in after if array.size == 24)
    assert qkv[:8].any()
    assert not qkv[8:].any()
    assert not np.array_equal(next(a for a in before if a.size == 8), next(a for a in after if a.size == 8))


def test_a_gate_between_two_attentions_takes_one_bias() -> None:
    """near + gate (far - near) with values of one layer: the difference has none, the sum has it once."""
    torch.manual_seed(0)
    attention = GatedLinearSRA(128, 4)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, t: Tensor) -> Tensor:
            pool = torch.full((1, 2, 4), 0.25).expand(t.shape[0], -1, -1)
            return self.attention(t, pool, torch.zeros(1, 1, 1, 2))

    model = folded(Block(), torch.randn(2, 6, 128))
    adds = ops(model)["Add"]
    for kind in (DropKeyBias, FoldValueBias):
        done = prove(kind, model, batch(2, 6, 128), target=COMPILED, tolerance=1e-4)
    assert any("the same bias on both sides" in line for line in done.changes)
    assert any("its bias takes what" in line for line in done.changes)
    assert ops(model)["Add"] == adds - 2  # the biases of both kv layers are gone


def test_a_sum_of_an_attention_with_itself_holds_its_bias_twice() -> None:
    class Twice(Attention):
        def forward(self, x: Tensor) -> Tensor:
            out = attend(*self.layers[0](x).chunk(3, dim=2), heads=self.heads)
            return self.proj(out + out)

    done = prove(FoldValueBias, model_of(Twice(), 8), batch(2, 5, 8), target=COMPILED)
    assert len(done.changes) == 1  # behind the attention, and no further


LEFT_ALONE = {
    "no softmax: rows of weights that do not add up to 1": lambda q, k, v: (q @ k.transpose(-1, -2)).relu() @ v,
    "a softmax over the queries": lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-2) @ v,
    "weights that are changed": lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1).square() @ v,
    "values that are used elsewhere": lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v + v,
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_the_bias_of_values_stays(case: str) -> None:
    class Other(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.layers[0](x).chunk(3, dim=2))
            return self.proj(LEFT_ALONE[case](q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model = model_of(Other(), 8)
    assert prove(FoldValueBias, model, batch(2, 5, 8), target=COMPILED).changes == []


def test_a_bias_whose_heads_are_used_elsewhere_stays() -> None:
    class Other(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.layers[0](x).chunk(3, dim=2))
            return (q @ k.transpose(-1, -2)).softmax(-1) @ v + q + k + v

    torch.manual_seed(0)
    model = model_of(Other(), 8)
    assert prove(BiasAfterHeads, model, batch(2, 5, 8), target=COMPILED).changes == []


@pytest.mark.parametrize("kind", [FoldValueBias, BiasAfterHeads])
def test_only_where_the_target_asks(kind: type[FoldValueBias] | type[BiasAfterHeads]) -> None:
    assert prove(kind, model_of(Attention(), 8), batch(2, 5, 8), target=PORTABLE).changes == []
