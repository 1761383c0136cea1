"""What was measured of one candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from vitdeploy.statistics import CONFIDENCE, median_interval

PERCENTILES = (50, 90, 95, 99)


class Turn(NamedTuple):
    """What a candidate did in one round: seconds of each call, seconds from the first to the last, and memory so far.

    The memory is the largest resident set of its process in bytes, see `vitdeploy.latency.worker.peak_memory`.
    `watts` is what the machine drew meanwhile by each of its sensors, None for one that did not tell.
    """

    seconds: Sequence[float]
    wall_seconds: float
    peak_bytes: int | None
    watts: Sequence[float | None] = ()


class Energy(NamedTuple):
    """Energy of an image by one sensor, in joules, with the 95 % interval (None for too few rounds), and mean watts.

    It is what the machine draws meanwhile, with what it draws when idle and what other processes cause.
    """

    joules_per_image: float
    low: float | None
    high: float | None
    watts: float


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
    gpu_memory_bytes    memory of discrete GPUs that its process had at the end; None where the driver does not tell
    """

    model: str
    precision: str
    load_seconds: float
    first_call_seconds: float
    rounds: Sequence[Turn]
    gpu_memory_bytes: int | None = None

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

    def energy(self, sensor: int) -> Energy | None:
        """What the sensor of this number tells, by the median of the rounds; None where it told nothing."""
        told = [(each, watts) for each in self.rounds if (watts := each.watts[sensor]) is not None]
        if not told:
            return None
        joules = [watts * each.wall_seconds / (len(each.seconds) * self.batch) for each, watts in told]
        low, high = median_interval(joules, CONFIDENCE)
        return Energy(median(joules), low, high, median(watts for _, watts in told))

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
            "gpu_memory_bytes": self.gpu_memory_bytes,
            "calls": len(self.seconds),
            "latency_ms": self.latency_ms(),
            "images_per_second": self.images_per_second,
            "image_seconds": self.image_seconds,
        }
