"""A network of timm with random weights that behave like trained ones: `vitdeploy export timm_network.py:build`.

TIMM_MODEL names it. Batch norms get the statistics of some images, and layer scales a size that lets blocks count: as
timm initialises them, some networks are next to linear.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vitdeploy.exporter.sources.stand_in import without_torchvision

SCALES = ("gamma", "gamma_1", "gamma_2", "gamma1", "gamma2", "gamma3", "layer_scale", "ls1", "ls2")


def library() -> Any:
    """timm, which needs no torchvision here."""
    with without_torchvision():
        import timm
    return timm


def input_size(name: str) -> int:
    """Pixels on a side."""
    size: int = library().get_pretrained_cfg(name).input_size[-1]
    return size


def build() -> nn.Module:
    torch.manual_seed(0)
    name = os.environ["TIMM_MODEL"]
    return realistic(library().create_model(name, pretrained=False), input_size(name))


def realistic(network: nn.Module, size: int, images: torch.Tensor | None = None) -> nn.Module:
    """The network in eval mode, its parameters and statistics changed; it takes RGB images of `size` pixels.

    Batch norms get the statistics of `images`, or of 8 smooth ones.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            last = name.rpartition(".")[2]
            if (last in SCALES or "layer_scale" in name) and float(parameter.abs().max()) < 1e-2:
                parameter.copy_(0.2 + 0.1 * torch.rand_like(parameter))
            elif last == "bias":
                parameter.add_(0.05 * torch.randn_like(parameter))
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        network.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None
        for batch in (_smooth(size) if images is None else [images]) if norms else []:
            network(batch)
    return network.eval()


def _smooth(size: int) -> Iterator[torch.Tensor]:
    for seed in range(2):
        torch.manual_seed(seed)
        yield nn.functional.interpolate(torch.randn(4, 3, 14, 14), (size, size), mode="bilinear") * 1.5


def varied(size: int, count: int = 48) -> torch.Tensor:
    """Images of blobs and stripes of many sizes, with colours and contrasts of their own: no channel sees next to
    nothing vary.
    """
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    images = []
    for index in range(count):
        blobs = torch.randn(1, 3, *[max(2, size >> (index % 6))] * 2)
        image = nn.functional.interpolate(blobs, (size, size), mode="bilinear")
        if index % 3 == 2:
            period, place = 2 + index % 7, (rows, columns, rows + columns)[index // 3 % 3]
            stripes = 2.0 * (place % period < period // 2) - 1
            image = 0.3 * image + stripes * (0.5 + 1.5 * torch.rand(1, 3, 1, 1))
        images.append(image * (0.3 + 1.2 * torch.rand(1, 3, 1, 1)) + torch.randn(1, 3, 1, 1))
    return torch.cat(images)
