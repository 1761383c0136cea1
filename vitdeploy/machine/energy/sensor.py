"""What a sensor of energy is: a counter of joules, or a power in watts that becomes one by being sampled."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vitdeploy.machine.probe import read_text

Clock = Callable[[], float]


class Facts(NamedTuple):
    """What a sensor is, in words.

    name            of the sensor, e.g. `RAPL package-0`
    covers          the parts of the machine whose energy it tells
    label           the parts in a word: `cpu`, `gpu` or `board`
    update_seconds  how often it has a new value
    """

    name: str
    covers: str
    label: str
    update_seconds: float


class Unreadable(NamedTuple):
    """A sensor that is there and may not be read: what and why, and what to type."""

    what: str
    why: str
    fix: str


class Reading(NamedTuple):
    """Joules that are known to have been spent, and how often it was not known what had been."""

    joules: float
    gaps: int


class Sensor(ABC):
    """Adds up joules; `read` is called by the thread that samples and by the one that measures."""

    def __init__(self, facts: Facts, poll_seconds: float, clock: Clock = time.perf_counter) -> None:
        self.facts, self.poll_seconds = facts, poll_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._joules, self._gaps = 0.0, 0

    def read(self) -> Reading:
        """The energy until now."""
        with self._lock:
            added = self._advance()
            if added is None:
                self._gaps += 1
            else:
                self._joules += added
            return Reading(self._joules, self._gaps)

    def close(self) -> None:  # noqa: B027 - most sensors are files, which are opened for each reading
        """Ends what the sensor keeps open."""

    @abstractmethod
    def _advance(self) -> float | None:
        """Joules since the last call; None where that is not known, as in the first call and after one that failed."""


class Counters(Sensor):
    """Counters of energy, in joules, each with the value after which it begins at 0 again (None where unknown).

    Between two readings a counter wraps around once at most, so they are read every second.
    """

    POLL_SECONDS = 1.0

    def __init__(
        self, facts: Facts, values: Callable[[], Sequence[float] | None], ranges: Sequence[float | None]
    ) -> None:
        super().__init__(facts, self.POLL_SECONDS)
        self._values, self._ranges = values, ranges
        self._last: Sequence[float] | None = None

    def _advance(self) -> float | None:
        now, last = self._values(), self._last
        self._last = now
        if now is None or last is None:
            return None
        added = 0.0
        for before, after, end in zip(last, now, self._ranges, strict=True):
            if after >= before:
                added += after - before
            elif end is not None and before <= end:
                added += after - before + end
            else:
                return None  # it was reset
        return added


class Power(Sensor):
    """A power in watts, integrated by the trapezoidal rule over the times at which it is sampled."""

    def __init__(self, facts: Facts, watts: Callable[[], float | None], clock: Clock = time.perf_counter) -> None:
        super().__init__(facts, min(1.0, max(0.02, facts.update_seconds / 2)), clock)
        self._watts = watts
        self._last: tuple[float, float] | None = None

    def _advance(self) -> float | None:
        watts, last = self._watts(), self._last
        now = self._clock()
        self._last = None if watts is None else (now, watts)
        return None if watts is None or last is None else (now - last[0]) * (watts + last[1]) / 2


def number(path: Path) -> float | None:
    """The whole number in a file of the system; None where there is none."""
    text = read_text(path).strip()
    # What a driver cannot read it may report as an absurd value, and Python's digits are more than the kernel's.
    return float(text) if text.isascii() and text.isdigit() and len(text) < 25 else None


def denied(paths: Iterable[Path]) -> list[Path]:
    """The files that are there and that this user may not read."""
    found = []
    for path in paths:
        try:
            path.read_bytes()
        except PermissionError:
            found.append(path)
        except OSError:
            continue
    return found


def unreadable(what: str, files: Sequence[Path], why: str) -> Unreadable:
    """The finding for files that only root may read, with the command that opens them until the next start."""
    return Unreadable(what, why, f"sudo chmod a+r {' '.join(map(str, files))}")
