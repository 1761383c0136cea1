"""Resizing and adaptive average pooling in operators that every runtime computes alike.

Bilinear resizing, and nearest by whole numbers, are Resize by constant scales, which is in every opset and runtime.
What runtimes round differently or do not have is written out: nearest by other ratios picks by constant indices;
bicubic, antialiased and adaptive forms are one product per axis with a constant matrix, the operator's own response to
unit vectors in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitdeploy.exporter.lowering.constants import OPSET, computed, embedded
from vitdeploy.exporter.lowering.sizes import fixed
from vitdeploy.graph.edit import Array

aten = torch.ops.aten
Sizes = Sequence[int]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forms of this module by ATen operator."""
    table: dict[Any, Callable[..., Any]] = {
        aten.adaptive_avg_pool1d.default: _adaptive(aten.adaptive_avg_pool1d.default),
        aten.adaptive_avg_pool2d.default: _adaptive(aten.adaptive_avg_pool2d.default),
        aten.adaptive_avg_pool3d.default: _adaptive(aten.adaptive_avg_pool3d.default),
        aten._adaptive_avg_pool2d.default: _adaptive(aten._adaptive_avg_pool2d.default),
        aten._adaptive_avg_pool3d.default: _adaptive(aten._adaptive_avg_pool3d.default),
    }
    for name, form, aligned in (
        ("upsample_nearest1d", _nearest, False),
        ("upsample_nearest2d", _nearest, False),
        ("upsample_nearest3d", _nearest, False),
        ("_upsample_nearest_exact1d", _nearest, False),
        ("_upsample_nearest_exact2d", _nearest, False),
        ("_upsample_nearest_exact3d", _nearest, False),
        ("upsample_linear1d", _linear, True),
        ("upsample_bilinear2d", _linear, True),
        ("upsample_trilinear3d", _linear, True),
        ("upsample_bicubic2d", _by_matrices, True),
        ("_upsample_bilinear2d_aa", _by_matrices, True),
        ("_upsample_bicubic2d_aa", _by_matrices, True),
    ):
        packet = getattr(aten, name)
        table[packet.vec] = _from_factors(packet.default, form, aligned)
        table[packet.default] = _from_scales(packet.default, form, aligned)
    return table


Form = Callable[[Any, Tensor, Sizes, bool, Sequence[float | None]], Tensor]


def _from_factors(operator: Any, form: Form, aligned: bool) -> Callable[..., Tensor]:
    """The overload that takes a size or factors: (x, output_size, [align_corners,] scale_factors)."""

    def decomposition(x: Tensor, output_size: Sizes | None, *rest: Any) -> Tensor:
        corners, factors = (rest[0], rest[1]) if aligned else (False, rest[0])
        spatial = x.shape[2:]
        scales: Sequence[float | None] = [None] * len(spatial) if output_size is not None else list(factors)
        sizes = output_size
        if sizes is None:
            sizes = [math.floor(fixed(size) * float(factor)) for size, factor in zip(spatial, factors, strict=True)]
        return form(operator, x, [fixed(size) for size in sizes], bool(corners), scales)

    return decomposition


def _from_scales(operator: Any, form: Form, aligned: bool) -> Callable[..., Tensor]:
    """The overload that takes a size and scales: (x, output_size, [align_corners,] *scales)."""

    def decomposition(x: Tensor, output_size: Sizes, *rest: Any, **named: Any) -> Tensor:
        given = [*rest, *named.values()]
        corners = bool(given.pop(0)) if aligned and given else False
        rank = len(x.shape) - 2
        scales = [*given, *[None] * (rank - len(given))]
        return form(operator, x, [fixed(size) for size in output_size], corners, scales)

    return decomposition


def _nearest(operator: Any, x: Tensor, sizes: Sizes, corners: bool, scales: Sequence[float | None]) -> Tensor:
    spatial = [fixed(size) for size in x.shape[2:]]
    whole = all(new % old == 0 for old, new in zip(spatial, sizes, strict=True))
    exact = all(scale is None or scale * old == new for old, new, scale in zip(spatial, sizes, scales, strict=True))
    if whole and exact:
        attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return _resize(x, sizes, [new / old for old, new in zip(spatial, sizes, strict=True)], attributes)
    for axis, (old, new, scale) in enumerate(zip(spatial, sizes, scales, strict=True)):
        picked = _response(operator, np.arange(old, dtype=np.float64)[None], axis, len(spatial), new, scale, False)
        index = np.rint(picked[0]).astype(np.int64)
        if not np.array_equal(index, np.arange(old)):
            x = x.index_select(axis + 2, embedded(index))
    return x


def _linear(operator: Any, x: Tensor, sizes: Sizes, corners: bool, scales: Sequence[float | None]) -> Tensor:
    spatial = [fixed(size) for size in x.shape[2:]]
    if corners and 1 in sizes:  # there runtimes divide by zero in different ways
        return _by_matrices(operator, x, sizes, corners, scales)
    mode = "align_corners" if corners else "half_pixel"
    ratios = [
        new / old if scale is None or corners else scale for old, new, scale in zip(spatial, sizes, scales, strict=True)
    ]
    return _resize(x, sizes, ratios, {"mode": "linear", "coordinate_transformation_mode": mode})


