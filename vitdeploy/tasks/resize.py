"""Scores of pixels at another size, as segmentation tools compute them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def bilinear(scores: Array, size: tuple[int, int]) -> NDArray[np.float32]:
    """Scores [C, h, w] at `size` (height, width), float32: bilinear, half-pixel centres, the border repeated.

    This is `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`. What is not finite stays so.
    """
    values: Array = scores.astype(np.float32, copy=False)
    for axis, target in ((1, size[0]), (2, size[1])):
        source = values.shape[axis]
        if source == target:
            continue
        low, high, part = _taps(source, target)
        part = part.reshape((-1, 1) if axis == 1 else (-1,))
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.take(values, low, axis) * (1 - part) + np.take(values, high, axis) * part
    return values


def nearest(numbers: Array, size: tuple[int, int]) -> Array:
    """Whole numbers [h, w] at `size` (height, width): each pixel is the one whose area holds its centre."""
    rows, columns = (
        np.minimum(((np.arange(target) + 0.5) * (source / target)).astype(np.int64), source - 1)
        for source, target in zip(numbers.shape, size, strict=True)
    )
    resized: Array = numbers[rows][:, columns]
    return resized


def _taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)
