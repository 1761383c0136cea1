"""Whichever module a graph computes wrongly is the first that is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import examples
from tests.rows import TARGETS
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.diagnosis import localize
from vitdeploy.exporter.diagnosis.wrong_operator import wrong_operator
from vitdeploy.exporter.module_calls import Event, Labels, relative_error, tensors_in, watching
from vitdeploy.exporter.optimize import rewrites
from vitdeploy.exporter.torch_network import TorchNetwork
from vitdeploy.graph.run import Inputs
from vitdeploy.models.outputs import choose_outputs

WIDTH = 16


class Attention(nn.Module):
    """Two outputs, of which the caller uses one; heads that only the functional part of it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), k


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.drop = nn.LayerNorm(WIDTH), Attention(), nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm(x))[0])
        return x.add_(self.mlp(x))


class Network(nn.Module):
    """With a block that is used twice, one under a second name, and what is computed outside of submodules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 8, 8), nn.BatchNorm2d(WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.again = self.blocks[0]
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images * 0.5)).flatten(2).transpose(1, 2)
        for block in (*self.blocks, self.again):
            x = block(x)
        out: Tensor = self.head(x.mean(1))
        return out


INPUTS = {"images": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}

# The graph value that is changed, and the module to which it belongs.
SPOILED = {
    "stem/Conv.out": "stem (Conv2d)",
    "norm/BatchNormalization.out": "norm (BatchNorm2d)",
    "blocks.0.norm/LayerNormalization.out": "blocks.0.norm (LayerNorm)",
    "blocks.0.attn.qkv/Add.out": "blocks.0.attn.qkv (Linear)",
    "blocks.0.attn/CrossAttention.out": "blocks.0.attn (Attention)",
    "blocks.1.attn/CrossAttention.out": "blocks.1.attn (Attention)",
    "blocks.0.attn.proj/MatMul.out": "blocks.0.attn.proj (Linear)",
    "blocks.1.mlp.0/Add.out": "blocks.1.mlp.0 (Linear)",
    "blocks.1.mlp.1/Relu.out": "blocks.1.mlp.1 (ReLU)",
    "blocks.1/Add.out": "blocks.1 (Block)",
    "again.mlp.0/Add.out": "blocks.0.mlp.0 (Linear)",
    "head/Gemm.out": "head (Linear)",
    "graph/Mul.out": "Network.forward",
    "graph/ReduceMean.out": "Network.forward",
}


@pytest.fixture(scope="module")
def network() -> TorchNetwork:
    module = Network().eval()
    return TorchNetwork(module, "Network", choose_outputs(module, features=False), 1)


@pytest.fixture(scope="module")
def graph(network: TorchNetwork) -> ir.Model:
    return capture(network.module, torch.tensor(INPUTS["images"]), dynamic_batch=False, output_names=["logits"])


def wrong_modules(graph: ir.Model, network: TorchNetwork, inputs: Inputs) -> Iterator[str]:
    return map(Labels(network.module), localize.wrong_modules(graph, network, inputs))


def spoiled(graph: ir.Model, name: str, factor: float = 1.01) -> ir.Model:
    """A copy whose value `name`, or the last that its module makes, is multiplied."""
    changed = graph.clone()
    nodes = [node for node in changed.graph if node.outputs[0].name == name]
    nodes = nodes or [node for node in changed.graph if str(node.name).startswith(f"{name.partition('/')[0]}/")]
    node = nodes[-1]
    scale = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(factor))})
    product = ir.node("Mul", [node.outputs[0], scale.outputs[0]])
    scale.name, product.name = f"{node.name}_scale", f"{node.name}_spoiled"
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    outputs = list(changed.graph.outputs)
    ir.convenience.replace_all_uses_with(node.outputs[0], product.outputs[0], replace_graph_outputs=True)
    product.replace_input_with(0, node.outputs[0])
    if node.outputs[0] in outputs:
        node.outputs[0].name, product.outputs[0].name = "unspoiled", node.outputs[0].name
    changed.graph.insert_after(node, [scale, product])
    return changed


@pytest.mark.parametrize("name", SPOILED)
def test_the_spoiled_module_is_the_first_that_is_named(name: str, graph: ir.Model, network: TorchNetwork) -> None:
    assert next(wrong_modules(spoiled(graph, name), network, INPUTS)) == SPOILED[name]


def test_nothing_is_named_in_a_right_graph(graph: ir.Model, network: TorchNetwork) -> None:
    assert list(wrong_modules(graph, network, INPUTS)) == []


# Of modules that compute something themselves: the operator that PyTorch calls there, and its line.
OPERATORS = {
    "graph/Mul": ("mul", "images * 0.5"),
    "graph/ReduceMean": ("mean", "x.mean(1)"),
    "blocks.0.attn/CrossAttention": ("attention", "scaled_dot_product_attention"),
    "blocks.1/Add": ("add", "x + self.drop"),
    "head/Gemm": ("addmm", "self.head"),
    "blocks.1.mlp.0/MatMul": ("mm", "self.mlp"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_of_a_spoiled_value_is_named(name: str, graph: ir.Model, network: TorchNetwork) -> None:
    wrong = graph.clone()
    node = next(node for node in wrong.graph if node.name == name)
    scale = ir.node("Constant", [], attributes={"value": ir.tensor(np.float32(1.5))})
    product = ir.node("Mul", [node.inputs[0], scale.outputs[0]])
    product.name = f"{name}_spoiled"
    node.replace_input_with(0, product.outputs[0])
    wrong.graph.insert_before(node, [scale, product])
    found = wrong_operator(wrong, network, INPUTS, next(localize.wrong_modules(wrong, network, INPUTS)))
    assert found is not None
    operator, _, line = found.partition(" at ")
    file, _, number = line.rpartition(":")
    assert OPERATORS[name][0] in operator
    assert OPERATORS[name][1] in Path(file).read_text().splitlines()[int(number) - 1]


def test_no_operator_of_a_right_graph_is_named(graph: ir.Model, network: TorchNetwork) -> None:
    assert [wrong_operator(graph, network, INPUTS, module) for module in network.module.modules()] == [None] * 23


@pytest.mark.parametrize("target", ["portable", "tensorrt10"])
def test_after_rewrites_no_module_before_the_spoiled_one_is_named(
    target: str, graph: ir.Model, network: TorchNetwork
) -> None:
    optimized = graph.clone()
    list(rewrites(optimized, TARGETS[target]))
    merged = set(wrong_modules(optimized, network, INPUTS))
    named = [
        next((one for one in wrong_modules(spoiled(optimized, name), network, INPUTS) if one not in merged), None)
        for name in ("blocks.1.mlp.1/Relu.out", "head/Gemm.out")
    ]
    assert named[0] in ("blocks.1.mlp.1 (ReLU)", "blocks.1.mlp (Sequential)", "blocks.1 (Block)")
    assert named[1] in ("head (Linear)", "Network.forward")


def test_more_modules_than_are_compared_at_once(
    graph: ir.Model, network: TorchNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitdeploy.exporter.diagnosis.localize.AT_ONCE", 2)
    assert next(wrong_modules(spoiled(graph, "head/Gemm.out"), network, INPUTS)) == "head (Linear)"
    assert list(wrong_modules(graph, network, INPUTS)) == []


def test_modules_are_watched_in_the_order_of_their_calls_and_only_meanwhile() -> None:
    inner, outer = nn.ReLU(), nn.Sequential(nn.Identity())
    outer.forward = lambda x: inner(x) + 1  # type: ignore[method-assign, assignment]
    seen: list[Event] = []
    with watching(seen.append) as running:
        outer(torch.ones(2))
        assert running == []
    outer(torch.ones(2))
    assert [(event.module, event.enters, event.caller) for event in seen] == [
        (outer, True, None),
        (inner, True, outer),
        (inner, False, outer),
        (outer, False, None),
    ]
    labels = Labels(outer)
    assert [labels(event.module) for event in seen[:2]] == [
        "Sequential.forward",
        "a ReLU that is no registered submodule",
    ]


def test_tensors_are_found_in_nested_outputs() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert [len(t) for t in tensors_in({"x": [a, (b, None, 3)], "y": {"z": c}})] == [1, 2, 3]
    assert tensors_in(None) == ()


def numbers() -> st.SearchStrategy[float]:
    return st.floats(-1e6, 1e6, width=32)


@given(st.lists(numbers(), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 7))
@settings(max_examples=examples(50))
def test_the_relative_error_is_the_largest_change_over_the_largest_value(
    values: list[float], change: float, index: int
) -> None:
    old = np.array(values)
    new = old.copy()
    new[index % len(new)] += change
    error = np.abs(new - old).max()
    assert relative_error(old, old) == 0
    assert relative_error(old, new) == (error and (error / np.abs(old).max() if np.abs(old).max() else np.inf))


def cases() -> Iterator[tuple[list[float], list[float], float]]:
    nan, inf = float("nan"), float("inf")
    yield [nan, 1.0], [nan, 1.0], 0.0
    yield [-inf, 2.0], [-inf, 1.0], 0.5
    yield [-inf, 2.0], [inf, 2.0], inf
    yield [1.0, 2.0], [nan, 2.0], inf
    yield [nan, 2.0], [1.0, 2.0], inf
    yield [1.0], [1.0, 2.0], inf
    yield [], [], 0.0


@pytest.mark.parametrize(("old", "new", "error"), cases())
def test_what_is_not_finite_has_to_be_the_same(old: list[float], new: list[float], error: float) -> None:
    assert relative_error(np.array(old), np.array(new)) == error