def _resize(x: Tensor, sizes: Sizes, ratios: Sequence[float], attributes: Mapping[str, str]) -> Tensor:
    """One Resize by constant scales, at least of rank 4."""
    if x.dim() == 3:
        return _resize(x.unsqueeze(2), [1, *sizes], [1.0, *ratios], attributes).squeeze(2)
    reaching = [_reaching(ratio, fixed(old), new) for ratio, old, new in zip(ratios, x.shape[2:], sizes, strict=True)]
    out: Tensor = torch.onnx.ops.symbolic(
        "Resize",
        (x, None, embedded(np.array([1.0, 1.0, *reaching], dtype=np.float32))),
        {**attributes},
        dtype=x.dtype,
        shape=(*x.shape[:2], *sizes),
        version=OPSET,
    )
    return out


def _reaching(ratio: float, old: int, new: int) -> float:
    """`ratio` in single precision, a rounding step larger where the product with `old` would lose the last pixel."""
    scale = np.float32(ratio)
    while math.floor(float(scale) * old) < new or math.floor(scale * np.float32(old)) < new:
        scale = np.nextafter(scale, np.float32(np.inf))
    while math.floor(float(scale) * old) > new or math.floor(scale * np.float32(old)) > new:
        scale = np.nextafter(scale, np.float32(0))
    return float(scale)


def _by_matrices(operator: Any, x: Tensor, sizes: Sizes, corners: bool, scales: Sequence[float | None]) -> Tensor:
    rank = len(sizes)
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        old = fixed(x.shape[axis + 2])
        matrix = _response(operator, np.eye(old), axis, rank, size, scale, corners).T
        x = along(x, axis + 2, matrix)
    return x


def _response(operator: Any, rows: Array, axis: int, rank: int, size: int, scale: float | None, corners: bool) -> Array:
    """What the separable `operator` makes of each of `rows` [n, old] laid along one axis: [n, size] in float64."""
    # The other axes have two pixels, not one: PyTorch takes [1, n, old, 1] for channels last and resizes it wrongly.
    shape, sizes = [2] * rank, [2] * rank
    shape[axis], sizes[axis] = rows.shape[1], size
    scales = [scale if place == axis else None for place in range(rank)]
    aligned = "align_corners" in {argument.name for argument in operator._schema.arguments}
    flags = (corners,) if aligned else ()

    def measured() -> Tensor:
        along_axis = [len(rows), *[rows.shape[1] if place == axis else 1 for place in range(rank)]]
        probe = torch.from_numpy(rows.copy()).reshape(1, *along_axis).expand(1, len(rows), *shape).contiguous()
        out: Tensor = operator(probe, sizes, *flags, *scales)
        for other in reversed([place for place in range(rank) if place != axis]):
            out = out.select(other + 2, 0)
        return out[0].contiguous()

    return computed(measured)


def along(x: Tensor, axis: int, matrix: Array) -> Tensor:
    """The product of a constant `matrix` [new, old] with the vectors of `x` along `axis`."""
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
        return x
    if axis % x.dim() == x.dim() - 1:
        return x @ embedded(np.ascontiguousarray(matrix.T), x.dtype)
    if axis % x.dim() == x.dim() - 2:
        return embedded(matrix, x.dtype) @ x
    return along(x.movedim(axis, -1), -1, matrix).movedim(-1, axis)


def _adaptive(operator: Any) -> Callable[[Tensor, Sizes], Tensor]:
    """Means over bins: by matrices where the bins do not divide the map; else as pooling of equal windows."""

    def decomposition(x: Tensor, output_size: Sizes) -> Tensor:
        sizes = [fixed(size) for size in output_size]
        rank = len(sizes)
        spatial = [fixed(size) for size in x.shape[-rank:]]
        if all(size == 1 for size in sizes):
            return x.mean(tuple(range(-rank, 0)), keepdim=True)
        if all(old % new == 0 for old, new in zip(spatial, sizes, strict=True)):
            kernel = [old // new for old, new in zip(spatial, sizes, strict=True)]
            pool = (torch.nn.functional.avg_pool1d, torch.nn.functional.avg_pool2d, torch.nn.functional.avg_pool3d)
            return pool[rank - 1](x, kernel, kernel)
        for axis, (old, new) in enumerate(zip(spatial, sizes, strict=True)):
            x = along(x, axis - rank, means(old, new))
        return x

    return decomposition


def means(old: int, new: int) -> Array:
    """The matrix [new, old] of the means over `new` bins, whose ends are rounded outwards."""
    matrix = np.zeros((new, old))
    for row, (start, end) in enumerate(bins(old, new)):
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def bins(old: int, new: int) -> list[tuple[int, int]]:
    """Start and end of each of the `new` bins of adaptive pooling over `old` pixels."""
    return [(place * old // new, -(-(place + 1) * old // new)) for place in range(new)]
