"""Sampling at computed places, where ONNX before opset 20 or a runtime has no operator: bicubic, and volumes.

Each sample is a weighted sum of the pixels around it, which are gathered; planes sampled bilinearly or by the nearest
pixel stay GridSample, which has been there since opset 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitdeploy.exporter.lowering.sizes import fixed

aten = torch.ops.aten
LINEAR, NEAREST, CUBIC = 0, 1, 2
BORDER, REFLECTION = 1, 2
SHARPNESS = -0.75  # of PyTorch's cubic convolution


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forms of this module by ATen operator."""
    return {
        aten.grid_sampler.default: _grid_sampler,
        aten.grid_sampler_2d.default: _grid_sampler,
        aten.grid_sampler_3d.default: _grid_sampler,
    }


def _grid_sampler(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    if x.dim() == 4 and mode != CUBIC:
        name = ("linear", "nearest")[mode]
        out: Tensor = torch.onnx.ops.symbolic(
            "GridSample",
            (x, grid),
            {
                "mode": name,
                "padding_mode": ("zeros", "border", "reflection")[padding],
                "align_corners": int(align_corners),
            },
            dtype=x.dtype,
            shape=(x.shape[0], x.shape[1], *grid.shape[1:3]),
            version=20,
        )
        return out
    sizes = [fixed(size) for size in x.shape[2:]]
    index, weight = _taps(grid[..., -1], sizes[0], mode, padding, align_corners)  # the grid counts from the last axis
    for axis, size in enumerate(sizes[1:], start=1):
        place, share = _taps(grid[..., len(sizes) - 1 - axis], size, mode, padding, align_corners)
        index = (index.unsqueeze(-1) * size + place.unsqueeze(-2)).flatten(-2)
        weight = (weight.unsqueeze(-1) * share.unsqueeze(-2)).flatten(-2)
    count = index.shape[-1]
    rows = index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    taken = torch.unflatten(x.flatten(2).gather(2, rows), 2, (-1, fixed(count)))
    sums = (taken * weight.flatten(1, -2).unsqueeze(1)).sum(-1)
    return torch.unflatten(sums, 2, [fixed(size) for size in grid.shape[1:-1]])


def _taps(at: Tensor, size: int, mode: int, padding: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The pixels that count along one axis for samples `at` -1 to 1, and their weights, 0 outside: [..., pixels]."""
    place = (at + 1) * ((size - 1) / 2) if align_corners else ((at + 1) * size - 1) / 2
    if mode != CUBIC:
        place = _padded(place, size, padding, align_corners)
    first = place.round() if mode == NEAREST else place.floor()
    t = place - first
    if mode == CUBIC:
        pixels = first.unsqueeze(-1) + torch.arange(-1, 3, device=at.device)
        pixels = _padded(pixels, size, padding, align_corners)
        weights = _cubic_weights(t)
    elif mode == LINEAR:
        pixels = first.unsqueeze(-1) + torch.arange(2, device=at.device)
        weights = torch.stack((1 - t, t), -1)
    else:
        pixels = first.unsqueeze(-1)
        weights = torch.ones_like(pixels)
    inside = (pixels >= 0) & (pixels <= size - 1)
    return pixels.clamp(0, size - 1).long(), weights * inside.to(weights.dtype)


def _padded(place: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    """Places outside moved into the map, by clipping or by reflection at its ends."""
    if padding == BORDER:
        return place.clamp(0, size - 1)
    if padding == REFLECTION:
        low, span = (0.0, float(size - 1)) if align_corners else (-0.5, float(size))
        if span == 0:
            return torch.zeros_like(place)
        distance = (place - low).abs()
        turns = (distance / span).floor()
        extra = distance - turns * span
        odd = turns - 2 * (turns / 2).floor()
        return (torch.where(odd == 0, extra, span - extra) + low).clamp(0, size - 1)
    return place


def _cubic_weights(t: Tensor) -> Tensor:
    """Weights of the pixels at -1, 0, 1, 2 for a sample at `t` behind pixel 0: [..., 4]."""
    a = SHARPNESS

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return torch.stack((far(t + 1), near(t), near(1 - t), far(2 - t)), -1)
