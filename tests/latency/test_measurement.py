"""What a benchmark tells of its calls, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.latency.measurement import Measurement, Turn


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
