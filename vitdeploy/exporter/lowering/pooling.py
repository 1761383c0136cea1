"""Pooling whose windows reach over the end of the map, and other forms that ONNX pooling does not say."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitdeploy.exporter.lowering.constants import OPSET, computed, embedded
from vitdeploy.exporter.lowering.resampling import bins
from vitdeploy.exporter.lowering.sizes import fixed

aten = torch.ops.aten
Ints = Sequence[int]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The forms of this module by ATen operator."""
    return {
        aten.avg_pool1d.default: _average,
        aten.avg_pool2d.default: _average,
        aten.avg_pool3d.default: _average,
        aten.max_pool1d.default: _maximum,
        aten.max_pool2d.default: _maximum,
        aten.max_pool3d.default: _maximum,
        aten.adaptive_max_pool1d.default: _adaptive_maximum,
        aten.adaptive_max_pool2d.default: _adaptive_maximum,
        aten.adaptive_max_pool3d.default: _adaptive_maximum,
        aten.col2im.default: _fold,
    }


class _Windows:
    """Where the windows of a pooling lie: PyTorch's sizes of the output, and how far they reach over the end."""

    def __init__(self, spatial: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil: bool) -> None:
        rank = len(spatial)
        self.kernel = _each(kernel, rank)
        self.stride = _each(stride, rank) if len(stride) else self.kernel
        self.padding, self.dilation = _each(padding, rank), _each(dilation, rank)
        self.sizes, self.ends = [], []
        for old, k, s, p, d in zip(spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True):
            reach = d * (k - 1) + 1
            count = (old + 2 * p - reach) // s + 1
            if ceil and -(-(old + 2 * p - reach) // s) * s < old + p:  # no window starts behind the map
                count = -(-(old + 2 * p - reach) // s) + 1
            self.sizes.append(count)
            self.ends.append(max((count - 1) * s + reach - old - p, 0))

    @property
    def beyond(self) -> bool:
        """Whether a window reaches farther than the padding."""
        return any(end > pad for end, pad in zip(self.ends, self.padding, strict=True))


def _average(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    rank = len(kernel_size)
    spatial = [fixed(size) for size in x.shape[-rank:]]
    windows = _Windows(spatial, kernel_size, stride, padding, (1,), ceil_mode)
    if divisor_override is None and not (windows.beyond and count_include_pad):
        ends = [max(end, pad) for end, pad in zip(windows.ends, windows.padding, strict=True)]
        return _window_means(x, windows, [*windows.padding, *ends], counted=count_include_pad)
    sides = [side for p, end in zip(windows.padding[::-1], windows.ends[::-1], strict=True) for side in (p, end)]
    padded = F.pad(x, sides) if any(sides) else x
    means = _window_means(padded, windows)
    options = (windows.kernel, windows.stride, windows.padding, ceil_mode, count_include_pad)
    extra = () if rank == 1 else (divisor_override,)
    pool = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)[rank - 1]

    def shares() -> Tensor:
        """What the operator makes of ones, and what whole windows do: their ratio corrects each window."""
        ones = torch.ones(1, 1, *spatial, dtype=torch.float64)
        whole = _real_means(F.pad(ones, sides), windows)
        own: Tensor = pool(ones, *options, *extra)
        return own[0, 0] / whole[0, 0]

    return means * embedded(computed(shares), x.dtype)


def _window_means(x: Tensor, windows: _Windows, padding: Ints = (), *, counted: bool = True) -> Tensor:
    """AveragePool without ceil_mode, whose padding, at the starts and then at the ends, is `counted` or left out."""
    rank = len(windows.kernel)
    flat = x.unsqueeze(0) if x.dim() == rank + 1 else x
    pads = list(padding or [0] * 2 * rank)
    out: Tensor = torch.onnx.ops.symbolic(
        "AveragePool",
        (flat,),
        {
            "kernel_shape": windows.kernel,
            "strides": windows.stride,
            "pads": pads,
            "count_include_pad": int(counted and any(pads)),
        },
        dtype=x.dtype,
        shape=(*flat.shape[:2], *windows.sizes),
        version=OPSET,
    )
    return out.squeeze(0) if x.dim() == rank + 1 else out


def _real_means(x: Tensor, windows: _Windows) -> Tensor:
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(windows.kernel) - 1]
    return pool(x, windows.kernel, windows.stride)


def _maximum(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints = (),
    padding: Ints = (0,),
    dilation: Ints = (1,),
    ceil_mode: bool = False,
) -> Tensor:
    rank = len(kernel_size)
    windows = _Windows([fixed(n) for n in x.shape[-rank:]], kernel_size, stride, padding, dilation, ceil_mode)
    flat = x.unsqueeze(0) if x.dim() == rank + 1 else x
    ends = [max(end, pad) for end, pad in zip(windows.ends, windows.padding, strict=True)]
    taps = [_taps(windows, axis, fixed(flat.shape[axis - rank])) for axis in range(rank)]
    if any(step > 1 for step in windows.dilation) and all(table is not None for table in taps):
        out = _moved_maximum(flat, [table for table in taps if table is not None])
        return out.squeeze(0) if x.dim() == rank + 1 else out
    out = torch.onnx.ops.symbolic(
        "MaxPool",
        (flat,),
        {
            "kernel_shape": windows.kernel,
            "strides": windows.stride,
            "pads": [*windows.padding, *ends],
            "dilations": windows.dilation,
        },
        dtype=x.dtype,
        shape=(*flat.shape[:2], *windows.sizes),
        version=OPSET,
    )
    return out.squeeze(0) if x.dim() == rank + 1 else out


def _taps(windows: _Windows, axis: int, pixels: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The pixel that each tap of each window reads along an axis [taps, windows]; None where a window reads none.

    A tap outside the map reads what another tap of its window does, which changes no maximum.
    """
    starts = np.arange(windows.sizes[axis]) * windows.stride[axis] - windows.padding[axis]
    places = starts + np.arange(windows.kernel[axis])[:, None] * windows.dilation[axis]
    inside = (places >= 0) & (places < pixels)
    if not inside.any(0).all():
        return None
    first = np.take_along_axis(places, inside.argmax(0)[None], 0)
    return np.where(inside, places, first)


def _moved_maximum(x: Tensor, taps: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> Tensor:
    """The largest of moved maps, one axis after the other: TensorRT pools without dilation only."""
    values = x
    for axis, table in enumerate(taps):
        place, moved = axis - len(taps), []
        for row in table:
            stride = int(row[1] - row[0]) if len(row) > 1 else 1
            if stride > 0 and (np.diff(row) == stride).all():
                moved.append(aten.slice.Tensor(values, place, int(row[0]), int(row[-1]) + 1, stride))
            else:
                moved.append(values.index_select(values.dim() + place, embedded(row)))
        values = functools.reduce(torch.maximum, moved)
    return values


def _adaptive_maximum(x: Tensor, output_size: Ints) -> tuple[Tensor, Tensor]:
    """The largest value of every bin and its place; a bin that is smaller than the largest repeats its last pixel."""
    rank = len(output_size)
    spatial, sizes = [fixed(n) for n in x.shape[-rank:]], [fixed(n) for n in output_size]
    values = x
    for axis, (old, new) in enumerate(zip(spatial, sizes, strict=True)):
        place = axis - rank
        windows = _bin_windows(old, new)
        picked = values.index_select(values.dim() + place, embedded(windows.ravel()))
        values = torch.unflatten(picked, place, windows.shape).amax(place)
    return values, _places(x, spatial, sizes)


def _bin_windows(old: int, new: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The pixels of each bin [new, largest], the last one repeated."""
    found = bins(old, new)
    longest = max(end - start for start, end in found)
    return np.array([[min(start + step, end - 1) for step in range(longest)] for start, end in found], dtype=np.int64)


def _places(x: Tensor, spatial: Ints, sizes: Ints) -> Tensor:
    """The flat index of the first largest pixel of each bin [..., *sizes]."""
    rank = len(sizes)
    grids = [_bin_windows(old, new) for old, new in zip(spatial, sizes, strict=True)]
    flat = np.zeros((1,) * (2 * rank), dtype=np.int64)
    for axis, grid in enumerate(grids):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = grid.shape
        flat = flat * spatial[axis] + grid.reshape(shape)
    table = flat.reshape(math.prod(sizes), -1)
    pixels = x.flatten(-rank).index_select(x.dim() - rank, embedded(table.ravel()))
    first = torch.unflatten(pixels, -1, table.shape).argmax(-1)
    place = embedded(table.ravel()).take(first + embedded(np.arange(len(table)) * table.shape[1]))
    return torch.unflatten(place, -1, tuple(sizes))


def _fold(x: Tensor, output_size: Ints, kernel_size: Ints, dilation: Ints, padding: Ints, stride: Ints) -> Tensor:
    """Overlapping patches added up, one axis after the other: moved, added and interleaved, without a multiplication.

    As a transposed convolution it has a channel for every pixel of a patch, and nearly all of its weights are zero.
    """
    if x.dim() == 2:
        return _fold(x.unsqueeze(0), output_size, kernel_size, dilation, padding, stride).squeeze(0)
    taps = [fixed(one) for one in kernel_size]
    windows = _Windows([fixed(n) for n in output_size], kernel_size, stride, padding, dilation, False)
    across = windows.sizes[1]
    y = torch.unflatten(x, 1, (fixed(x.shape[1]) // math.prod(taps), *taps))  # [N, C, k, k, down * across]
    y = _overlapped(y, across, taps[0], stride[0], dilation[0])
    y = torch.unflatten(y, 4, (-1, across))
    y = y.permute(0, 1, 3, 4, 2, 5) if stride[0] > 1 else y.transpose(2, 3)  # [N, C, k, blocks, stride, across]
    y = y.flatten(3, 4)
    y = _overlapped(y, 1, taps[1], stride[1], dilation[1])
    if stride[1] > 1:
        y = y.permute(0, 1, 3, 4, 2)
    y = y.reshape(*y.shape[:2], fixed(y.shape[3 if stride[1] == 1 else 2]), -1)
    for axis, size, start in zip((2, 3), output_size, padding, strict=True):
        missing = max(0, start + fixed(size) - fixed(y.shape[axis]))  # no patch reaches there
        y = _padded(y, {axis: (0, missing)}).narrow(axis, start, fixed(size))
    return y


def _overlapped(y: Tensor, step: int, taps: int, stride: int, dilation: int) -> Tensor:
    """From what each of `taps` pixels of a patch adds to what is there: [N, C, taps, other, patches * step] to
    [N, C, stride, other, blocks * step], where a block is `stride` neighbouring pixels.
    """
    reach = (taps - 1) * dilation // stride  # blocks behind the patch's first one
    total: Tensor | None = None
    for block, first, count in _runs(taps, stride, dilation):
        phase = first * dilation % stride
        pads = {2: (phase, stride - phase - count), 4: (block * step, (reach - block) * step)}
        part = _padded(y.narrow(2, first, count), pads)
        total = part if total is None else total + part
    assert total is not None, "a patch has pixels"
    return total


def _runs(taps: int, stride: int, dilation: int) -> list[tuple[int, int, int]]:
    """The pixels of a patch by the block that they are in, as far as they are neighbours: (block, first, count)."""
    runs: list[tuple[int, int, int]] = []
    for tap in range(taps):
        block = tap * dilation // stride
        if runs and dilation == 1 and runs[-1][0] == block:
            runs[-1] = (block, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((block, tap, 1))
    return runs


def _padded(y: Tensor, pads: Mapping[int, tuple[int, int]]) -> Tensor:
    """Zeros before and behind along the axes that are named; `y` itself where there are none."""
    if not any(map(any, pads.values())):
        return y
    return F.pad(y, [size for axis in reversed(range(y.dim())) for size in pads.get(axis, (0, 0))])


def _each(values: Ints, rank: int) -> list[int]:
    return [fixed(value) for value in (values if len(values) == rank else list(values) * rank)]
