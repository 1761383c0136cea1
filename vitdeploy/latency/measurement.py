"""What was measured of one candidate, and what two of them are to each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

PERCENTILES = (50, 90, 95, 99)
CONFIDENCE = 0.95


class Turn(NamedTuple):
    """What a candidate did in one round: seconds of each call, seconds from the first to the last, and memory so far.

    The memory is the largest resident set of its process in bytes, see `vitdeploy.latency.worker.peak_memory`.
    """

    seconds: Sequence[float]
    wall_seconds: float
    peak_bytes: int | None


class Ratio(NamedTuple):
    """Time per image over the baseline's: below 1 is faster.

    low and high bound it with 95 % confidence; None where there are too few rounds to say so. `paired` ratios are
    taken round by round, so that what disturbs the whole machine cancels out.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool


@dataclass(frozen=True)
class Candidate:
    """A bundle on a runtime, `batch` images a call.

    `settings` are version, device, precision really used, threads and more, see `Session.describe`, and `callers`: how
    many called at once.
    """

    bundle: str
    runtime: str
    batch: int
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Measurement(Candidate):
    """What was measured of a candidate.

    load_seconds        of `vitdeploy.load`, the import of the runtime included
    first_call_seconds  of the first call, which often prepares what later ones use
    rounds              its turns
    """

    model: str
    precision: str
    load_seconds: float
    first_call_seconds: float
    rounds: Sequence[Turn]

    @property
    def seconds(self) -> list[float]:
        """Seconds of every timed call."""
        return [second for each in self.rounds for second in each.seconds]

    @property
    def images_per_second(self) -> float:
        """Images of all timed calls over the time that they took together."""
        return len(self.seconds) * self.batch / sum(each.wall_seconds for each in self.rounds)

    @property
    def image_seconds(self) -> list[float]:
        """Seconds per image in each round: its median call, spread over the images under way."""
        return [median(each.seconds) / (self.batch * self.settings["callers"]) for each in self.rounds]

    @property
    def peak_bytes(self) -> int | None:
        """Largest resident memory of the process in bytes; None where the system does not tell."""
        return self.rounds[-1].peak_bytes

    def latency_ms(self) -> dict[str, float]:
        """Milliseconds of a call: mean, extremes and percentiles (linear between the two nearest calls)."""
        calls = 1000 * np.asarray(self.seconds)
        percentiles = np.percentile(calls, PERCENTILES)
        values = {"min": calls.min(), "mean": calls.mean(), "max": calls.max()}
        values |= {f"p{p}": value for p, value in zip(PERCENTILES, percentiles, strict=True)}
        return {name: float(value) for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "bundle": self.bundle,
            "model": self.model,
            "precision": self.precision,
            "runtime": self.runtime,
            "batch": self.batch,
            "settings": dict(self.settings),
            "load_seconds": self.load_seconds,
            "first_call_seconds": self.first_call_seconds,
            "peak_memory_bytes": self.peak_bytes,
            "calls": len(self.seconds),
            "latency_ms": self.latency_ms(),
            "images_per_second": self.images_per_second,
            "image_seconds": self.image_seconds,
        }


def paired_ratio(candidate: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Median of the ratios of each round, for two candidates that took turns."""
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
