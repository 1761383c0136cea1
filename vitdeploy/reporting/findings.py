"""What a page shows, whatever it was read from: runs against the baseline, speeds, layers, and what was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Numbers = Sequence[float]


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval; None for what is not known or not finite."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Key(NamedTuple):
    """A bundle, by the name that the page calls it, on a runtime."""

    bundle: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.bundle} on {self.runtime}"


class ClassLoss(NamedTuple):
    """One class: its images or pixels, and the figure before and after in percent, with the drop in points."""

    name: str
    size: int
    before: float | None
    after: float | None
    drop: float | None


# What becomes of an image whose answer changes, the worst first.
KINDS = ("lost", "won", "wrong either way")


@dataclass(frozen=True)
class Flip:
    """An image whose best class changed."""

    image: str
    label: str
    before: str
    after: str

    @property
    def kind(self) -> str:
        """What became of the image: lost, won, or wrong either way."""
        return KINDS[0 if self.before == self.label else 1 if self.after == self.label else 2]


class Confusion(NamedTuple):
    """Images by right class (rows) and chosen class (columns), and the change from the baseline."""

    classes: Sequence[str]
    counts: Sequence[Sequence[int]]
    change: Sequence[Sequence[int]]
    of: int


@dataclass(frozen=True)
class Loss:
    """A run against the baseline.

    key          the run
    figure       what the task judges, in the unit of `Accuracy.figure`; None where it is not one number
    drop         in `Accuracy.unit`
    agreement    in percent, None where the task has none
    flips        the images whose best class changed, lost ones first; None for tasks without them
    changed      lines about the images that changed most, of tasks without flips
    """

    key: Key
    figure: float | None
    drop: Interval
    agreement: float | None = None
    snr_db: float | None = None
    per_class: Sequence[ClassLoss] = ()
    flips: Sequence[Flip] | None = None
    confusion: Confusion | None = None
    changed: Sequence[str] = ()


@dataclass(frozen=True)
class Accuracy:
    """What `validate` found.

    task          classification, segmentation, features or metric
    figure, unit  the name of what is judged, and the unit of its drop
    counted       what a class is counted in: images or pixels
    data          the images in words, without the folder that they are in
    baseline      in words; `before` is its figure
    problems      what is wrong with the baseline or fails, in words
    pictures      `data:` addresses of images that flipped, by their names
    """

    task: str
    figure: str
    unit: str
    counted: str
    data: str
    baseline: str
    before: float | None
    baseline_key: Key | None
    problems: Sequence[str]
    runs: Sequence[Loss]
    skipped: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)

    def flipped_images(self, most: int) -> list[str]:
        """At most so many of the images that flipped in any run: of every run those that it lost, then the others."""
        flips = [flip for run in self.runs for flip in run.flips or ()]
        return list(dict.fromkeys(flip.image for flip in sorted(flips, key=lambda one: KINDS.index(one.kind))))[:most]


@dataclass(frozen=True)
class Speed:
    """What `benchmark` measured of a candidate.

    latency     milliseconds of a call: min, mean, max, p50, p90, p95, p99; only those that are known
    rounds      milliseconds of the median call of each round
    image_ms    milliseconds per image in each round
    ratio       time per image over that of the FP32 bundle on the same runtime; None without one
    """

    key: Key
    batch: int
    precision: str
    latency: Mapping[str, float]
    rounds: Numbers
    image_ms: Numbers
    images_per_second: float | None
    peak_bytes: float | None
    settings: Mapping[str, Any]
    ratio: Interval | None = None

    @property
    def name(self) -> str:
        """The candidate in words; the batch where it is not 1."""
        return str(self.key) if self.batch == 1 else f"{self.key}, batch {self.batch}"


@dataclass(frozen=True)
class Latency:
    """What `benchmark` found: the candidates, the machine with its settings, and what disturbs the measurement."""

    created: str
    rounds: int
    candidates: Sequence[Speed]
    machine: Mapping[str, Any]
    notes: Sequence[str] = ()
    skipped: Sequence[str] = ()


class Cost(NamedTuple):
    """What `sensitivity` found of a layer or a block alone in the low precision.

    share  of the noise of all, 0 to 1; None where it makes none, or its noise is not known
    saved  milliseconds of a call
    """

    name: str
    block: str
    snr_db: float | None
    share: float | None
    drop: Interval
    saved: Interval
    reason: str


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` found of all parts: layers, or blocks where `by_block`; `told` are sentences about all."""

    precision: str
    by_block: bool
    costs: Sequence[Cost]
    told: Sequence[str]


class Tried(NamedTuple):
    """A plan that `optimize` tried: milliseconds, time over FP32, what it lost, and whether nothing dominates it."""

    name: str
    runtime: str
    precision: str
    milliseconds: float | None
    ratio: Interval
    drop: Interval
    snr_db: float | None
    megabytes: float | None
    front: bool
    by: str


@dataclass(frozen=True)
class Findings:
    """All that a page shows; None for what was neither measured nor given.

    precisions  of the bundles by their names
    sizes       bytes of the model that a runtime reads, by the same
    words       the bundles as one types them, for the commands on the page
    """

    precisions: Mapping[str, str]
    sizes: Mapping[str, int]
    words: str
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    sensitivity: Sensitivity | None = None
    tried: Sequence[Tried] | None = None

    @property
    def keys(self) -> list[Key]:
        """Every bundle on every runtime that anything is known of."""
        timed = [] if self.latency is None else [one.key for one in self.latency.candidates]
        judged = [] if self.accuracy is None else [run.key for run in self.accuracy.runs]
        return list(dict.fromkeys([*timed, *judged]))

    def loss(self, key: Key) -> Loss | None:
        """What a run lost; that of the baseline itself is nothing."""
        if self.accuracy is None:
            return None
        if key == self.accuracy.baseline_key:
            return Loss(key, self.accuracy.before, Interval(0.0))
        return next((run for run in self.accuracy.runs if run.key == key), None)

    def speeds(self, key: Key) -> list[Speed]:
        """What was measured of a run, by batch."""
        return [] if self.latency is None else [one for one in self.latency.candidates if one.key == key]

    def speed(self, key: Key) -> Speed | None:
        """Of the smallest batch."""
        return min(self.speeds(key), key=lambda one: one.batch, default=None)

    def precision(self, key: Key) -> str:
        """`INT8`, from the bundle or from what measured it; empty where neither says so."""
        known = self.precisions.get(key.bundle)
        speed = self.speed(key)
        return (known or (speed.precision if speed else "")).upper()
