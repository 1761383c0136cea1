"""From the statistics of a tensor to the range that its integers should cover: the methods of the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.graph.qdq import QScheme
from vitdeploy.quantize.histogram import Noise
from vitdeploy.quantize.observers import Statistics

Array = NDArray[Any]
Method = Callable[[Statistics, QScheme], tuple[float, float]]

PERCENT = 99.99
_ENTROPY_STRIDE = 32  # bins between two thresholds that are tried
_COARSE = np.geomspace(1.0, 1 / 64, 25)  # part of the range that is kept
_FINE = np.geomspace(1.15, 1 / 1.15, 9)


def minmax(statistics: Statistics, scheme: QScheme) -> tuple[float, float]:
    """The extremes over all images: nothing saturates."""
    return statistics.low, statistics.high


def average(statistics: Statistics, scheme: QScheme) -> tuple[float, float]:
    """The moving average of each image's extremes (constant `observers.AVERAGING`)."""
    return statistics.average_low, statistics.average_high


def percentile(statistics: Statistics, scheme: QScheme, percent: float = PERCENT) -> tuple[float, float]:
    """The range that holds `percent` of the values: of their magnitudes, or cut by half as much at either end.

    99.99 is the default of NVIDIA's calibrators (modelopt.torch.quantization.calib.HistogramCalibrator).
    """
    if scheme.symmetric:
        return _symmetric(statistics, statistics.histogram.magnitude_quantile(percent / 100, statistics.max_abs))
    low, high, tail = statistics.low, statistics.high, (1 - percent / 100) / 2
    quantile = statistics.histogram.quantile
    return quantile(tail, low, high), quantile(1 - tail, low, high)


def entropy(statistics: Statistics, scheme: QScheme) -> tuple[float, float]:
    """The threshold on the magnitude whose clipped and quantized distribution tells most of the original one.

    Smallest Kullback-Leibler divergence, after S. Migacz, 8-bit Inference with TensorRT, GTC 2017 (s7310), slide
    "Entropy Calibration": values beyond the threshold count in the last bin of the reference and are missing from the
    candidate, which spreads the mass of each level over its bins that are not empty. As in NVIDIA's
    pytorch-quantization, the bin of zero takes the count of its neighbour, because zero itself is exact.
    """
    counts = statistics.histogram.magnitudes().astype(np.float64)
    counts[0] = counts[1]
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    levels = _levels(statistics, scheme)
    if used <= levels:
        return minmax(statistics, scheme)
    bins = [*range(levels, used, _ENTROPY_STRIDE), used]
    divergences = [_divergence(counts[:used], kept, levels) for kept in bins]
    threshold = bins[int(np.argmin(divergences))] * statistics.histogram.width
    return _symmetric(statistics, threshold)


def _levels(statistics: Statistics, scheme: QScheme) -> int:
    """Integers that the scheme has for magnitudes: 128 if symmetric and signed, up to 256 for one side of zero."""
    full = scheme.params(statistics.low, statistics.high)
    return 1 + round(statistics.max_abs / full.scale)


def _divergence(counts: Array, kept: int, levels: int) -> float:
    """Kullback-Leibler divergence, in nats, of quantizing the first `kept` bins to `levels`; inf if one cannot be."""
    clipped = counts[:kept]
    reference = clipped.copy()
    reference[-1] += counts[kept:].sum()
    bounds = np.arange(levels + 1) * kept // levels
    starts = bounds[:-1]
    held = clipped > 0
    mass = np.add.reduceat(clipped, starts)
    share = mass / np.maximum(np.add.reduceat(held.astype(np.float64), starts), 1)
    candidate = np.where(held, np.repeat(share, np.diff(bounds)), 0.0)
    if candidate[-1] == 0 and reference[-1] > 0:
        return math.inf
    p, q = reference[held] / reference.sum(), candidate[held] / candidate.sum()
    return float(p @ np.log(p / q))


def mse(statistics: Statistics, scheme: QScheme) -> tuple[float, float]:
    """The range of the smallest mean squared error of a round trip, searched over clipping ratios.

    A geometric grid, then a finer one around its best; where the ends are free of each other they take turns.
    The extremes themselves are among the candidates, so that the result is never worse than `minmax`.
    """
    noise = Noise(statistics.histogram, statistics.low, statistics.high)

    def power(low: float, high: float) -> float:
        return noise.power(scheme.params(low, high))

    if scheme.symmetric:
        bound = _best(lambda bound: power(-bound, bound), statistics.max_abs)
        return _symmetric(statistics, bound)
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    for _ in range(2):
        high = _best(partial(power, low), max(statistics.high, 0.0), high)
        low = _best(partial(power, high=high), min(statistics.low, 0.0), low)
    return low, high


def _best(power: Callable[[float], float], extreme: float, start: float | None = None) -> float:
    """The end of the range, between zero and `extreme`, for which `power` is smallest."""
    if extreme == 0:
        return extreme
    coarse = _smallest(power, [*(extreme * _COARSE), *([] if start is None else [start])])
    inside = np.minimum(np.abs(coarse) * _FINE, abs(extreme)) * np.sign(extreme)
    return _smallest(power, [coarse, *inside])


def _smallest(power: Callable[[float], float], candidates: Sequence[float]) -> float:
    return float(min(candidates, key=power))


def _symmetric(statistics: Statistics, bound: float) -> tuple[float, float]:
    """-bound to bound, but no further than zero and the values reach."""
    return max(-bound, min(statistics.low, 0.0)), min(bound, max(statistics.high, 0.0))


METHODS: Mapping[str, Method] = {
    "minmax": minmax,
    "average": average,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
