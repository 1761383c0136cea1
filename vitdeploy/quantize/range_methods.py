"""From the statistics of a tensor to the range that its integers should cover: the methods of the field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from vitdeploy.graph.qdq import QScheme
from vitdeploy.quantize.histogram import Noise
from vitdeploy.quantize.observers import Statistics

PERCENT = 99.99
_COARSE = np.geomspace(1.0, 1 / 64, 25)  # part of the range that is kept
_FINE = np.geomspace(1.15, 1 / 1.15, 9)


class RangeMethod(Protocol):
    """A method: from what was seen of a tensor to the lowest and highest real value that its integers cover.

    statistics  of the tensor, which holds finite values that are not all equal or zero
    scheme      of the integers: a symmetric one covers as much on either side of zero, whatever is returned

    Values beyond the range saturate. The two numbers are finite, the first one not above the second; where zero lies
    outside, the range is widened to hold it. A package adds a method by an entry point of the group
    `vitdeploy.range_methods`; it is then a name for `--method`, and `auto` does not try it.
    """

    def __call__(self, statistics: Statistics, scheme: QScheme) -> tuple[float, float]:
        """The range."""
        ...


def minmax(statistics: Statistics, scheme: QScheme) -> tuple[float, float]:
    """The extremes over all images: nothing saturates."""
    return statistics.low, statistics.high


def percentile(statistics: Statistics, scheme: QScheme, percent: float = PERCENT) -> tuple[float, float]:
    """The range that holds `percent` of the values: of their magnitudes, or cut by half as much at either end.

    99.99 is the default of NVIDIA's calibrators (modelopt.torch.quantization.calib.HistogramCalibrator).
    """
    if scheme.symmetric:
        return _symmetric(statistics, statistics.histogram.magnitude_quantile(percent / 100, statistics.max_abs))
    low, high, tail = statistics.low, statistics.high, (1 - percent / 100) / 2
    quantile = statistics.histogram.quantile
    return quantile(tail, low, high), quantile(1 - tail, low, high)


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
