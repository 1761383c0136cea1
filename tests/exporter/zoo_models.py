"""Networks of the zoo with weights under which a mistake of the exporter shows, and images to compare them on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from tests.image_cases import reference_images
from vitdeploy.exporter.capture import capture
from vitdeploy.models.create import create_model
from vitdeploy.models.layers import to_map
from vitdeploy.models.registry import ModelCard, build, cards, find_card

IMAGES = 5

# Every kind of block once or twice, at a size of seconds: what each family's options make of its smallest variant.
SHALLOW: Mapping[str, tuple[str, dict[str, Any]]] = {
    "lemevit": ("lemevit_tiny", {"depth": (1, 1, 1, 1, 1)}),
    "dualvit": ("dualvit_s", {"depths": (1, 1, 2, 1)}),
    "qnavit": ("qnavit_tiny", {"attention": (0, 0, 1, 1), "local": (1, 1, 1, 0), "windows": (2, 2, 2, 2)}),
    "saevit": ("saevit_xs", {"depths": (1, 1, 1, 1)}),
    "cagevit": ("cagevit_tiny", {"depth": 2}),
}
SHALLOW_SIZE = (64, 64)

# Part of its input's spread that a map keeps. At 1.0 the rounding of 32 blocks in a row leaves lemevit_base 44 dB in
# half precision, which the exporter would repair block by block.
GAIN = {"lemevit": 0.7}

# A size beside the default that each family admits: not square, and odd where it may be.
OTHER_SIZES: Mapping[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "lemevit": ((101, 128), {}),
    "dualvit": ((101, 128), {}),
    "qnavit": ((256, 256), {"windows": (8, 8, 16, 8)}),
    "saevit": ((96, 128), {}),
    "cagevit": ((80, 128), {}),
}


def zoo_model(name: str, *, other_size: bool = False) -> tuple[nn.Module, np.ndarray]:
    """A variant at its default or at its family's other size, and IMAGES images [n, 3, H, W] for it."""
    size, hyperparameters = OTHER_SIZES[cards()[name].family] if other_size else (None, None)
    return prepared(create_model(name, image_size=size, hyperparameters=hyperparameters))


def shallow_model(family: str, image_size: tuple[int, int] = SHALLOW_SIZE) -> tuple[nn.Module, np.ndarray]:
    """A family's network with few blocks and 10 classes, and IMAGES images for it; the caller may change both."""
    return copy.deepcopy(_shallow(family, image_size))


@cache
def captured_network(family: str) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """The shallow network captured for a batch of 1, two images [2, 3, H, W] and PyTorch's logits of them.

    Made once a session: rewrite a clone of the graph.
    """
    model, images = shallow_model(family)
    with torch.inference_mode():
        logits = model(torch.from_numpy(images[:2])).numpy()
    graph = capture(
        model,
        torch.from_numpy(images[:1]),
        dynamic_batch=False,
        output_names=["logits"],
        call=lambda network, inputs: {"logits": network(*inputs.values())},
    )
    return graph, images[:2], logits


@cache
def _shallow(family: str, image_size: tuple[int, int]) -> tuple[nn.Module, np.ndarray]:
    name, hyperparameters = SHALLOW[family]
    card = find_card(name).resized(image_size)
    card = replace(card, num_classes=10, hyperparameters={**card.hyperparameters, **hyperparameters})
    model = build(card).eval()
    model.card = card  # type: ignore[assignment]
    return prepared(model)


def prepared(model: nn.Module) -> tuple[nn.Module, np.ndarray]:
    """The model with telling weights (those of a trained one stay), and images for it."""
    card: ModelCard = model.card  # type: ignore[assignment]
    images = reference_images(IMAGES, card.preprocessing)
    if card.weights.kind == "random":
        make_telling(model, torch.from_numpy(images), gain=GAIN.get(card.family, 1.0))
    return model, images


@torch.no_grad()
def make_telling(model: nn.Module, images: torch.Tensor, *, gain: float) -> None:
    """Seeded weights by which every part of the network shows in its outputs.

    A fresh network hides much: biases are zero, scales one, layer scales 1e-6, and attention scores so small that the
    softmax is uniform. Here maps keep the spread of what they read, or `gain` of it, and nothing is zero or one.
    BatchNorm statistics are those of `images`, as training would leave them.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        path, _, leaf = name.rpartition(".")
        if leaf in ("weight", "key") and parameter.ndim > 1:
            part = 0.2 if path.endswith("pos_embed") else gain  # x + conv(x) would double the variance each time
            parameter.copy_(part * noise / prod(parameter.shape[1:]) ** 0.5)
        elif leaf.startswith("gamma"):
            parameter.copy_(0.3 + 0.1 * noise)
        elif parameter.min() == parameter.max():
            parameter.add_(0.3 * noise)
        else:
            parameter.copy_(0.5 * noise)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        assert norm.running_var is not None
        norm.running_var.add_(0.1)  # a channel that is constant on these images stays tame


class BlockOfMaps(nn.Module):
    """A block of LeMeViT; the meta tokens are the second half of the channels at the first six pixels."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        x, c = images.chunk(2, dim=1)
        x, c = self.block(x, c.flatten(2).transpose(1, 2)[:, :6])
        return torch.cat([x, to_map(torch.cat([c, c], dim=1), 3, 4)], dim=1)
