"""What two sets of answers or times tell: ranks, differences, ratios, noise, and how sure one may be of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Integers = NDArray[np.int64]

CONFIDENCE = 0.95
_BOOTSTRAP_VALUES = 1 << 22  # weights that a bootstrap holds at once
_PART_VALUES = 1 << 22  # of an array that may be a file on disk
Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


class Paired(NamedTuple):
    """How often two classifiers were right on the same `total` images: `lost` only the first, `won` only the second.

    `drop` is the difference of their accuracies in points (0 to 100), positive where the second is worse.
    """

    total: int
    lost: int
    won: int

    @property
    def drop(self) -> float:
        """Points of accuracy that the second has less."""
        return 100 * (self.lost - self.won) / self.total

    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `drop`, in points."""
        low, high = score_interval(self.lost, self.won, self.total)
        return 100 * low, 100 * high

    def p_value(self) -> float:
        """McNemar's exact test of no difference."""
        return mcnemar(self.lost, self.won)


def pair(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compares two vectors that say of each image whether it was classified rightly."""
    return Paired(len(first), int((first & ~second).sum()), int((second & ~first).sum()))


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p-value of McNemar's exact test: twice the tail of the binomial distribution for p = 1/2, at most 1.

    Q. McNemar, Psychometrika 12, 1947. The tail is its largest term, in whole numbers, times the sum of all terms over
    it, each of which follows from the last: C(n, k - 1) / C(n, k) = k / (n - k + 1).
    """
    total, fewer = lost + won, min(lost, won)
    ratios, term = 1.0, 1.0
    for k in range(fewer, 0, -1):
        term *= k / (total - k + 1)
        ratios += term
        if term < 1e-18 * ratios:
            break
    return min(1.0, 2 * ratios * (math.comb(total, fewer) / (1 << total)))


def score_interval(lost: int, won: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Confidence interval of (lost - won) / count for paired proportions, between -1 and 1.

    T. Tango, Statistics in Medicine 17, 1998: all differences that a score test does not reject. It has a width also
    where not a single pair is discordant, which a bootstrap and the formula of Wald have not.
    """
    estimate = (lost - won) / count
    below = _last_accepted(estimate, -1.0, lambda difference: _score(lost, won, count, difference) <= z)
    above = _last_accepted(estimate, 1.0, lambda difference: _score(lost, won, count, difference) >= -z)
    return below, above


def pairs_needed(difference: float, z: float = Z95) -> int:
    """The fewest pairs that can show a difference of at most `difference` (above 0, at most 1): with none discordant.

    The upper end of `score_interval` is z² / (count + z²) then; every pair that is lost besides puts it higher.
    """
    return max(1, math.ceil(z * z * (1 - difference) / difference))


def _last_accepted(inside: float, outside: float, accepted: Any) -> float:
    """By bisection, the point between the two where `accepted` ends."""
    if accepted(outside):
        return outside
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
    return inside


def _score(lost: int, won: int, count: int, difference: float) -> float:
    """Tango's statistic for the hypothesis that the proportions differ by `difference`.

    `q` is the probability of a won pair that is most likely under the hypothesis.
    """
    a = 2 * count
    b = (2 * count - lost + won) * difference - lost - won
    c = -won * difference * (1 - difference)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * q + difference * (1 - difference))
    error = lost - won - count * difference
    if variance <= 0:
        return 0.0 if error == 0 else math.copysign(math.inf, error)
    return error / math.sqrt(variance)


def bootstrap_interval(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], count: int, *, rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a figure of `count` images, by the percentiles of a bootstrap over images.

    statistic  of weights [rounds, count], how often each image was drawn, the figure of each round [rounds]; what is
               NaN for a round counts for nothing

    B. Efron and R. Tibshirani, An Introduction to the Bootstrap, chapter 13. Whole images are drawn, since the pixels
    of one are not independent. It has no width where all images tell the same; NaN where no round tells anything.
    """
    rng = np.random.default_rng(seed)
    step = max(1, min(rounds, _BOOTSTRAP_VALUES // count))
    found: list[NDArray[np.float64]] = []
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=size)
        found.append(statistic(drawn.astype(np.float64)))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean of `values`, one for each image [N], see `bootstrap_interval`."""
    return bootstrap_interval(lambda drawn: drawn @ values / len(values), len(values))


def ranks(logits: Array, targets: Integers) -> Integers:
    """How many classes come before the right one, [N]; of equal logits the lower class number comes first.

    A row with NaN or Inf has no best class: the right one comes last.
    """

    def part(logits: Array, targets: Integers) -> Integers:
        right = logits[np.arange(len(targets)), targets][:, None]
        earlier = np.arange(logits.shape[1])[None] < targets[:, None]
        found = ((logits > right) | ((logits == right) & earlier)).sum(axis=1)
        return _or_if_not_finite(logits, found, logits.shape[1])

    return np.concatenate([part(logits[rows], targets[rows]) for rows in _parts(logits)])


def best_class(logits: Array) -> Integers:
    """The class with the largest logit, [N]; -1 for a row with NaN or Inf."""
    found = [_or_if_not_finite(part, part.argmax(axis=1), -1) for part in map(logits.__getitem__, _parts(logits))]
    return np.concatenate(found)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers or energies, in dB.

    +inf without noise; -inf without signal, or where either is not finite; never NaN.
    """
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    if noise <= 0:
        return math.inf
    if signal <= 0:
        return -math.inf
    return 10 * (math.log10(signal) - math.log10(noise))  # the ratio itself may leave the range of a float


def snr_db(reference: Array, actual: Array) -> float:
    """Signal-to-noise ratio of an array against its reference of the same shape, in dB; see `decibels`."""
    return decibels(*energies(reference, actual))


def energies(reference: Array, actual: Array) -> tuple[float, float]:
    """Sums of the squares of a reference and of an array's differences from it; they add up over parts of arrays."""
    reference, actual, signal, noise = np.atleast_1d(reference), np.atleast_1d(actual), 0.0, 0.0
    for rows in _parts(reference):
        expected = reference[rows].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            signal += float(np.square(expected).sum())
            noise += float(np.square(actual[rows] - expected).sum())
    return signal, noise


def json_number(value: float | None, digits: int | None = None) -> float | None:
    """A measure as a JSON number, rounded to `digits`; null where it is infinite or NaN, which JSON does not know."""
    if value is None or not math.isfinite(value):
        return None
    return float(value) if digits is None else round(float(value), digits)


class Ratio(NamedTuple):
    """A time over another: below 1 is faster.

    low and high bound it with 95 % confidence; None where there are too few rounds to say so. `paired` ratios are
    taken round by round, so that what disturbs the whole machine cancels out.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def faster(self) -> bool:
        """Whether it is below 1 with 95 % confidence."""
        return self.high is not None and self.high < 1


def paired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median of the ratios of each round, for two candidates that took turns.

    The interval holds for a number of rounds that was fixed before: who looks after every round and stops when it is
    clear is wrong more often than it says.
    """
    ratios = [a / b for a, b in zip(candidate, baseline, strict=True)]
    low, high = median_interval(ratios, CONFIDENCE)
    return Ratio(median(ratios), low, high, paired=True)


def unpaired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Ratio of the medians, for two candidates of different runs.

    Each median is in its interval with a probability of sqrt(0.95), so both are with 0.95: then the ratio lies between
    the ratios of opposite ends. What changed from run to run is not in it.
    """
    low, high = median_interval(candidate, math.sqrt(CONFIDENCE))
    base_low, base_high = median_interval(baseline, math.sqrt(CONFIDENCE))
    value = median(candidate) / median(baseline)
    if low is None or high is None or base_low is None or base_high is None:
        return Ratio(value, None, None, paired=False)
    return Ratio(value, low / base_high, high / base_low, paired=False)


def median_interval(values: Sequence[float], confidence: float) -> tuple[float, float] | tuple[None, None]:
    """Interval that holds the median of the distribution with at least `confidence`, whatever the distribution.

    Of n values, the number below the median is binomial (n, 1/2), so the k-th smallest and the k-th largest enclose it
    except with probability 2 P(fewer than k): David and Nagaraja, Order Statistics, section 7.1. The narrowest such
    pair is returned; (None, None) where not even the extremes suffice (fewer than 6 values at 0.95).
    """
    ordered, n = sorted(values), len(values)
    k, outside, term = 0, 0, 1  # 2**n P(fewer than k), and 2**n P(exactly k)
    while k < n // 2 and 2 * (outside + term) / 2**n <= 1 - confidence:
        outside += term
        term = term * (n - k) // (k + 1)
        k += 1
    return (ordered[k - 1], ordered[-k]) if k else (None, None)


def confusion(targets: Integers, chosen: Integers, classes: int) -> Integers:
    """Counts [classes, classes] by right class and chosen class; images without a chosen class are left out."""
    counts = np.zeros((classes, classes), np.int64)
    valid = chosen >= 0
    np.add.at(counts, (targets[valid], chosen[valid]), 1)
    return counts


def _parts(array: Array) -> list[slice]:
    """Rows of an array in parts of some megabytes, so that what is computed of them takes no more memory than that."""
    step = max(1, _PART_VALUES * len(array) // max(1, array.size))
    return [slice(start, start + step) for start in range(0, max(1, len(array)), step)]


def _or_if_not_finite(logits: Array, values: Array, other: int) -> Integers:
    chosen: Integers = np.where(np.isfinite(logits).all(axis=1), values, other).astype(np.int64)
    return chosen
