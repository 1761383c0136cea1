"""What a tiny constant protects stays FP32 with it: half precision is finite and right on images that nobody tried."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph_cases import inferred, parsed, run
from vitdeploy.exporter.capture import capture
from vitdeploy.exporter.emulation import emulate_half
from vitdeploy.exporter.guards import SMALLEST, guarded_regions
from vitdeploy.exporter.half import to_half
from vitdeploy.exporter.optimize import lower, optimize
from vitdeploy.targets import find_target


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12)


def response_norm(x: Tensor) -> Tensor:
    """GRN of ConvNeXt V2."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x * (norm / (norm.mean(-1, keepdim=True) + 1e-6)) + x


def linear_attention(x: Tensor) -> Tensor:
    """EfficientViT's: the ones behind v sum the weights, so that one product gives both parts of the fraction."""
    weights = F.relu(x)
    product = weights @ (weights.transpose(-1, -2) @ F.pad(x, (0, 1), value=1.0))
    return product[..., :-1] / (product[..., -1:] + 1e-15)


def elu_attention(x: Tensor) -> Tensor:
    weights = F.elu(x) + 1
    return (weights @ (weights.transpose(1, 2) @ x)) / ((weights * weights.sum(1, keepdim=True)).sum(-1, True) + 1e-6)


def by_reciprocal(x: Tensor) -> Tensor:
    weights = F.relu(x)
    factor = 1 / (torch.einsum("nlc,nc->nl", weights, weights.sum(1)) + 1e-12)
    return (weights @ (weights.transpose(1, 2) @ x)) * factor[..., None]


def unguarded(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-7)


def where_guard(x: Tensor) -> Tensor:
    total = x.abs().sum(-1, keepdim=True)
    return x / torch.where(total == 0, torch.full_like(total, 1e-12), total)


IDIOMS: dict[str, Callable[[Tensor], Tensor]] = {
    "rms norm": rms_norm,
    "response norm": response_norm,
    "F.normalize": lambda x: F.normalize(x, dim=-1),
    "F.normalize, p=1": lambda x: F.normalize(x, p=1, dim=-1),
    "cosine attention": lambda x: (10 * F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).mT).softmax(-1) @ x,
    "cosine similarity": lambda x: F.cosine_similarity(x[:, :-1], x[:, 1:], dim=-1),
    "linear attention": linear_attention,
    "elu attention": elu_attention,
    "by reciprocal": by_reciprocal,
    "log of softmax": lambda x: torch.log((8 * x).softmax(-1) + 1e-8),
    "log of clamp": lambda x: torch.log(torch.sigmoid(4 * x).clamp(min=1e-7)),
    "power of clamp": lambda x: x.clamp(min=1e-6).pow(3).mean(1, keepdim=True).pow(1 / 3),
    "negative power": lambda x: x * (x.square().mean(-1, keepdim=True) + 1e-12).pow(-0.5),
    "standardised": standardised,
    "range": lambda x: (x - x.amin(-1, True)) / (x.amax(-1, True) - x.amin(-1, True) + 1e-8),
    "where": where_guard,
}
SAFE: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax by hand": lambda x: (
        (x - x.amax(-1, True)).exp() / (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
    ),
    "epsilon that half precision holds": lambda x: x / (x.abs().sum(-1, keepdim=True) + 1e-3),
    "division by a constant": lambda x: x / 1e-9,
    "sigmoid and one": lambda x: x / (1 + torch.exp(-x)),
}


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def tokens(*scales: float) -> np.ndarray:
    """One sample [12, 8] a scale; what half precision holds exactly, as a layer in half precision would give it."""
    x = np.random.default_rng(0).standard_normal((len(scales), 12, 8)).astype(np.float32)
    return (x * np.array(scales, np.float32)[:, None, None]).astype(np.float16).astype(np.float32)


def captured(function: Callable[[Tensor], Tensor], count: int) -> ir.Model:
    module = Applied(function).eval()
    graph = capture(module, torch.from_numpy(tokens(*[1.0] * count)), dynamic_batch=False, output_names=["y"])
    lower(graph, find_target("portable"))
    optimize(graph, find_target("portable"))
    return graph


@pytest.mark.parametrize("name", IDIOMS)
def test_a_guarded_operation_is_right_where_the_guard_decides(name: str) -> None:
    """The conversion sees ordinary tokens only; then come zeros, tiny tokens and one zero token among others."""
    ordinary, hard = tokens(1.0, 0.5, 2.0, 1.0), tokens(0.0, 2e-3, 1e-2, 8.0)
    hard[3, :5] = 0
    if name == "unguarded":
        hard = hard[1:3]
    graph = captured(IDIOMS[name], 4)
    feed = str(graph.graph.inputs[0].name)
    typed, _ = to_half(graph, {feed: ordinary}, lambda outputs: 100.0, min_snr_db=45)
    expected = IDIOMS[name](torch.from_numpy(hard).double()).numpy()
    found = run(emulate_half(typed), {feed: hard})[0]
    assert np.isfinite(found).all()
    for sample, (right, got) in enumerate(zip(expected, found, strict=True)):
        assert np.abs(got - right).max() <= 5e-3 * np.abs(right).max() + 1e-7, (name, sample)


@pytest.mark.parametrize("name", SAFE)
def test_what_cannot_come_near_zero_stays_in_half_precision(name: str) -> None:
    assert guarded_regions(captured(SAFE[name], 2).graph) == {}


def test_a_root_of_zero_needs_no_guard_and_a_guarded_one_is_kept() -> None:
    def kept(body: str) -> set[str]:
        model = parsed(f"g (float[2, 8] x) => (float[2, 8] y) {{ {body} }}")
        for node in model.graph:
            node.name = str(node.outputs[0].name)
        return set(guarded_regions(inferred(model).graph))

    assert kept("a = Abs (x) y = Sqrt (a)") == set()
    assert kept("a = Abs (x) c = Constant <value_float = 1e-10> () b = Add (a, c) y = Sqrt (b)") >= {"b", "y"}
    assert kept("a = Abs (x) y = Reciprocal (a)") == {"a", "y"}
    assert kept("y = Reciprocal (x)") == set()  # any sign: nothing says that it is ever near zero


def test_the_limit_is_where_half_precision_has_50_db_left() -> None:
    numbers = np.linspace(SMALLEST, SMALLEST + 2.0**-24, 1001)
    error = np.abs(numbers.astype(np.float16).astype(np.float64) - numbers).max()
    assert 20 * np.log10(SMALLEST / error) == pytest.approx(50, abs=0.1)
