"""What calibration remembers of one tensor: its extremes, a histogram, and a sample of what layers multiply."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.quantize.histogram import Histogram

Array = NDArray[Any]

SAMPLE_BYTES = 1 << 20  # kept of one tensor at most, unless two units are larger
SAMPLE_UNITS = 1024
_BLOCK = 32  # rows whose extremes are found together
COUNTED = 1 << 24  # values of a tensor that its histogram counts of all images, where there are twice as many


class Statistics:
    """Statistics of one tensor over all calibration images, updated batch by batch in bounded memory.

    count       finite values seen
    nans, infs  values that are not a number, and infinite ones; all else describes the finite values
    low, high   extremes
    histogram   of all values; of more than `COUNTED`, of every image the n-th ones, beginning one place further each
                time, so that n images count every place once
    sample      some of what the tensor's consumers multiply by their weights; None without an axis

    axis    of the channels
    window  height and width that a convolution reads at once, of a tensor [n, channels, h, w]; None for rows
    images  how many there will be; None where nobody knows, and then all values are counted

    Memory: 64 KiB for the histogram and, with an axis, at most `SAMPLE_BYTES` (or two units).
    """

    def __init__(
        self,
        name: str,
        axis: int | None = None,
        window: tuple[int, int] | None = None,
        images: int | None = None,
    ) -> None:
        self.name, self._expected = name, images
        self.count = self.nans = self.infs = self._images = 0
        self.low, self.high = math.inf, -math.inf
        self.histogram = Histogram()
        self.sample = None if axis is None else Sample(axis, window)

    @property
    def max_abs(self) -> float:
        """Largest magnitude."""
        return max(-self.low, self.high, 0.0)

    def update(self, values: Array, images: int = 1) -> None:
        """Add float32 `values` of any shape, made from `images` images, which lie along its first axis."""
        if values.size == 0:
            return
        values = np.atleast_1d(values)
        counted = self._counted(values, images)
        low, high = float(values.min()), float(values.max())
        whole = math.isfinite(low) and math.isfinite(high)
        if not whole:
            self.nans += int(np.isnan(values).sum())
            self.infs += int(np.isinf(values).sum())
            values, counted = (part[np.isfinite(part)] for part in (values, counted))
            if values.size == 0:
                return
            low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.size
        self.histogram.update(counted, max(-low, high))
        if self.sample is not None and whole and values.ndim > 1:
            self.sample.update(values)

    def _counted(self, values: Array, images: int) -> Array:
        """The values for the histogram."""
        parts = values.reshape(images, -1) if len(values) % images == 0 else values.reshape(1, -1)
        step = 1 if self._expected is None else parts.shape[1] * max(1, self._expected) // COUNTED
        first = self._images
        self._images += images
        if step <= 1:
            return values
        return np.concatenate([part[(first + index) % step :: step] for index, part in enumerate(parts)])


class Sample:
    """The units of a tensor with the largest values, and a uniform sample of the others.

    A unit is what one output of a linear layer reads: a row of channels, or of a tensor [n, channels, h, w] a window
    of pixels. Errors of clipping sit in few units with large values, which a plain sample misses, so these are all
    taken: stratified sampling with a take-all stratum (Cochran, Sampling Techniques, chapter 5A). Both halves are made
    of units numbered over all images, the second one by pseudo-random keys of the numbers: neither depends on how the
    images are split into batches.

    axis    of the channels
    window  height and width in pixels, for convolutions; None for rows
    seen    units so far
    """

    def __init__(self, axis: int, window: tuple[int, int] | None = None) -> None:
        self.axis, self.window = axis, window
        self.seen = 0
        self._largest, self._uniform = _Smallest(), _Smallest()

    @property
    def units(self) -> Array:
        """Float32 [n, channels], or [n, channels, height, width] of windows; the large ones first."""
        return np.concatenate([self._largest.units, self._uniform.units[self._others()]])

    @property
    def weights(self) -> Array:
        """How many units of the whole tensor each of `units` stands for, float64 [n]."""
        others, taken = self._others(), len(self._largest.numbers)
        rest = np.full(len(others), (self.seen - taken) / max(len(others), 1))
        return np.concatenate([np.ones(taken), rest])

    def _others(self) -> Array:
        return np.flatnonzero(~np.isin(self._uniform.numbers, self._largest.numbers))

    def update(self, values: Array) -> None:
        """Offer all units of float32 `values`."""
        if self.window is None:
            self._offer_rows(np.moveaxis(values, self.axis, -1).reshape(-1, values.shape[self.axis]))
        else:
            self._offer_windows(values, self.window)

    def _offer_rows(self, rows: Array) -> None:
        at = _may_reach(rows, -self._largest.bound)
        hit = rows[at]
        magnitude = np.maximum(hit.max(axis=1), -hit.min(axis=1)) if len(at) else np.empty(0, rows.dtype)
        self._offer(len(rows), at, magnitude, rows.shape[1:], lambda index: rows[index])

    def _offer_windows(self, values: Array, window: tuple[int, int]) -> None:
        short = [max(0, size - side) for size, side in zip(window, values.shape[2:], strict=True)]
        if any(short):  # smaller than the window: as wide as it, as a padded convolution sees it
            values = np.pad(values, ((0, 0), (0, 0), *((lack // 2, lack - lack // 2) for lack in short)))
        magnitude = np.maximum(values.max(axis=1), -values.min(axis=1))
        magnitude = _highest(_highest(magnitude, window[0], -2), window[1], -1)
        windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=(2, 3))

        def take(index: Array) -> Array:
            image, top, left = np.unravel_index(index, magnitude.shape)
            units: Array = windows[image, :, top, left]
            return units

        count, shape = magnitude.size, (values.shape[1], *window)
        self._offer(count, np.arange(count), magnitude.reshape(-1), shape, take)

    def _offer(
        self, count: int, at: Array, magnitude: Array, shape: tuple[int, ...], take: Callable[[Array], Array]
    ) -> None:
        """Offer `count` units, and for the largest of them those `at`, which have these magnitudes."""
        room = max(1, min(SAMPLE_UNITS, SAMPLE_BYTES // (4 * math.prod(shape))) // 2)
        self._largest.offer(room, -magnitude.astype(np.float64), at, self.seen, take)
        self._uniform.offer(room, _keys(self.seen, count), np.arange(count), self.seen, take)
        self.seen += count


def _may_reach(rows: Array, bound: float) -> Array:
    """Indices of all rows [n, channels] with a magnitude above `bound`, and of some others.

    The extremes of a block of rows are found much faster than those of every short row.
    """
    if bound <= 0:
        return np.arange(len(rows))
    whole = len(rows) // _BLOCK * _BLOCK
    blocks = rows[:whole].reshape(-1, _BLOCK * rows.shape[1])
    high = np.flatnonzero(np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) > bound)
    found = (high[:, None] * _BLOCK + np.arange(_BLOCK)).reshape(-1)
    return np.concatenate([found, np.arange(whole, len(rows))])


def _highest(values: Array, size: int, axis: int) -> Array:
    """The largest of each `size` neighbours along `axis`, which gets shorter by `size` - 1."""
    values, left = np.moveaxis(values, axis, 0), values.shape[axis] - size + 1
    return np.moveaxis(reduce(np.maximum, (values[start : start + left] for start in range(size))), 0, axis)


class _Smallest:
    """The units with the smallest keys, by their keys; of equal ones those that came first."""

    def __init__(self) -> None:
        self._slots: Array = np.empty(0, dtype=np.float32)  # in no order: a better unit takes the place of a worse one
        self._numbers: Array = np.empty(0, dtype=np.int64)
        self._keys: Array = np.empty(0)
        self.bound: float = math.inf  # a unit must have a smaller key to enter

    @property
    def units(self) -> Array:
        """A copy of the units, float32 [n, ...]."""
        taken: Array = self._slots[self._order()]
        return taken

    @property
    def numbers(self) -> Array:
        """The numbers of the units, int64 [n]."""
        taken: Array = self._numbers[self._order()]
        return taken

    def _order(self) -> Array:
        return np.lexsort((self._numbers, self._keys))

    def offer(self, room: int, keys: Array, at: Array, first: int, take: Callable[[Array], Array]) -> None:
        """Keep the best of what is there and the units `at`, numbered from `first`, whose keys are `keys`."""
        better = np.flatnonzero(keys < self.bound)
        if len(better) == 0:
            return
        better = better[np.argsort(keys[better], kind="stable")[:room]]
        numbers, keys = at[better] + first, keys[better]
        held = len(self._numbers)
        order = np.lexsort((np.concatenate([self._numbers, numbers]), np.concatenate([self._keys, keys])))
        entering, leaving = order[:room] - held, order[room:]
        entering, leaving = entering[entering >= 0], leaving[leaving < held]
        if len(entering) == 0:
            return
        units, numbers, keys = take(at[better[entering]]), numbers[entering], keys[entering]
        more = len(entering) - len(leaving)
        if more:
            self._slots = np.concatenate([self._slots.reshape(held, *units.shape[1:]), units[:more]])
            self._numbers = np.concatenate([self._numbers, numbers[:more]])
            self._keys = np.concatenate([self._keys, keys[:more]])
        self._slots[leaving], self._numbers[leaving], self._keys[leaving] = units[more:], numbers[more:], keys[more:]
        if len(self._keys) == room:
            self.bound = float(self._keys.max())


def _keys(first: int, count: int) -> Array:
    """Pseudo-random numbers 0..1 of the integers from `first`: the finalizer of SplitMix64 (Steele et al. 2014)."""
    z = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys: Array = (z ^ (z >> np.uint64(31))) * 2.0**-64
    return keys
