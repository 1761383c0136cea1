"""What a user sees of a long job."""

from __future__ import annotations

import io
import logging
import sys
import threading

import pytest

from vitdeploy import progress
from vitdeploy.progress import Progress, each, in_words


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


def test_a_log_gets_a_line_after_two_seconds_and_then_every_ten_with_the_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("validating", 100) as job:
        for _ in range(25):
            clock.now += 1
            job.advance(4)
    assert [record.message for record in caplog.records] == [
        "validating: 8 of 100, 2 s, 23 s left",
        "validating: 48 of 100, 12 s, 13 s left",
        "validating: 88 of 100, 22 s, 3 s left",
        "validating: 100 of 100, 25 s, 0 s left",
    ]


def test_a_job_of_one_step_shows_the_time_that_went_by(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("compiling", None) as job:
        for _ in range(13):
            clock.now += 1
            job.advance(0)
    assert [record.message for record in caplog.records] == ["compiling: 2 s", "compiling: 12 s"]
    monkeypatch.setattr(progress, "draws_bars", lambda: False)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("compiling", None) as job:
        clock.now += 3
        job.advance(0)
    assert terminal.getvalue() == "\rcompiling: 3 s\x1b[K\n"


def test_a_terminal_gets_one_line_that_renews_itself(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "draws_bars", lambda: False)
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


@pytest.mark.parametrize("colourless", [False, True])
def test_where_rich_is_installed_a_terminal_gets_a_bar_with_the_same_words(
    colourless: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("rich")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if colourless:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    caplog.set_level(logging.INFO, "vitdeploy")
    with pytest.raises(KeyboardInterrupt), Progress("validating [b]", 4) as job:  # noqa: PT012 - it ends in the job
        clock.now += 1
        job.advance(0)
        assert terminal.getvalue() == "\rvalidating [b]: 0 of 4, 1 s, 4 s left\x1b[K"
        clock.now += 99
        job.advance()
        raise KeyboardInterrupt
    shown = terminal.getvalue()
    assert "validating [b]" in shown
    assert "1 of 4, 1 min 40 s, 5 min 0 s left" in shown
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown
    assert ("\x1b[38;" in shown or "\x1b[3" in shown) != colourless
    assert shown.endswith("\x1b[?25h"), "the cursor is shown again, whatever ended the job"
    assert caplog.records == []


@pytest.mark.parametrize("lacking", ["rich is not installed", "rich is broken", "the terminal is dumb"])
def test_without_a_usable_rich_the_line_stays(
    lacking: str, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TERM", "dumb" if "dumb" in lacking else "xterm")
    if "installed" in lacking:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    elif "broken" in lacking:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("validating", 2) as job:
        clock.now += 100
        job.advance()
    assert terminal.getvalue().removeprefix("\r\x1b[K") == ("\rvalidating: 1 of 2, 1 min 40 s, 1 min 40 s left\x1b[K\n")


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


def test_a_job_inside_another_one_is_silent_and_speaks_again_behind_it(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vitdeploy"):
        with Progress("measuring", 2) as outer:
            for _ in range(2):
                with Progress("comparing", 5) as inner:
                    clock.now += 50
                    inner.advance(5)
                outer.advance()
        with Progress("comparing", 5) as alone:
            clock.now += 50
            alone.advance(5)
    assert [record.message for record in caplog.records] == [
        "measuring: 1 of 2, 50 s, 50 s left",
        "measuring: 2 of 2, 1 min 40 s, 0 s left",
        "comparing: 5 of 5, 50 s, 0 s left",
    ]


def test_jobs_of_two_threads_do_not_silence_each_other(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        with Progress("second", 1) as second:
            clock.now += 50
            second.advance()

    with caplog.at_level(logging.INFO, "vitdeploy"), Progress("first", 1):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [record.message for record in caplog.records] == ["second: 1 of 1, 50 s, 0 s left"]


def test_each_item_is_a_step(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vitdeploy"):
        for item in each("proving", ["one", "other"]):
            clock.now += 3 if item == "one" else 11
    assert [record.message for record in caplog.records] == [
        "proving: 1 of 2, 3 s, 3 s left",
        "proving: 2 of 2, 14 s, 0 s left",
    ]


def test_times_are_in_words() -> None:
    assert [in_words(seconds) for seconds in (0.4, 59.4, 61, 3725)] == ["0 s", "59 s", "1 min 1 s", "1 h 2 min"]
