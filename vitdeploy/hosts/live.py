"""What the hosts are doing, while they do it: one table on a terminal with rich, else lines of the log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from vitdeploy.hosts.outcome import Outcome, clean
from vitdeploy.progress import LOG_SECONDS, draws_bars, in_words

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5


class Live:
    """A context manager around a run over hosts, told what each of them does; silent where the log of vitdeploy is."""

    def __init__(self, title: str, hosts: Sequence[str]) -> None:
        self._title, self._doing = title, dict.fromkeys(hosts, "waiting")
        self._since = dict.fromkeys(hosts, 0.0)
        self._done = 0
        self._begin = time.monotonic()
        self._due = self._begin + LOG_SECONDS
        self._screen: Any = None

    def __enter__(self) -> Live:
        terminal = sys.stderr is not None and sys.stderr.isatty() and draws_bars()
        if terminal and log.isEnabledFor(logging.INFO):
            with contextlib.suppress(Exception):  # a rich that is broken or of another form: lines are as good
                self._screen = _Screen()
        return self

    def __exit__(self, *_: object) -> None:
        if self._screen is not None:
            self._screen.show(self._rows(), self._summary())
            self._screen.end()

    def note(self, host: str, doing: str) -> None:
        """Says what a host does now."""
        before = self._doing[host].partition(" ")[0]
        if doing.partition(" ")[0] != before:
            self._since[host] = time.monotonic()
            if self._screen is None:
                log.debug("%s: %s", host, doing)
        self._doing[host] = doing

    def end(self, outcome: Outcome) -> None:
        """Says what became of a host."""
        self._done += 1
        numbers = ": ".join(filter(None, (outcome.status, outcome.figures.numbers or clean(outcome.what, 100))))
        self._doing[outcome.host], self._since[outcome.host] = numbers, 0.0
        if self._screen is None:
            log.info("%s: %s (%s)", outcome.host, numbers, self._summary())

    def tick(self) -> None:
        """Draws the table anew, or says every few seconds that it goes on."""
        if self._screen is not None:
            self._screen.show(self._rows(), self._summary())
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + LOG_SECONDS
            busy = [f"{host} {doing}" for host, doing in self._doing.items() if self._since[host]]
            log.info("%s: %s: %s", self._title, self._summary(), ", ".join(busy))

    def _rows(self) -> list[tuple[str, str, str]]:
        now = time.monotonic()
        return [
            (host, doing, in_words(now - self._since[host]) if self._since[host] else "")
            for host, doing in self._doing.items()
        ]

    def _summary(self) -> str:
        total, passed = len(self._doing), time.monotonic() - self._begin
        left = f", {in_words(passed * (total - self._done) / self._done)} left" if 0 < self._done < total else ""
        return f"{self._done} of {total} hosts, {in_words(passed)}{left}"


class _Screen:
    """A table by rich; nothing of it runs by itself."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as Drawn

        self._drawn: Any = Drawn(
            console=Console(file=sys.stderr), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._drawn.start()

    def show(self, rows: Sequence[tuple[str, str, str]], caption: str) -> None:
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, show_header=False, caption=escape(caption), caption_justify="left")
        for row in rows:
            table.add_row(*map(escape, row))
        self._drawn.update(table, refresh=True)

    def end(self) -> None:
        self._drawn.stop()
