"""Progress of a long job on standard error: one line that is updated on a terminal, else a line every few seconds.

Where rich is installed, a terminal gets a bar besides. Nothing needs it, and it is imported when a bar is drawn.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

TERMINAL_SECONDS, LOG_SECONDS = 0.2, 10.0
FIRST_LOG_SECONDS = 2.0  # a log says sooner how long the job will take, and a terminal gets its bar


class Progress:
    """A context manager around a job of `total` steps; shows the steps done and an estimate of the time left.

    Without a total (None) it shows only the steps done, and of a job that is one step the time that went by, where
    `advance(0)` is called now and then. It is silent where the logger of vitdeploy is, for a job
    that ends before the first line is due, and for a job inside another one that shows its own steps.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._begin = time.monotonic()
        self._due = self._begin + (TERMINAL_SECONDS if self._terminal else FIRST_LOG_SECONDS)
        self._shown: int | None = None  # steps in the line shown last
        self._bar: _Bar | None = None

    def __enter__(self) -> Progress:
        if _OUTERMOST.get() is None:
            _OUTERMOST.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _OUTERMOST.get() is self:
            _OUTERMOST.set(None)
        if self._shown is not None and self._shown < self.done:
            self._tell()
        if self._bar is not None:
            self._bar.end()
        elif self._shown is not None and self._terminal:
            sys.stderr.write("\n")

    def advance(self, steps: int = 1) -> None:
        """Counts steps that are done."""
        self.done += steps
        if time.monotonic() >= self._due and _OUTERMOST.get() in (self, None):
            self._tell()

    def _tell(self) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        now = time.monotonic()
        self._due = now + (TERMINAL_SECONDS if self._terminal else LOG_SECONDS)
        self._shown = self.done
        parts = [] if self.total is None and not self.done else [str(self.done)]
        if self.total is not None:
            parts[0] += f" of {self.total}"
        parts.append(in_words(now - self._begin))
        if self.total is not None:
            left = (now - self._begin) * (self.total - self.done) / max(1, self.done)
            parts.append(f"{in_words(max(0.0, left))} left")
        line = ", ".join(parts)
        if not self._terminal:
            log.info("%s: %s", self.what, line)
            return
        # To import rich takes the time of a short job.
        if self._bar is None and now - self._begin >= FIRST_LOG_SECONDS and draws_bars():
            sys.stderr.write("\r\x1b[K")
            with contextlib.suppress(Exception):  # a rich that is broken or of another form: the line is as good
                self._bar = _Bar(self.what, self.total)
        if self._bar is not None:
            self._bar.show(self.done, line)
        else:
            sys.stderr.write(f"\r{self.what}: {line}\x1b[K")
            sys.stderr.flush()


class _Bar:
    """A bar by rich, with the words of the line behind it; colours as NO_COLOR and the terminal have it."""

    def __init__(self, what: str, total: int | None) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        # Nothing of it runs by itself: no thread that draws, and no stream that is replaced.
        self._bars: Any = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[line]}", markup=False),
            console=Console(file=sys.stderr),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bars.add_task(escape(what), total=total, line="")
        self._bars.start()

    def show(self, done: int, line: str) -> None:
        self._bars.update(self._task, completed=done, line=line)
        self._bars.refresh()

    def end(self) -> None:
        self._bars.stop()


def draws_bars() -> bool:
    """Whether rich is installed, and the terminal can go back in its line."""
    return os.environ.get("TERM") != "dumb" and importlib.util.find_spec("rich") is not None


def each(what: str, items: Sequence[T]) -> Iterator[T]:
    """One of `items` after another; an item is a step, done when the next one is asked for."""
    with Progress(what, len(items)) as progress:
        for item in items:
            yield item
            progress.advance()


_OUTERMOST: ContextVar[Progress | None] = ContextVar("outermost", default=None)  # of this thread


def in_words(seconds: float) -> str:
    """`42 s`, `7 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
