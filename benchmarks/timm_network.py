"""A network of timm with random weights that behave like trained ones: `vitdeploy export timm_network.py:build`.

TIMM_MODEL names it. Batch norms get the statistics of some images, and layer scales a size that lets blocks count: as
timm initialises them, some networks are next to linear.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn


class _Name(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name.lower()


class _Empty(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """timm imports torchvision for image transforms, which no network needs."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> object:
        ours = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


if importlib.util.find_spec("torchvision") is None:
    sys.meta_path.append(_NoTorchvision())

SCALES = ("gamma", "gamma_1", "gamma_2", "gamma1", "gamma2", "gamma3", "layer_scale", "ls1", "ls2")


def input_size(name: str) -> int:
    """Pixels on a side."""
    import timm

    size: int = timm.get_pretrained_cfg(name).input_size[-1]
    return size


def build() -> nn.Module:
    import timm

    torch.manual_seed(0)
    network = timm.create_model(os.environ["TIMM_MODEL"], pretrained=False)
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
        size = input_size(os.environ["TIMM_MODEL"])
        for seed in range(2 if norms else 0):
            torch.manual_seed(seed)
            network(nn.functional.interpolate(torch.randn(4, 3, 14, 14), (size, size), mode="bilinear") * 1.5)
    return network.eval()
