"""How far a long step is, and how long it will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("vitdeploy.calibration")

EVERY = 5.0  # seconds between two lines


class Progress:
    """Writes a line to the log every few seconds: what is done, of how much, and the time left if that is known."""

    def __init__(self, label: str, total: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._total, self._clock = label, total, clock
        self._start = self._last = clock()
        self.done = 0

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        now = self._clock()
        if now - self._last < EVERY:
            return
        self._last = now
        if self._total is None:
            log.info("%s: %d", self._label, self.done)
            return
        left = max(0.0, (now - self._start) / self.done * (self._total - self.done))
        log.info("%s: %d of %d, about %s left", self._label, self.done, self._total, duration(left))


def duration(seconds: float) -> str:
    """Seconds as `45 s` or `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
