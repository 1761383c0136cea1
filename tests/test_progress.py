"""What a user sees of a long job."""

from __future__ import annotations

import io
import logging

import pytest

from vitdeploy import progress
from vitdeploy.progress import Progress, in_words


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_ten_seconds_with_the_time_left(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("validating", 100) as job:
        for _ in range(25):
            clock.now += 1
            job.advance(4)
    assert [record.message for record in caplog.records] == [
        "validating: 40 of 100, 10 s, 15 s left",
        "validating: 80 of 100, 20 s, 5 s left",
        "validating: 100 of 100, 25 s, 0 s left",
    ]


def test_a_terminal_gets_one_line_that_renews_itself(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("validating", 2) as job:
        for _ in range(2):
            clock.now += 100
            job.advance()
    shown = terminal.getvalue()
    assert "\rvalidating: 1 of 2, 1 min 40 s, 1 min 40 s left" in shown
    assert shown.count("\n") == 1
    assert caplog.records == []


def test_a_short_job_and_a_silent_logger_say_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.WARNING, "vitdeploy"), Progress("validating", 1) as job:
        clock.now += 100
        job.advance()
    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("validating", 1) as job:
        job.advance()
    assert terminal.getvalue() == ""


def test_times_are_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.4, 59.4, 61, 3725)] == ["0 s", "59 s", "1 min 1 s", "1 h 2 min"]
