"""The statistics of a benchmark, against numpy, exact binomial sums and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from vitdeploy.latency.measurement import (
    Measurement,
    Turn,
    median_interval,
    paired_ratio,
    unpaired_ratio,
)


def measured(rounds: list[list[float]], *, batch: int = 1, callers: int = 1) -> Measurement:
    turns = [Turn(seconds, sum(seconds) / callers, 1_000 * number) for number, seconds in enumerate(rounds, 1)]
    settings = {"version": "1", "callers": callers}
    return Measurement("b", "onnxruntime", batch, settings, "tiny", "fp32", 0.5, 0.25, turns)


def test_percentiles_are_those_of_all_calls() -> None:
    calls = np.random.default_rng(0).lognormal(size=(7, 30))
    latency = measured(calls.tolist()).latency_ms()
    expected = np.sort(calls.ravel() * 1000)
    assert latency["min"] == pytest.approx(expected[0])
    assert latency["max"] == pytest.approx(expected[-1])
    assert latency["mean"] == pytest.approx(expected.mean())
    for percent in (50, 90, 95, 99):
        position = percent / 100 * (len(expected) - 1)
        below, part = int(position), position - int(position)
        assert latency[f"p{percent}"] == pytest.approx(expected[below] * (1 - part) + expected[below + 1] * part)


def test_throughput_counts_images_over_the_time_of_the_turns() -> None:
    assert measured([[0.5, 0.5], [1.0, 2.0]], batch=8).images_per_second == pytest.approx(4 * 8 / 4.0)
    # Two callers share the wall: the same calls take half the time.
    assert measured([[0.5, 0.5], [1.0, 2.0]], batch=8, callers=2).images_per_second == pytest.approx(4 * 8 / 2.0)


def test_seconds_per_image_are_the_median_call_of_each_round() -> None:
    assert measured([[1.0, 2.0, 9.0], [4.0]], batch=4).image_seconds == pytest.approx([0.5, 1.0])
    assert measured([[1.0, 2.0, 9.0], [4.0]], batch=4, callers=2).image_seconds == pytest.approx([0.25, 0.5])


def test_memory_is_the_last_known_peak() -> None:
    assert measured([[1.0], [1.0], [1.0]]).peak_bytes == 3_000


@pytest.mark.parametrize("n", [6, 7, 10, 25, 60, 301])
@pytest.mark.parametrize("confidence", [0.95, math.sqrt(0.95), 0.5])
def test_the_interval_of_a_median_is_the_narrowest_that_holds(n: int, confidence: float) -> None:
    low, high = median_interval(list(range(n))[::-1], confidence)
    if low is None:
        assert 1 - Fraction(2, 2**n) < confidence
        return
    assert high == n - 1 - low

    def coverage(k: int) -> Fraction:
        """Of the k-th smallest and k-th largest: at least k values below the median, and at least k above."""
        return Fraction(sum(math.comb(n, i) for i in range(k, n - k + 1)), 2**n)

    assert coverage(int(low) + 1) >= confidence
    assert low + 1 == n // 2 or coverage(int(low) + 2) < confidence


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rounds_have_no_interval(n: int) -> None:
    assert median_interval([1.0] * n, 0.95) == (None, None)
    assert paired_ratio([2.0] * n, [1.0] * n) == (2.0, None, None, True)
    assert unpaired_ratio([2.0] * n, [1.0] * n) == (2.0, None, None, False)


def test_many_rounds_do_not_overflow() -> None:
    low, high = median_interval(np.random.default_rng(0).normal(size=20_000).tolist(), 0.95)
    assert low is not None
    assert high is not None
    assert -0.03 < low < 0 < high < 0.03


def test_what_disturbs_the_whole_machine_cancels_out_of_paired_rounds() -> None:
    chance = np.random.default_rng(3)
    disturbance = chance.lognormal(sigma=1.0, size=40)
    baseline, candidate = disturbance, 0.8 * disturbance
    assert paired_ratio(candidate, baseline)[:3] == pytest.approx((0.8, 0.8, 0.8))
    shuffled = unpaired_ratio(chance.permutation(candidate), baseline)
    assert shuffled.low < 0.75
    assert shuffled.high > 0.85


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    chance = np.random.default_rng(7)
    paired = unpaired = 0
    trials = 800
    for _ in range(trials):
        drift = chance.lognormal(sigma=0.5, size=30)
        one, two = (chance.lognormal(sigma=0.2, size=30) for _ in range(2))
        ratio = paired_ratio((1.1 * drift * one).tolist(), (drift * two).tolist())
        paired += ratio.low <= 1.1 <= ratio.high
        ratio = unpaired_ratio((1.1 * one).tolist(), two.tolist())
        unpaired += ratio.low <= 1.1 <= ratio.high
    slack = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert paired / trials > 0.95 - slack
    assert unpaired / trials > 0.95 - slack
