"""What `optimize` found: the front that was measured at the end, and the bundle that meets what was asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.errors import UsageError
from vitdeploy.search.front import covered, front
from vitdeploy.search.plan import GREEDY, INT8, OPTUNA, Plan, Trial
from vitdeploy.statistics import Ratio, json_number
from vitdeploy.table import render

SCHEMA_VERSION = 1
# Where what a search covers ends: the time of FP32, and the ratio to noise that INT8 has to have.
CORNER = (1.0, -20.0)


@dataclass(frozen=True)
class Wish:
    """What the deployed bundle has to keep; None where it is left open.

    max_drop   points of top-1 that may be lost
    latency    milliseconds of a call, in the median
    megabytes  of the model
    """

    max_drop: float | None = None
    latency: float | None = None
    megabytes: float | None = None

    def check(self) -> None:
        """Raises UsageError for a bound that is none."""
        for name, bound in (("max-drop", self.max_drop), ("latency", self.latency), ("size", self.megabytes)):
            if bound is not None and not 0 <= bound < math.inf:
                raise UsageError(f"invalid --{name} {bound:g}: expected a number of 0 or more", fix=f"--{name} 1")

    def misses(self, point: Point) -> list[str]:
        """What a bundle does not keep, in words."""
        found = []
        if self.max_drop is not None and not (point.drop is not None and point.drop <= self.max_drop):
            lost = "an unknown number of" if point.drop is None else f"{point.drop:.2f}"
            found.append(f"it drops {lost} points, allowed are {self.max_drop:g}")
        if self.latency is not None and point.milliseconds > self.latency:
            found.append(f"it takes {point.milliseconds:.2f} ms, allowed are {self.latency:g}")
        if self.megabytes is not None and point.megabytes > self.megabytes:
            found.append(f"it has {point.megabytes:.1f} MB, allowed are {self.megabytes:g}")
        return found


@dataclass(frozen=True)
class Point:
    """A bundle that was verified and measured.

    ratio                   of its time to that of FP32, in turns
    drop, drop_low, _high   points of top-1 against FP32 on all images, with the 95 % interval; None without labels
    """

    path: Path
    plan: Plan
    by: str
    milliseconds: float
    ratio: Ratio
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    snr_db: float | None
    megabytes: float

    @property
    def loss(self) -> float:
        """What counts as accuracy: the points lost, or where nothing has labels the noise in dB."""
        return self.drop if self.drop is not None else -(self.snr_db or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.path.name,
            "path": str(self.path),
            "plan": self.plan.to_dict(),
            "precision": self.plan.precision,
            "by": self.by,
            "milliseconds": self.milliseconds,
            "ratio": self.ratio.value,
            "ratio_low": self.ratio.low,
            "ratio_high": self.ratio.high,
            "drop": json_number(self.drop),
            "drop_low": json_number(self.drop_low),
            "drop_high": json_number(self.drop_high),
            "snr_db": json_number(self.snr_db, 2),
            "megabytes": round(self.megabytes, 3),
        }


@dataclass(frozen=True)
class OptimizeReport:
    """What was found; `str()` is a table.

    Attributes:
        points: Every bundle that was written, fastest first.
        trials: All plans that were tried on the way there.
        wish: What was asked.
        runtime: What everything was measured on, with its version and the processor.
        images: How many images judged the trials, and how many the bundles.
        notes: What was not tried, and why.
    """

    points: Sequence[Point]
    trials: Sequence[Trial]
    wish: Wish
    runtime: Mapping[str, Any]
    images: Mapping[str, int]
    notes: Sequence[str] = ()

    @property
    def front(self) -> list[Point]:
        """The points that no other beats in both speed and accuracy."""
        return front(self.points, lambda point: (point.ratio.value, point.loss))

    @property
    def chosen(self) -> Point | None:
        """The fastest point that keeps all that was asked."""
        able = [point for point in self.points if not self.wish.misses(point)]
        return min(able, key=lambda point: point.ratio.value, default=None)

    @property
    def passed(self) -> bool:
        """Whether there is one."""
        return self.chosen is not None

    @property
    def searches(self) -> dict[str, dict[str, Any]]:
        """How many plans in INT8 each search tried, how many of them are on the front of all, and what they cover."""
        tried = [trial for trial in self.trials if trial.plan.precision == INT8]
        best = front(tried, lambda trial: trial.values)
        return {
            by: {
                "trials": sum(trial.by == by for trial in tried),
                "on_front": sum(trial.by == by for trial in best),
                "covered": round(covered([trial.values for trial in tried if trial.by == by], CORNER), 4),
            }
            for by in (GREEDY, OPTUNA)
        }

    @property
    def verdict(self) -> str:
        """In one sentence."""
        chosen = self.chosen
        if chosen is None:
            nearest = min(self.points, key=lambda point: len(self.wish.misses(point)))
            return f"nothing that was tried keeps what was asked; nearest is {nearest.path}: " + "; ".join(
                self.wish.misses(nearest)
            )
        if chosen.plan.is_baseline:
            why = "nothing that keeps what was asked is faster" if len(self.points) > 1 else "nothing is faster"
            return f"{chosen.path} in FP32: {why} on {self.runtime['backend']} here"
        speed = f"x{1 / chosen.ratio.value:.2f} as fast as FP32"
        drop = "" if chosen.drop is None else f", {chosen.drop:.2f} points lost{_interval(chosen)}"
        hint = chosen.plan.compute_precision
        computed = "" if hint is None else f" computed in {hint}"
        built = f" built with {chosen.plan.building}" if chosen.plan.build else ""
        return f"{chosen.path}{computed}{built}: {speed}{drop}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        best, chosen = self.front, self.chosen
        return {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "verdict": self.verdict,
            "chosen": None if chosen is None else str(chosen.path),
            "wish": {
                "max_drop": self.wish.max_drop,
                "latency_ms": self.wish.latency,
                "megabytes": self.wish.megabytes,
            },
            "runtime": dict(self.runtime),
            "images": dict(self.images),
            "points": [
                {**point.to_dict(), "runtime": self.runtime["backend"], "front": point in best} for point in self.points
            ],
            "trials": [trial.to_dict() for trial in self.trials],
            "searches": self.searches,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        best, chosen = self.front, self.chosen
        header = ("", "bundle", "plan", "ms", "time", "drop, points", "95 % interval", "SNR dB", "MB", "found by")
        rows = [
            (
                "->" if point == chosen else "*" if point in best else "",
                point.path.name,
                _plan(point.plan),
                f"{point.milliseconds:.2f}",
                f"x{point.ratio.value:.3f}",
                "-" if point.drop is None else f"{point.drop:.2f}",
                _interval(point).strip(" ()") or "-",
                "-" if point.snr_db is None else f"{point.snr_db:.1f}",
                f"{point.megabytes:.1f}",
                point.by,
            )
            for point in self.points
        ]
        table = render(rows, header=header, align="<<<>><<>><", rule=False)
        tried = ", ".join(
            f"{by} {found['trials']} plans, {found['on_front']} on the front, covering {found['covered']:.3f}"
            for by, found in self.searches.items()
            if found["trials"]
        )
        notes = [*([f"INT8 searched: {tried}"] if tried else []), *self.notes]
        legend = "->  chosen   *  on the front   time: over that of FP32, in turns"
        return "\n".join([table, legend, "", *notes, self.verdict])


def _plan(plan: Plan) -> str:
    groups = f", {len(plan.floats)} groups in float" if plan.floats else ""
    return plan.label + groups


def _interval(point: Point) -> str:
    if point.drop_low is None or point.drop_high is None:
        return ""
    return f" ({point.drop_low:.2f} to {point.drop_high:.2f})"
