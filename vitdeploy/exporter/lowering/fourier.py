"""Fourier transforms of fixed sizes as products with constant matrices, one axis after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitdeploy.exporter.lowering.resampling import along
from vitdeploy.exporter.lowering.sizes import fixed
from vitdeploy.graph.edit import Array

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forms of this module by ATen operator."""
    return {
        aten._fft_r2c.default: _real_to_complex,
        aten._fft_c2c.default: _complex_to_complex,
        aten._fft_c2r.default: _complex_to_real,
    }


def _real_to_complex(x: Tensor, dim: Sequence[int], normalization: int, onesided: bool) -> Tensor:
    axis, *others = [place % x.dim() for place in reversed(dim)]
    size = fixed(x.shape[axis])
    cosine, sine = _waves(size, size // 2 + 1 if onesided else size)
    real, imaginary = along(x, axis, cosine), along(x, axis, -sine)
    for other in others:
        real, imaginary = _turned(real, imaginary, other, forward=True)
    return _joined(real, imaginary, _factor([fixed(x.shape[place]) for place in dim], normalization))


def _complex_to_complex(x: Tensor, dim: Sequence[int], normalization: int, forward: bool) -> Tensor:
    real, imaginary = parts(x)
    for place in dim:
        real, imaginary = _turned(real, imaginary, place % x.dim(), forward=forward)
    return _joined(real, imaginary, _factor([fixed(x.shape[place]) for place in dim], normalization))


def _complex_to_real(x: Tensor, dim: Sequence[int], normalization: int, last_dim_size: int) -> Tensor:
    """The inverse of a half spectrum; the other half mirrors it, so its waves count twice."""
    *others, axis = [place % x.dim() for place in dim]
    real, imaginary = parts(x)
    for other in others:
        real, imaginary = _turned(real, imaginary, other, forward=False)
    size, count = fixed(last_dim_size), fixed(x.shape[axis])
    cosine, sine = _waves(size, count)
    twice = np.array([1.0 if wave == 0 or 2 * wave == size else 2.0 for wave in range(count)])
    out = along(real, axis, (cosine * twice[:, None]).T) - along(imaginary, axis, (sine * twice[:, None]).T)
    return _scaled(out, _factor([*(fixed(x.shape[other]) for other in others), size], normalization))


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of a complex tensor."""
    pair = torch.view_as_real(x)
    return pair.select(-1, 0), pair.select(-1, 1)


def joined(real: Tensor, imaginary: Tensor) -> Tensor:
    """The complex tensor of two parts of one shape."""
    return torch.view_as_complex(torch.stack((real, imaginary), -1))


def _joined(real: Tensor, imaginary: Tensor, factor: float) -> Tensor:
    return joined(_scaled(real, factor), _scaled(imaginary, factor))


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _turned(real: Tensor, imaginary: Tensor, axis: int, *, forward: bool) -> tuple[Tensor, Tensor]:
    """One transform along one axis."""
    size = fixed(real.shape[axis])
    cosine, sine = _waves(size, size)
    sine = -sine if forward else sine
    return (
        along(real, axis, cosine) - along(imaginary, axis, sine),
        along(real, axis, sine) + along(imaginary, axis, cosine),
    )


def _waves(size: int, count: int) -> tuple[Array, Array]:
    """Cosine and sine of `count` waves at `size` places [count, size], exact where they are 0 or 1."""
    turns = np.outer(np.arange(count), np.arange(size)) % size
    angles = 2 * math.pi / size * turns
    cosine, sine = np.cos(angles), np.sin(angles)
    for quarter in range(4):
        if size * quarter % 4 == 0:
            exact = turns == size * quarter // 4
            cosine[exact], sine[exact] = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter]
    return cosine, sine


def _factor(sizes: Sequence[int], normalization: int) -> float:
    """PyTorch's normalization: 0 none, 1 by the root of the number of places, 2 by their number."""
    count = math.prod(sizes)
    return (1.0, 1 / math.sqrt(count), 1 / count)[normalization]
