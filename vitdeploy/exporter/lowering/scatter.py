"""Scattering with a reduction, as products with one-hot tables: every runtime has those, few have the operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitdeploy.exporter.lowering.sizes import fixed

aten = torch.ops.aten

# Beyond so many entries of the table, sums stay ScatterElements (opset 16).
_LARGEST = 1 << 24


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forms of this module by ATen operator."""
    return {
        aten.scatter_reduce.two: _scatter_reduce,
        aten.scatter_add.default: _scatter_add,
        aten.index_add.default: _index_add,
        aten.index_reduce.default: _index_reduce,
        aten.index_fill.int_Scalar: _index_fill,
    }


def _scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Any:
    dim = dim % x.dim()
    if _entries(x, dim, index) > _LARGEST or not x.dtype.is_floating_point:
        return NotImplemented
    return _scatter_reduce(x, dim, index, src, "sum")


def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    dim = dim % x.dim()
    src = src[tuple(slice(0, size) for size in index.shape)]
    for axis in range(x.dim()):  # beyond the index nothing changes
        if axis != dim and _longer(x.shape[axis], index.shape[axis]):
            size = index.shape[axis]
            inner = _scatter_reduce(x.narrow(axis, 0, size), dim, index, src, reduce, include_self=include_self)
            return torch.cat((inner, x.narrow(axis, size, x.shape[axis] - size)), axis)
    return _reduced(x, dim, index, src, reduce, include_self)


def _reduced(x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, include_self: bool) -> Tensor:
    """All sizes but that of `dim` agree. Inside, `dim` is the last axis: x [..., M], index and src [..., N]."""
    last = x.movedim(dim, -1)
    shared = _shared_axes(index, dim)
    index, src = index.movedim(dim, -1), src.movedim(dim, -1).to(x.dtype)
    # [..., M, N], of size 1 where all rows have the same index
    hits = index.unsqueeze(-2) == torch.arange(last.shape[-1], device=x.device).unsqueeze(-1)
    if reduce in ("sum", "mean"):
        out = _sums(last, hits, src, shared, dim, mean=reduce == "mean", include_self=include_self)
    else:
        out = _extremes(last, hits, src, reduce, include_self)
    return out.movedim(-1, dim)


def _sums(
    x: Tensor, hits: Tensor, src: Tensor, shared: list[bool], dim: int, *, mean: bool, include_self: bool
) -> Tensor:
    table = hits.to(x.dtype)
    others = [flag for axis, flag in enumerate(shared) if axis != dim]
    if others and others[-1]:
        # one index for all of the last axis: [..., 1, M, N] as a matrix product with [..., C, N]
        one = table.select(-3, 0)
        added = src @ one.transpose(-1, -2)
        count = one.sum(-1).unsqueeze(-2)
    else:
        added = (table @ src.unsqueeze(-1)).squeeze(-1)
        count = table.sum(-1)
    if mean:
        return (x + added) / (1 + count) if include_self else torch.where(count > 0, added / count.clamp(min=1), x)
    return x + added if include_self else torch.where(count > 0, added, x)


def _extremes(x: Tensor, hits: Tensor, src: Tensor, reduce: str, include_self: bool) -> Tensor:
    spread, own = src.unsqueeze(-2), x.unsqueeze(-1)
    if reduce == "prod":
        product = torch.where(hits, spread, torch.ones_like(own)).prod(-1)
        return x * product if include_self else torch.where(hits.any(-1), product, x)
    largest = reduce == "amax"
    # What is not scattered here must not win: x itself where it takes part, else the weakest of all of src.
    weakest = src.amin(-1, keepdim=True) if largest else src.amax(-1, keepdim=True)
    rest = own if include_self else weakest.unsqueeze(-2)
    candidates = torch.where(hits, spread, rest)
    won = candidates.amax(-1) if largest else candidates.amin(-1)
    if not include_self:
        return torch.where(hits.any(-1), won, x)
    return torch.maximum(won, x) if largest else torch.minimum(won, x)


def _index_add(x: Tensor, dim: int, index: Tensor, src: Tensor, *, alpha: float = 1) -> Any:
    if x.dim() == 0 or not x.dtype.is_floating_point:
        return NotImplemented
    return _scatter_reduce(x, dim, _spread(index, src, dim), src if alpha == 1 else src * alpha, "sum")


def _index_reduce(x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    return _scatter_reduce(x, dim, _spread(index, src, dim), src, reduce, include_self=include_self)


def _index_fill(x: Tensor, dim: int, index: Tensor, value: float) -> Tensor:
    dim = dim % x.dim()
    places = torch.arange(x.shape[dim], device=x.device)
    hit = (places.unsqueeze(-1) == index.reshape(1, -1)).any(-1)
    shape = [1] * x.dim()
    shape[dim] = x.shape[dim]
    return torch.where(hit.reshape(shape), value, x)


def _spread(index: Tensor, src: Tensor, dim: int) -> Tensor:
    """One index for all rows of `src`, in its shape."""
    shape = [1] * src.dim()
    shape[dim % src.dim()] = index.numel()
    return index.reshape(shape).expand(src.shape)


def _shared_axes(index: Tensor, dim: int) -> list[bool]:
    """For each axis, whether every row along it has the same index: it was expanded."""
    return [axis != dim and stride == 0 for axis, stride in enumerate(index.stride())]


def _longer(own: Any, other: Any) -> bool:
    return isinstance(own, int) and isinstance(other, int) and own > other


def _entries(x: Tensor, dim: int, index: Tensor) -> int:
    """Entries of the one-hot table for a sample, the axes that the index is expanded along left out."""
    shared = _shared_axes(index, dim)
    sizes = [int(size) for axis, size in enumerate(index.shape) if not shared[axis] and isinstance(size, int)]
    return math.prod(sizes) * fixed(x.shape[dim])
