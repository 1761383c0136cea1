"""What calibration remembers of one tensor: extremes, a histogram, magnitudes a channel, and a few samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.quantize.histogram import Histogram
from vitdeploy.quantize.sample import Sample

Array = NDArray[Any]

# Weight of a new image in the moving average of the extremes, as torch.ao's MovingAverageMinMaxObserver and ONNX
# Runtime's CalibMovingAverageConstant have it.
AVERAGING = 0.01

_GROUP = 16  # rows whose maximum is taken at once: numpy is slow where the inner loop is as short as a row


class Statistics:
    """Statistics of one tensor over all calibration images, updated batch by batch in bounded memory.

    count, images   values and images seen
    nans, infs      values that are not a number, and infinite ones; all else describes the finite values
    low, high       extremes
    average_low, average_high   moving average of each image's extremes
    histogram       of all values
    channels        largest magnitude of each channel, float32 [channels]; None without an axis
    sample          some of what the tensor's readers multiply by their weights; None without an axis

    axis    of the channels
    window  height and width that a convolution reads at once, of a tensor [n, channels, h, w]; None for rows

    Memory: 64 KiB for the histogram and, with an axis, at most `sample.SAMPLE_BYTES` (or two units).
    """

    def __init__(self, name: str, axis: int | None = None, window: tuple[int, int] | None = None) -> None:
        self.name, self.axis = name, axis
        self.count = self.images = self.nans = self.infs = 0
        self.low, self.high = math.inf, -math.inf
        self.average_low = self.average_high = 0.0
        self.histogram = Histogram()
        self.channels: Array | None = None
        self.sample = None if axis is None else Sample(axis, window)

    @property
    def max_abs(self) -> float:
        """Largest magnitude."""
        return max(-self.low, self.high, 0.0)

    def update(self, values: Array, images: int) -> None:
        """Add float32 `values` of any shape, made from `images` images.

        Where the batch is the first axis, each image's extremes enter the moving average on their own.
        """
        self.images += images
        if values.size == 0:
            return
        parts = values.reshape(images if values.shape and values.shape[0] % images == 0 else 1, -1)
        lows, highs = parts.min(axis=1), parts.max(axis=1)
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            values = self._finite(values)
            if values.size == 0:
                return
            lows, highs = values.min(keepdims=True).reshape(-1), values.max(keepdims=True).reshape(-1)
        for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
            new = self.low > self.high
            self.average_low = low if new else self.average_low + AVERAGING * (low - self.average_low)
            self.average_high = high if new else self.average_high + AVERAGING * (high - self.average_high)
            self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.size
        self.histogram.update(values, max(-float(lows.min()), float(highs.max()), 0.0))
        if self.axis is not None and self.sample is not None and values.ndim > 1:
            largest = _channel_magnitudes(values, self.axis)
            self.channels = largest if self.channels is None else np.maximum(self.channels, largest)
            self.sample.update(values)

    def _finite(self, values: Array) -> Array:
        """Count what is not finite; the finite values, flat."""
        self.nans += int(np.isnan(values).sum())
        self.infs += int(np.isinf(values).sum())
        finite: Array = values[np.isfinite(values)]
        return finite


def _channel_magnitudes(values: Array, axis: int) -> Array:
    axis %= values.ndim
    if axis == values.ndim - 1:
        rows = values.reshape(-1, values.shape[-1])
        whole = len(rows) // _GROUP * _GROUP
        wide = rows[:whole].reshape(-1, _GROUP * rows.shape[1])
        tall = [part.reshape(-1, rows.shape[1]) for part in (wide.max(axis=0), wide.min(axis=0))] if whole else []
        rows = np.concatenate([*tall, rows[whole:]])
        return _magnitude(rows, (0,))
    return _magnitude(values, tuple(i for i in range(values.ndim) if i != axis))


def _magnitude(values: Array, axes: tuple[int, ...]) -> Array:
    largest: Array = np.maximum(values.max(axis=axes), -values.min(axis=axes))
    return largest
