"""Sampling at computed places, where ONNX before opset 20 or a runtime has no operator: bicubic, and volumes.

Each sample is a weighted sum of the pixels around it, which are gathered; planes sampled bilinearly or by the nearest
pixel stay GridSample, which has been there since opset 16.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten
LINEAR, NEAREST, CUBIC = 0, 1, 2
ZEROS, BORDER, REFLECTION = 0, 1, 2
SHARPNESS = -0.75  # of PyTorch's cubic convolution


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forms of this module by ATen operator."""
    return {
        aten.grid_sampler.default: _grid_sampler,
        aten.grid_sampler_2d.default: _grid_sampler,
        aten.grid_sampler_3d.default: _grid_sampler,
    }


class _Tap(NamedTuple):
    """One of the pixels along an axis that make a sample: its place, its weight, and whether it is in the map."""

    place: Tensor
    weight: Tensor | None
    inside: Tensor | None


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
    sizes = [int(size) for size in x.shape[2:]]
    axes = [  # the grid counts from the last axis
        _taps(grid[..., len(sizes) - 1 - axis], size, mode, padding, align_corners) for axis, size in enumerate(sizes)
    ]
    flat, out_shape = x.flatten(2), grid.shape[1:-1]
    total: Tensor | None = None
    for taps in itertools.product(*axes):
        index, weight = taps[0].place, None
        for tap, size in zip(taps[1:], sizes[1:], strict=True):
            index = index * size + tap.place
        for tap in taps:
            for factor in (tap.weight, None if tap.inside is None else tap.inside.to(x.dtype)):
                if factor is not None:
                    weight = factor if weight is None else weight * factor
        rows = index.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
        part = flat.gather(2, rows)
        part = part if weight is None else part * weight.flatten(1).unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None
    return torch.unflatten(total, 2, [int(size) for size in out_shape])


def _taps(at: Tensor, size: int, mode: int, padding: int, align_corners: bool) -> list[_Tap]:
    """The pixels that count along one axis for samples `at` -1 to 1."""
    place = (at + 1) * ((size - 1) / 2) if align_corners else ((at + 1) * size - 1) / 2
    if mode == CUBIC:
        first = place.floor()
        t = place - first
        return [
            _tap(_padded(first + step - 1, size, padding, align_corners), size, padding, weight)
            for step, weight in enumerate(_cubic_weights(t))
        ]
    place = _padded(place, size, padding, align_corners)
    if mode == NEAREST:
        return [_tap(place.round(), size, padding, None)]
    first = place.floor()
    t = place - first
    return [_tap(first, size, ZEROS, 1 - t), _tap(first + 1, size, ZEROS, t)]


def _tap(place: Tensor, size: int, padding: int, weight: Tensor | None) -> _Tap:
    inside = (place >= 0) & (place <= size - 1) if padding == ZEROS else None
    return _Tap(place.clamp(0, size - 1).long(), weight, inside)


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


def _cubic_weights(t: Tensor) -> list[Tensor]:
    """Weights of the pixels at -1, 0, 1, 2 for a sample at `t` behind pixel 0."""
    a = SHARPNESS

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]
