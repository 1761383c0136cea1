"""A histogram that widens as larger values arrive, loses none, and does not depend on the order in which they come."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.graph.qdq import QuantParams
from vitdeploy.statistics import decibels

Array = NDArray[Any]

BINS = 4096  # on either side of zero: between 8 and 16 of them for each step of 8 bits over the whole range
_CHUNK = 1 << 16  # values binned at once, so that the temporary arrays stay in the cache
_SMALLEST_EXPONENT = -120  # the reciprocal of the bin width has to be a normal float32


class Histogram:
    """Counts of float32 values in bins whose width is a power of two.

    Bin 0 holds (-width, width); bin i > 0 holds [i width, (i + 1) width) and bin -i its mirror image. The width is the
    smallest power of two with which `BINS` bins reach the largest magnitude. To double it, bins 2i and 2i + 1 merge
    exactly, so that the counts are those of a histogram that knew the final width from the start: the result depends
    neither on the order of the values nor on how they are split into batches.

    counts  int64 [2 BINS - 1], bin i at index BINS - 1 + i
    zeros   how many of the values in bin 0 are exactly zero
    width   of a bin; 0.0 as long as every value was zero
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS - 1, dtype=np.int64)
        self.zeros = 0
        self._exponent: int | None = None  # None until a value that is not zero tells one

    @property
    def width(self) -> float:
        """Width of a bin in the unit of the values."""
        return 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent)

    def update(self, values: Array, largest: float) -> None:
        """Count finite float32 `values` of any shape, of which `largest` is the largest magnitude."""
        if largest == 0:
            self.zeros += values.size
            self.counts[BINS - 1] += values.size
            return
        exponent = max(math.frexp(largest)[1] - (BINS.bit_length() - 1), _SMALLEST_EXPONENT)
        present = exponent if self._exponent is None else self._exponent
        for _ in range(exponent - present):
            self._merge_pairs()
        self._exponent = max(exponent, present)
        inverse = np.float32(math.ldexp(1.0, -self._exponent))
        flat = values.reshape(-1)
        scaled = np.empty(min(_CHUNK, flat.size), dtype=np.float32)
        index = np.empty(scaled.size, dtype=np.int32)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            self.zeros += int(np.count_nonzero(part == 0))  # several times as fast as the zeros of float32 itself
            at = index[: part.size]
            np.copyto(at, np.multiply(part, inverse, out=scaled[: part.size]), casting="unsafe")  # toward zero
            at += BINS - 1
            self.counts += np.bincount(at, minlength=self.counts.size)

    def _merge_pairs(self) -> None:
        middle = BINS - 1
        merged = np.zeros_like(self.counts)
        merged[middle] = self.counts[middle - 1 : middle + 2].sum()
        half = BINS // 2
        for side, into in ((self.counts[middle:], merged[middle:]), (self.counts[middle::-1], merged[middle::-1])):
            into[1:half] = side[2:].reshape(-1, 2).sum(axis=1)
        self.counts = merged

    def magnitudes(self) -> Array:
        """Counts of |value|: int64 [BINS], bin i holding [i width, (i + 1) width)."""
        folded: Array = self.counts[BINS - 1 :].copy()
        folded[1:] += self.counts[: BINS - 1][::-1]
        return folded

    def edges(self, low: float, high: float) -> Array:
        """Bounds of the bins, float64 [2 BINS], none outside `low` to `high`, the extremes of the values."""
        positive = np.arange(1, BINS + 1) * self.width
        edges: Array = np.clip(np.concatenate([-positive[::-1], positive]), low, high)
        return edges

    def quantile(self, fraction: float, low: float, high: float) -> float:
        """The value that `fraction` of all values do not exceed, right within a bin; `low`, `high` are the extremes."""
        return _quantile(self.counts, self.edges(low, high), fraction)

    def magnitude_quantile(self, fraction: float, largest: float) -> float:
        """The magnitude that `fraction` of all values do not exceed; `largest` is the largest one."""
        edges = np.minimum(np.arange(BINS + 1) * self.width, largest)
        return _quantile(self.magnitudes(), edges, fraction)


def _quantile(counts: Array, edges: Array, fraction: float) -> float:
    below = np.concatenate([[0], np.cumsum(counts)])
    return float(np.interp(fraction * below[-1], below, edges))


class Noise:
    """The error of quantizing the values of a histogram, as an integral: values count as uniform inside their bin.

    Zeros count as what they are: no scheme errs on them, and behind a ReLU they are most of the values.

    signal  sum of the squared values
    """

    def __init__(self, histogram: Histogram, low: float, high: float) -> None:
        edges = histogram.edges(low, high)
        counts = histogram.counts.copy()
        counts[BINS - 1] -= histogram.zeros
        held = np.flatnonzero(counts)
        self._counts = counts[held].astype(np.float64)
        self._left, self._right = edges[held], edges[held + 1]
        # Where the extremes cut a bin down to nearly a point, the integral over it would be lost to rounding.
        self._point = self._right - self._left < 1e-3 * histogram.width
        self._span = np.where(self._point, 1.0, self._right - self._left)
        squares = (self._left**2 + self._left * self._right + self._right**2) / 3
        self.signal = float(self._counts @ squares)

    def power(self, params: QuantParams) -> float:
        """Sum of the squared errors of a round trip through 8-bit integers.

        With u = x / scale, n the integer it becomes (zero point taken off) and d = u - n, the squared error d^2 has
        the antiderivative n / 12 + d^3 / 3: a whole step adds 1/12, and past the ends n stays and d grows.
        """
        lowest, highest = params.scheme.low - params.zero_point, params.scheme.high - params.zero_point

        def rounded(x: Array) -> tuple[Array, Array]:
            u = x / params.scale
            n = np.clip(np.rint(u), lowest, highest)
            return n, u - n

        def antiderivative(x: Array) -> Array:
            n, d = rounded(x)
            integral: Array = n / 12 + d * d * d / 3
            return integral

        mean = (antiderivative(self._right) - antiderivative(self._left)) * params.scale / self._span
        mean = np.where(self._point, np.square(rounded((self._left + self._right) / 2)[1]), mean)
        return float(self._counts @ mean) * params.scale**2

    def sqnr_db(self, params: QuantParams) -> float:
        """Signal to quantization noise in dB; infinite where there is no error."""
        return decibels(self.signal, self.power(params))
