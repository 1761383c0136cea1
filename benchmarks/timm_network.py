"""A network of timm with random weights that behave like trained ones: `vitdeploy export timm_network.py:build`.

TIMM_MODEL names it. Batch norms get the statistics of some images, and layer scales a size that lets blocks count: as
timm initialises them, some networks are next to linear.
"""

from __future__ import annotations

import os
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


def realistic(network: nn.Module, size: int) -> nn.Module:
    """The network in eval mode, its parameters and statistics changed; it takes RGB images of `size` pixels."""
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
        for seed in range(2 if norms else 0):
            torch.manual_seed(seed)
            network(nn.functional.interpolate(torch.randn(4, 3, 14, 14), (size, size), mode="bilinear") * 1.5)
    return network.eval()
