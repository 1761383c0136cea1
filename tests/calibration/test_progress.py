"""Lines are rare, and say what is left."""

from __future__ import annotations

import logging

import pytest

from vitdeploy.calibration.progress import EVERY, Progress, duration


def lines(total: int | None, steps: list[int], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is written when every step takes three seconds."""
    now = [100.0]
    progress = Progress("working", total, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, logger="vitdeploy"):
        for step in steps:
            now[0] += 3
            progress.advance(step)
    return caplog.messages


def test_time_left_follows_the_pace_so_far(caplog: pytest.LogCaptureFixture) -> None:
    assert EVERY == 5
    assert lines(200, [10] * 4, caplog) == [
        "working: 20 of 200, about 54 s left",
        "working: 40 of 200, about 48 s left",
    ]


def test_without_a_total_only_the_count_is_known(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(None, [10] * 4, caplog) == ["working: 20", "working: 40"]


def test_more_than_announced_is_not_negative(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(5, [10] * 2, caplog) == ["working: 20 of 5, about 0 s left"]


def test_minutes() -> None:
    assert (duration(0.2), duration(59.4), duration(200)) == ("0 s", "59 s", "3 min 20 s")
