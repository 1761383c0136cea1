"""The guide's trunk: its size, its arithmetic layer by layer, and torchvision's weights in it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdeploy.errors import CheckpointError
from vitdeploy.models.cagevit import CageViT
from vitdeploy.models.mobilenet import mobilenet_trunk


def test_the_trunk_has_the_size_its_table_says() -> None:
    with torch.device("meta"):
        trunk = mobilenet_trunk().eval()
    assert sum(p.numel() for p in trunk.parameters()) == 927_008
    total = 0

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += out.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, nn.BatchNorm2d):
            total += 2 * out.numel()

    for module in trunk.modules():
        module.register_forward_hook(count)
    assert trunk(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 576, 14, 14)
    assert total / 1e6 == pytest.approx(108.7, abs=0.1)


def test_the_trunk_is_the_documented_network() -> None:
    """Squeeze-and-excitation and the activations, layer by layer, from the tensors alone."""
    trunk, x = mobilenet_trunk().double().eval(), torch.randn(1, 3, 64, 64).double()
    for layer in trunk.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for statistic in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(statistic, 0.5, 1.5)

    def hard_swish(t: Tensor) -> Tensor:
        return t * (t + 3).clamp(0, 6) / 6

    def convolution(layer: Any, t: Tensor, stride: int, dilation: int, groups: int) -> Tensor:
        weight, norm = layer[0].weight, layer[1]
        padding = dilation * (weight.shape[2] - 1) // 2
        t = nn.functional.conv2d(t, weight, None, stride, padding, dilation, groups)
        scale = norm.weight / (norm.running_var + 1e-3).sqrt()
        return t * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]

    def excite(layer: Any, t: Tensor) -> Tensor:
        s = t.mean((2, 3))
        s = (s @ layer.fc1.weight[:, :, 0, 0].t() + layer.fc1.bias).clamp(min=0)
        s = s @ layer.fc2.weight[:, :, 0, 0].t() + layer.fc2.bias
        return t * ((s + 3).clamp(0, 6) / 6)[:, :, None, None]

    with torch.no_grad():
        expected = hard_swish(convolution(trunk[0], x, 2, 1, 1))
        for row in range(1, 12):
            block, activation = trunk[row].block, hard_swish if row >= 4 else torch.relu
            stride, dilation = 2 if row in (1, 2, 4) else 1, 2 if row >= 9 else 1
            parts, t = list(block), expected
            if row > 1:
                t = activation(convolution(parts.pop(0), t, 1, 1, 1))
            t = activation(convolution(parts.pop(0), t, stride, dilation, t.shape[1]))
            if row not in (2, 3):
                t = excite(parts.pop(0), t)
            t = convolution(parts.pop(0), t, 1, 1, 1)
            assert not parts
            expected = expected + t if row in (3, 5, 6, 8, 10, 11) else t
        expected = hard_swish(convolution(trunk[12], expected, 1, 1, 1))
        torch.testing.assert_close(trunk(x), expected, atol=1e-9, rtol=0)


def torchvision_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of torchvision's `mobilenet_v3_small`, from the paper's table of layers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(key: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{key}.0.weight"] = (out, into, kernel, kernel)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{key}.1.{leaf}"] = (out,)
        shapes[f"{key}.1.num_batches_tracked"] = ()

    convolution("features.0", 16, 3, 3)
    table = [  # kernel, expanded, out, squeezed
        (3, 16, 16, 8), (3, 72, 24, 0), (3, 88, 24, 0), (5, 96, 40, 24), (5, 240, 40, 64), (5, 240, 40, 64),
        (5, 120, 48, 32), (5, 144, 48, 40), (5, 288, 96, 72), (5, 576, 96, 144), (5, 576, 96, 144),
    ]  # fmt: skip
    width = 16
    for row, (kernel, expanded, out, squeezed) in enumerate(table, start=1):
        part = 0
        if expanded != width:
            convolution(f"features.{row}.block.{part}", expanded, width, 1)
            part += 1
        convolution(f"features.{row}.block.{part}", expanded, 1, kernel)
        part += 1
        if squeezed:
            for layer, (a, b) in {"fc1": (squeezed, expanded), "fc2": (expanded, squeezed)}.items():
                shapes[f"features.{row}.block.{part}.{layer}.weight"] = (a, b, 1, 1)
                shapes[f"features.{row}.block.{part}.{layer}.bias"] = (a,)
            part += 1
        convolution(f"features.{row}.block.{part}", out, expanded, 1)
        width = out
    convolution("features.12", 576, 96, 1)
    for layer, (out, into) in {"classifier.0": (1024, 576), "classifier.3": (1000, 1024)}.items():
        shapes[f"{layer}.weight"], shapes[f"{layer}.bias"] = (out, into), (out,)
    return shapes


def torchvision_state() -> dict[str, Tensor]:
    return {
        key: torch.zeros((), dtype=torch.int64) if key.endswith("tracked") else torch.randn(shape)
        for key, shape in torchvision_shapes().items()
    }


def test_torchvision_weights_load_into_the_guide_tensor_for_tensor() -> None:
    state = torchvision_state()
    learned = [key for key in state if "running" not in key and "tracked" not in key]
    assert sum(state[key].numel() for key in learned) == 2_542_856  # the published 2.54 M
    model = CageViT(num_classes=10, image_size=(64, 64), width=64, depth=1)
    head = model.guide.fc.weight.clone()
    model.load_guide(state)
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    loaded = model.guide.trunk.state_dict()
    assert loaded.keys() == {key.removeprefix("features.") for key in features}
    assert all(torch.equal(loaded[key.removeprefix("features.")], value) for key, value in features.items())
    assert torch.equal(model.guide.fc.weight, head)


def test_weights_of_another_network_are_refused_by_the_guide() -> None:
    model = CageViT(num_classes=10, image_size=(64, 64), width=64, depth=1)
    state = torchvision_state()
    del state["features.4.block.2.fc1.bias"]
    with pytest.raises(CheckpointError, match=r"4\.block\.2\.fc1\.bias is missing"):
        model.load_guide(state)
    with pytest.raises(CheckpointError, match="mobilenet_v3_small"):
        model.load_guide({"conv1.weight": torch.zeros(1)})
