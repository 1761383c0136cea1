from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import examples
from tests.graph_cases import batch, folded, ops, parsed, prove, run
from vitdeploy.graph.edit import attribute
from vitdeploy.passes.fuse_layer_norm import FuseLayerNorm

C, EPS = 8, 1e-3

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


class Norm(nn.Module):
    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula
        self.weight, self.bias = nn.Parameter(torch.randn(C)), nn.Parameter(torch.randn(C))

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, self.weight, self.bias)


def operator(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, (C,), w, b, EPS)


def square_root(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    return w * ((x - u) / torch.sqrt((x - u).pow(2).mean(-1, keepdim=True) + EPS)) + b


def reciprocal_root(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return torch.rsqrt(EPS + (d * d).mean(-1, keepdim=True)) * d * w + b


def power(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d * (d.square().mean(-1, keepdim=True) + EPS) ** -0.5 * w + b


def sums(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.sum(-1, keepdim=True) / C
    return d / ((d**2).sum(-1, keepdim=True) * (1 / C) + EPS).sqrt() * w + b


def var_mean(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    v, u = torch.var_mean(x, -1, keepdim=True, correction=0)
    return (x - u) * (v + EPS).rsqrt() * w + b


def variance(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + EPS).sqrt() * w + b


def without_affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt((d * d).mean(-1, keepdim=True) + EPS)


def factor(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As Keras writes it: one product with the scaled inverse, the mean taken off behind it."""
    u = x.mean(-1, keepdim=True)
    m = torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS) * w
    return x * m + (b - u * m)


def negated_factor(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """As tf2onnx writes that."""
    u = x.mean(-1, keepdim=True)
    m = w * torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS)
    return (-u * m + b) + m * x


def factor_without_affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    m = torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS)
    return x * m - m * u


def factor_before_affine(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    m = torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS)
    return (x * m + -(u * m)) * w + b


def pooled(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Means by pooling over all that is behind the channels, which are the tokens here."""
    u = F.adaptive_avg_pool1d(x, 1)
    d = x - u
    return d / torch.sqrt(F.adaptive_avg_pool1d(d * d, 1) + EPS) * w + b


def convnext(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(1, keepdim=True)
    s = (x - u).pow(2).mean(1, keepdim=True)
    x = (x - u) / torch.sqrt(s + EPS)
    return w[:, None, None] * x + b[:, None, None]


def channels_first_var_mean(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    v, u = torch.var_mean(x, 1, keepdim=True, correction=0)
    return (x - u) * torch.rsqrt(v + EPS) * w.view(1, -1, 1, 1) + b.view(1, -1, 1, 1)


TOKENS = [
    operator,
    square_root,
    reciprocal_root,
    power,
    sums,
    var_mean,
    variance,
    without_affine,
    factor,
    negated_factor,
    factor_without_affine,
    factor_before_affine,
    pooled,
]
MAPS = [convnext, channels_first_var_mean]


@pytest.mark.parametrize("formula", TOKENS)
def test_every_spelling_becomes_one_operator(formula: Formula) -> None:
    model = folded(Norm(formula), torch.randn(2, 5, C), dynamic_batch=True)
    prove(FuseLayerNorm, model, batch(3, 5, C), batch(1, 5, C) * 100)
    assert [node.op_type for node in model.graph if node.op_type != "Constant"] == ["LayerNormalization"]


@pytest.mark.parametrize("formula", MAPS)
def test_statistics_over_channels_get_a_transpose_on_either_side(formula: Formula) -> None:
    module = Norm(formula)
    model = folded(module, torch.randn(2, C, 3, 4), dynamic_batch=True)
    x = batch(3, C, 3, 4)

    prove(FuseLayerNorm, model, x)

    kinds = [node.op_type for node in model.graph if node.op_type != "Constant"]
    assert kinds == ["Transpose", "LayerNormalization", "Transpose"]
    double = torch.from_numpy(x).double().movedim(1, -1)
    expected = F.layer_norm(double, (C,), module.weight.double(), module.bias.double(), EPS).movedim(-1, 1)
    np.testing.assert_allclose(run(model, {"images": x})[0], expected.detach().numpy(), atol=1e-5)


def epsilon_outside(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d / (torch.sqrt((d * d).mean(-1, keepdim=True)) + EPS) * w + b


def unbiased(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=True) + EPS).sqrt() * w + b


def root_mean_square(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * w + b


def whole_map(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.mean((1, 2), keepdim=True)
    return d / torch.sqrt((d * d).mean((1, 2), keepdim=True) + EPS) * w + b


def different_axes(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    d = x - x.mean(1, keepdim=True)
    return d / torch.sqrt((d * d).mean(-1, keepdim=True) + EPS) * w + b


def mean_added(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    m = torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS) * w
    return x * m + u * m


def mean_less(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    m = torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS) * w
    return u * m - x * m


def two_factors(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    r = torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS)
    return x * (r * w) - u * (r * b)


def factor_of_tokens(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    m = torch.rsqrt((x - u).square().mean(-1, keepdim=True) + EPS) * torch.arange(1.0, 6.0)[:, None]
    return x * m + (b - u * m)


OTHERS = [
    epsilon_outside,
    unbiased,
    root_mean_square,
    whole_map,
    different_axes,
    mean_added,
    mean_less,
    two_factors,
    factor_of_tokens,
]


@pytest.mark.parametrize("formula", OTHERS)
def test_another_function_is_left_alone(formula: Formula) -> None:
    model = folded(Norm(formula), torch.randn(2, 5, C), dynamic_batch=True)
    assert prove(FuseLayerNorm, model, batch(2, 5, C)).changes == []


CORE = (
    "u = ReduceMean (x, last) d = Sub (x, u) q = Mul (d, d) v = ReduceMean (q, last) e = Add (v, eps) r = Sqrt (e) "
    "n = Div (d, r) "
)
WEIGHTS = {
    "last": np.array([2]),
    "eps": np.array(EPS, dtype=np.float32),
    "w": batch(6, seed=1),
    "half": np.array(0.5, dtype=np.float32),
    "position": batch(5, 6, seed=2),
    "token": batch(5, 1, seed=3),
}


@pytest.mark.parametrize(
    ("body", "kinds"),
    [
        ("y = Mul (n, half)", ["LayerNormalization"]),
        ("y = Add (w, n)", ["LayerNormalization"]),
        ("y = Add (n, position)", ["LayerNormalization", "Add"]),
        ("y = Mul (n, token)", ["LayerNormalization", "Mul"]),
        ("y = Mul (n, n)", ["LayerNormalization", "Mul"]),
        ("m = Mul (n, w) s = ReduceMax (m) y = Add (m, s)", ["LayerNormalization", "ReduceMax", "Add"]),
        ("m = Mul (n, w) a = Add (m, w) y = Add (a, w)", ["LayerNormalization", "Add"]),
    ],
)
def test_only_what_varies_along_the_axis_is_taken_in(body: str, kinds: list[str]) -> None:
    model = parsed(f"agraph (float[batch, 5, 6] x) => (y) {{ {CORE} {body} }}", **WEIGHTS)
    prove(FuseLayerNorm, model, batch(2, 5, 6))
    assert [node.op_type for node in model.graph] == kinds


def test_statistics_read_elsewhere_stay() -> None:
    model = parsed(f"agraph (float[batch, 5, 6] x) => (y, u) {{ {CORE} y = Mul (n, w) }}", **WEIGHTS)
    prove(FuseLayerNorm, model, batch(2, 5, 6))
    assert ops(model) == {"ReduceMean": 1, "LayerNormalization": 1}


@settings(max_examples=examples(25))
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    axis=st.integers(0, 3),
    epsilon=st.sampled_from([1e-6, 1e-5, 1e-2]),
    affine=st.booleans(),
)
def test_any_axis_and_shape(shape: list[int], axis: int, epsilon: float, affine: bool) -> None:
    axis %= len(shape)
    vector = (shape[axis], *[1] * (len(shape) - 1 - axis))
    model = parsed(
        f"agraph (float{shape} x) => (y) {{ u = ReduceMean (x, axis) d = Sub (x, u) q = Mul (d, d) "
        "v = ReduceMean (q, axis) e = Add (v, eps) r = Sqrt (e) n = Div (d, r) "
        + ("m = Mul (n, w) y = Add (b, m) }" if affine else "y = Relu (n) }"),
        axis=np.array([axis]),
        eps=np.array(epsilon, dtype=np.float32),
        w=batch(*vector, seed=1),
        b=batch(*vector, seed=2),
    )

    # With few elements the variance may be near zero, and the division lifts the rounding of the mean.
    prove(FuseLayerNorm, model, batch(*shape, seed=3), tolerance=1e-4)

    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    if shape[axis] == 1:  # which ONNX Runtime 1.23 refuses
        assert (len(norms), ops(model)["ReduceMean"]) == (0, 2)
        return
    assert [attribute(norm, "epsilon") for norm in norms] == [pytest.approx(epsilon)]
    assert ops(model)["ReduceMean"] == 0
