"""SAEViT against formulas written out one window, head and group at a time, and its budgets, sizes and export."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitdeploy.errors import ModelError
from vitdeploy.models.cards.saevit import CARDS
from vitdeploy.models.registry import ModelCard
from vitdeploy.models.saevit import CIFFN, SAA, AdaptiveSampling, SAEViT

BY_NAME = {card.name: card for card in CARDS}
RATES = (4, 2, 2, 1)
SMALL = {"widths": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "heads": (2, 2, 3, 4), "num_classes": 5}


def build(name: str, **override: Any) -> SAEViT:
    torch.manual_seed(0)
    settings = {"num_classes": 1000, "image_size": (224, 224), **BY_NAME[name].hyperparameters, **override}
    return SAEViT(**settings).eval()


def stir(module: nn.Module) -> nn.Module:
    """The module in double precision and eval mode, with every tensor away from its start, so that every part shows."""
    torch.manual_seed(1)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.add_(0.3 * torch.randn(tensor.shape))
    return module.double().eval()


def small(image_size: tuple[int, int] = (64, 96)) -> SAEViT:
    """All parts of the network, few of each."""
    model = stir(build("saevit_xs", **SMALL, image_size=image_size))
    assert isinstance(model, SAEViT)
    return model


# The network written out, from its tensors alone


class Reference:
    """The formulas of the network, slowly."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        bias = self.state.get(f"{name}.bias")
        return F.conv2d(x, self.state[f"{name}.weight"], bias, stride, padding, groups=groups)

    def bn(self, name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def ln(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        normed = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
        return normed * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def gelu(self, x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def dwsconv(self, name: str, x: Tensor, stride: int) -> Tensor:
        x = self.bn(f"{name}.bn1", self.conv(f"{name}.dw", x, stride, 1, groups=x.shape[1]))
        return self.bn(f"{name}.bn2", self.conv(f"{name}.pw", self.gelu(x)))

    def sample(self, name: str, x: Tensor, rate: int) -> Tensor:
        scores = self.conv(f"{name}.score", self.bn(f"{name}.bn", x))
        width = x.shape[1] // scores.shape[1]
        out = torch.empty(*x.shape[:2], x.shape[2] // rate, x.shape[3] // rate, dtype=x.dtype)
        for c in range(x.shape[1]):
            weights = torch.exp(2 * torch.tanh(scores[:, c // width]))
            for i in range(out.shape[2]):
                for j in range(out.shape[3]):
                    window = (slice(None), slice(i * rate, (i + 1) * rate), slice(j * rate, (j + 1) * rate))
                    total = (weights[window] * x[:, c][window]).sum((1, 2))
                    out[:, c, i, j] = total / weights[window].sum((1, 2))
        return out

    def deconvolution(self, name: str, x: Tensor, rate: int) -> Tensor:
        out = torch.empty(*x.shape[:2], x.shape[2] * rate, x.shape[3] * rate, dtype=x.dtype)
        for a in range(rate):
            for b in range(rate):
                weight = self.state[f"{name}.weight"][:, 0, a, b]
                out[:, :, a::rate, b::rate] = x * weight[:, None, None] + self.state[f"{name}.bias"][:, None, None]
        return out

    def saa(self, name: str, x: Tensor, heads: int, rate: int) -> Tensor:
        s = self.sample(f"{name}.sample", x, rate) if rate > 1 else x
        B, C, H, W = s.shape
        d = C // heads
        qkv = self.linear(f"{name}.qkv", self.ln(f"{name}.norm", s.reshape(B, C, H * W).transpose(1, 2)))
        mixed = []
        for j in range(heads):
            q, k, v = (qkv[:, :, part * C + j * d : part * C + (j + 1) * d] for part in range(3))
            scores = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(d)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            mixed.append(torch.einsum("bnm,bmd->bnd", weights, v))
        o = self.linear(f"{name}.proj", torch.cat(mixed, -1)).transpose(1, 2).reshape(B, C, H, W)
        return self.deconvolution(f"{name}.up", o, rate) if rate > 1 else o

    def ciffn(self, name: str, x: Tensor) -> Tensor:
        u = self.conv(f"{name}.fc1", self.bn(f"{name}.norm", x))
        y = self.gelu(self.conv(f"{name}.dw", u, padding=1, groups=u.shape[1]))
        common = self.gelu(self.conv(f"{name}.common", y))
        assert common.shape[1] == 4
        out = y.clone()
        for c in range(y.shape[1]):
            out[:, c] += self.state[f"{name}.sigma"][c] * (y[:, c] - common[:, c // (y.shape[1] // 4)])
        return self.conv(f"{name}.fc2", out)

    def stages(self, images: Tensor, depths: tuple[int, ...], heads: tuple[int, ...]) -> list[Tensor]:
        x = self.gelu(self.bn("stem.1", self.conv("stem.0", images, 2, 1)))
        x = self.bn("stem.4", self.conv("stem.3", x, 2, 1))
        maps = []
        for i, (depth, h, rate) in enumerate(zip(depths, heads, RATES, strict=True)):
            x = self.dwsconv(f"down.{i}", x, 2) if i else x
            for j in range(depth):
                x = x + self.dwsconv(f"stages.{i}.{j}.local", x, 1)
                x = x + self.saa(f"stages.{i}.{j}.attn", x, h, rate)
                x = x + self.ciffn(f"stages.{i}.{j}.ffn", x)
            maps.append(x)
        return maps

    def logits(self, last: Tensor) -> Tensor:
        return self.linear("head", self.ln("norm", last.mean((2, 3))))


def assert_equals(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_logits_and_features_equal_the_formulas_on_an_image_that_is_not_square() -> None:
    model = small((32, 64))
    images = torch.randn(2, 3, 32, 64, dtype=torch.float64)
    reference = Reference(model.state_dict())
    with torch.no_grad():
        maps = reference.stages(images, SMALL["depths"], SMALL["heads"])
        for ours, expected in zip(model.forward_features(images), maps, strict=True):
            assert_equals(ours, expected)
        assert_equals(model(images), reference.logits(maps[-1]))


@pytest.mark.parametrize("rate", [2, 4])
def test_a_representative_is_the_mean_of_its_window_weighted_by_the_importance_of_its_head(rate: int) -> None:
    sampling = stir(AdaptiveSampling(12, heads=3, rate=rate))
    x = torch.randn(2, 12, 8, 16, dtype=torch.float64)
    expected = Reference({f"s.{key}": value for key, value in sampling.state_dict().items()}).sample("s", x, rate)
    assert_equals(sampling(x).detach(), expected)


@pytest.mark.parametrize("rate", [1, 2, 4])
def test_attention_runs_among_the_samples_and_a_deconvolution_spreads_it(rate: int) -> None:
    saa = stir(SAA(12, heads=3, rate=rate))
    x = torch.randn(2, 12, 8, 16, dtype=torch.float64)
    expected = Reference({f"a.{key}": value for key, value in saa.state_dict().items()}).saa("a", x, 3, rate)
    assert_equals(saa(x).detach(), expected)


def test_the_ffn_adds_the_weighted_detail_of_each_group() -> None:
    ffn = stir(CIFFN(8))
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    assert_equals(
        ffn(x).detach(), Reference({f"f.{key}": value for key, value in ffn.state_dict().items()}).ciffn("f", x)
    )


def test_before_training_sampling_is_a_mean_and_recovery_a_repetition() -> None:
    saa = build("saevit_xs").stages[0][0].attn
    x = torch.randn(2, 48, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(saa.sample(x), F.avg_pool2d(x, 4))
        torch.testing.assert_close(saa.up(x), x.repeat_interleave(4, 2).repeat_interleave(4, 3))


def test_the_importance_stays_finite_in_half_precision_whatever_the_scores() -> None:
    sampling = AdaptiveSampling(4, heads=1, rate=2).eval()
    nn.init.constant_(sampling.score.weight, 1000.0)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        exact, half = sampling(x), sampling.half()(x.half())
    torch.testing.assert_close(half.float(), exact, rtol=0.01, atol=0.01)


# Budgets


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_parameters_are_counted_exactly_and_multiply_adds_meet_the_published_budget(card: ModelCard) -> None:
    with torch.device("meta"):
        model, images = build(card.name), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(images)
    measured = {"saevit_xs": 0.8082, "saevit_s": 1.3125}[card.name]
    assert sum(p.numel() for p in model.parameters()) == card.parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(card.macs, rel=0.02)
    assert counter.get_total_flops() / 2e9 == pytest.approx(measured, abs=1e-4)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_parameters_of_each_block_follow_from_its_widths(card: ModelCard) -> None:
    with torch.device("meta"):
        model = build(card.name)
    settings = card.hyperparameters
    for stage, C, h, r in zip(model.stages, settings["widths"], settings["heads"], RATES, strict=True):
        m = 4 * C
        sampled = 2 * C + h * C + h + C * r * r + C if r > 1 else 0
        expected = C * C + 13 * C + 4 * C * C + 6 * C + sampled + 2 * C * m + 12 * m + 4 * m + 4 + 3 * C
        assert [sum(p.numel() for p in block.parameters()) for block in stage] == [expected] * len(stage)


def test_the_card_says_what_is_reconstructed() -> None:
    for card in CARDS:
        for fact in ("No official code or weights", f"{card.top1} %", f"{card.macs} GFLOPs", "SAA", "CIFFN", "DWSConv"):
            assert fact in card.reconstruction


# Image sizes


@pytest.mark.parametrize("size", [(32, 32), (32, 96), (256, 224)])
def test_multiples_of_32_work_and_give_maps_of_every_stride(size: tuple[int, int]) -> None:
    model = small(size)
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        logits, maps = model(images), model.forward_features(images)
    assert logits.shape == (1, 5)
    expected = [(1, C, size[0] // s, size[1] // s) for C, s in zip(SMALL["widths"], model.feature_strides, strict=True)]
    assert [tuple(x.shape) for x in maps] == expected


@pytest.mark.parametrize(
    ("size", "offer"),
    [((225, 224), "224x224 or 256x224"), ((16, 16), "32x32"), ((100, 50), "96x32 or 128x64")],
)
def test_other_sizes_are_refused_with_the_nearest_that_work(size: tuple[int, int], offer: str) -> None:
    with pytest.raises(ModelError, match=f"try: {offer}$"):
        build("saevit_xs", image_size=size)
    with pytest.raises(ModelError, match=f"try: {offer}$"):
        build("saevit_xs", **SMALL)(torch.zeros(1, 3, *size))


# Training and export


def test_every_parameter_receives_a_gradient() -> None:
    model = small().train()
    model(torch.randn(2, 3, 64, 96, dtype=torch.float64)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_captures_with_a_dynamic_batch_and_nothing_above_four_axes() -> None:
    model = small()
    batch = {"images": {0: torch.export.Dim("batch")}}
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=batch, strict=False)
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert max(value.ndim for value in values if isinstance(value, Tensor)) == 4
    with torch.no_grad():
        for n in (1, 3):
            torch.testing.assert_close(program.module()(images[:n]), model(images[:n]))
