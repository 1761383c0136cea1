"""Operators that have an exact form in few others, and none that every target reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitdeploy.exporter.lowering.sizes import fixed

aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forms of this module by ATen operator."""
    return {
        aten.any.dim: _any,
        aten.any.dims: _any,
        aten.any.default: _any,
        aten.all.dim: _all,
        aten.all.dims: _all,
        aten.all.default: _all,
        aten.isinf.default: lambda x: x.abs() == float("inf"),  # TensorRT before 10.15 has no IsInf
        aten.sort.stable: lambda x, *, stable=None, dim=-1, descending=False: aten.sort.default(x, dim, descending),
        aten.kthvalue.default: _kth_value,
        aten.median.dim: _median,
        aten.hypot.default: lambda x, y: (x * x + y * y).sqrt(),
        aten._cdist_forward.default: _distances,
        aten.cdist.default: _distances,
    }


def _any(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Of flags as numbers: older TensorRT reduces no integers."""
    if x.dim() == 0:
        return x != 0
    numbers = (x != 0).to(torch.float32)
    return numbers.amax(_axes(x, dim), keepdim) > 0.5


def _all(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    if x.dim() == 0:
        return x != 0
    numbers = (x != 0).to(torch.float32)
    return numbers.amin(_axes(x, dim), keepdim) > 0.5


def _axes(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    return list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)


def _kth_value(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, places = x.topk(k, dim, largest=False)
    last = [tensor.narrow(dim, k - 1, 1) for tensor in (values, places)]
    value, place = last if keepdim else [tensor.squeeze(dim) for tensor in last]
    return value, place


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower of the two in the middle."""
    return _kth_value(x, (fixed(x.shape[dim]) + 1) // 2, dim, keepdim)


def _distances(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    apart = (a.unsqueeze(-2) - b.unsqueeze(-3)).abs()
    if p == 2:
        return (apart * apart).sum(-1).sqrt()
    if p == 1:
        return apart.sum(-1)
    if p == float("inf"):
        return apart.amax(-1)
    return (apart**p).sum(-1) ** (1 / p)
