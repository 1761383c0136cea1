"""A benchmark as a table for people, JSON and CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vitdeploy.junit import Case
from vitdeploy.latency import energy
from vitdeploy.latency.baseline import SCHEMA_VERSION
from vitdeploy.latency.energy import EnergySensor
from vitdeploy.latency.measurement import PERCENTILES, Measurement
from vitdeploy.statistics import Ratio
from vitdeploy.table import render

COLUMNS = ("p50 ms", "p90", "p95", "p99", "images/s", "load s", "first call ms", "peak MB", "calls")


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class BenchmarkReport:
    """What `benchmark` measured; `str()` is a table.

    Attributes:
        measurements: One for each candidate.
        ratios: Time per image of each over that of its baseline; None for a candidate without a baseline.
        baseline: The baseline in words.
        differences: Settings in which an earlier run differed, in words.
        machine: Settings of the machine, see `vitdeploy.machine.settings.machine_settings`.
        before: Temperatures and load, see `machine_conditions`.
        after: Temperatures and load, see `machine_conditions`.
        changed: Settings of the machine that changed while it measured, in words.
        skipped: `bundle`, `runtime` and `reason` of every candidate that could not run.
        interrupted: Whether the run was interrupted before its end.
        sensors: The sensors of energy that could be read, and what they told before the run.
        turn_seconds: How long a turn lasted about.
        max_slowdown: The gate: how many times the time of its baseline a candidate may take, or None.
        created: When it was measured: UTC, ISO 8601.
    """

    measurements: Sequence[Measurement]
    ratios: Sequence[Ratio | None]
    baseline: str | None
    differences: Sequence[str]
    machine: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    changed: Sequence[str]
    skipped: Sequence[Mapping[str, str]]
    interrupted: bool = False
    sensors: Sequence[EnergySensor] = ()
    turn_seconds: float | None = None
    max_slowdown: float | None = None
    created: str = field(default_factory=_now)

    @property
    def failures(self) -> tuple[str, ...]:
        """Candidates that are certainly slower than the gate allows, or cannot be judged, in words."""
        return tuple(case.failure for case in self.cases() if case.failure is not None)

    @property
    def passed(self) -> bool:
        """Whether every candidate is within the gate, as far as the rounds can tell; True without a gate."""
        return not self.failures

    def cases(self) -> list[Case]:
        """What every candidate had to pass, for a report of tests."""
        gate = "runs" if self.max_slowdown is None else f"takes at most {self.max_slowdown:g} times the baseline"
        judged = [
            Case(label, gate, self._too_slow(label, ratio))
            for label, ratio in zip(self.labels(), self.ratios, strict=True)
        ]
        skips = ((f"{Path(skip['bundle']).name} on {skip['runtime']}", skip["reason"]) for skip in self.skipped)
        return judged + [Case(name, gate, skipped=reason) for name, reason in skips]

    def _too_slow(self, label: str, ratio: Ratio | None) -> str | None:
        if self.max_slowdown is None:
            return None
        if ratio is None:
            return f"{label} cannot be judged: {self.baseline} has no candidate of this runtime and batch"
        if ratio.low is None:
            rounds = len(self.measurements[0].rounds)
            return f"{label} cannot be judged: {rounds} rounds, or those of the baseline, are too few for an interval"
        if ratio.low <= self.max_slowdown:
            return None
        interval = f"{ratio.value:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"
        return f"{label} takes {interval} times {self.baseline}, allowed are {self.max_slowdown:g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which a later `benchmark` accepts as its baseline."""
        from vitdeploy import __version__

        return {
            "schema_version": SCHEMA_VERSION,
            "created": self.created,
            "vitdeploy": __version__,
            "interrupted": self.interrupted,
            "rounds": len(self.measurements[0].rounds),
            "machine": {
                "settings": dict(self.machine),
                "before": dict(self.before),
                "after": dict(self.after),
                "changed": list(self.changed),
                "energy_sensors": [one._asdict() for one in self.sensors],
            },
            "baseline": self.baseline,
            "differences": list(self.differences),
            "max_slowdown": self.max_slowdown,
            "passed": self.passed,
            "failures": list(self.failures),
            "candidates": [
                {
                    **one.to_dict(),
                    "energy": energy.candidate_json(one, self.sensors),
                    "ratio": ratio._asdict() if ratio else None,
                }
                for one, ratio in zip(self.measurements, self.ratios, strict=True)
            ],
            "skipped": [dict(skip) for skip in self.skipped],
        }

    def to_csv(self) -> str:
        """A line for each candidate under a line of names; units are in the names."""
        lines = [
            _csv_line(one, ratio) | energy.csv_cells(one, self.sensors)
            for one, ratio in zip(self.measurements, self.ratios, strict=True)
        ]
        text = io.StringIO()
        writer = csv.DictWriter(text, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        return text.getvalue()

    def __str__(self) -> str:
        lines = [_in_words(self.machine), "", self._table(), "", *self._settings(), *self._notes()]
        if self.max_slowdown is not None:
            passed = f"passed: nothing certainly takes more than {self.max_slowdown:g} times {self.baseline}"
            lines += ["", *([f"FAILED: {failure}" for failure in self.failures] or [passed])]
        return "\n".join(lines)

    def labels(self) -> list[str]:
        """The candidates in words; bundles by the name of their folder, see `short_names`."""
        names = short_names([one.bundle for one in self.measurements])
        return [
            f"{name} on {one.runtime}, batch {one.batch}" for name, one in zip(names, self.measurements, strict=True)
        ]

    def _table(self) -> str:
        told = [energy.energies(one, self.sensors) for one in self.measurements]
        labels = energy.table_columns(told)
        gpu = any(one.gpu_memory_bytes is not None for one in self.measurements)
        header = ["bundle", "runtime", "batch", *COLUMNS, *(["GPU MB"] if gpu else [])]
        header += [column for label in labels for column in (f"{label} mJ/image", "W")]
        header += ["ratio"] if self.baseline else []
        rows = []
        names = short_names([one.bundle for one in self.measurements])
        for name, one, found, ratio in zip(names, self.measurements, told, self.ratios, strict=True):
            latency = one.latency_ms()
            cells = [name, one.runtime, str(one.batch), *(digits(latency[f"p{p}"]) for p in PERCENTILES)]
            cells += [digits(one.images_per_second), digits(one.load_seconds), digits(1000 * one.first_call_seconds)]
            cells += [_megabytes(one.peak_bytes), str(len(one.seconds))]
            cells += [_megabytes(one.gpu_memory_bytes)] if gpu else []
            for label in labels:
                here = found.get(label)
                cells += ["-", "-"] if here is None else [digits(1000 * here.joules_per_image), digits(here.watts)]
            rows.append(cells + ([_ratio(ratio)] if self.baseline else []))
        align = "".join("<" if name in ("bundle", "runtime", "ratio") else ">" for name in header)
        return render(rows, header=header, align=align, rule=False)

    def _settings(self) -> list[str]:
        return list(dict.fromkeys(f"{one.runtime}: {_in_words(one.settings)}" for one in self.measurements))

    def _notes(self) -> list[str]:
        rounds = len(self.measurements[0].rounds)
        notes = [f"{rounds} rounds, every candidate once a round in random order"]
        if self.interrupted:
            notes.append("INTERRUPTED: only complete rounds count")
        if any(len(one.seconds) < 100 for one in self.measurements):
            notes.append("p99 of fewer than 100 calls is close to their maximum")
        if self.baseline:
            paired = any(ratio is not None and ratio.paired for ratio in self.ratios)
            how = "median of the rounds" if paired else "medians of two runs"
            notes.append(f"ratio: time per image over {self.baseline}, {how} (95 % interval); below 1 is faster")
        notes.append(
            "peak MB: resident memory of a process that runs only this, with Python, without the memory of a GPU"
        )
        notes += energy.notes(self.sensors, self.turn_seconds or 0.0)
        for word, conditions in (("before", self.before), ("after", self.after)):
            notes.append(f"{word}: {_conditions(conditions)}")
        load = self.before["load_average"]
        if load is not None and load > self.machine["cores"] / 2:
            notes.append("THE MACHINE WAS BUSY: trust ratios more than times")
        notes += [f"changed while measuring: {text}" for text in self.changed]
        notes += [f"compared all the same: {text}" for text in self.differences]
        notes += [f"left out: {skip['bundle']} on {skip['runtime']}: {skip['reason']}" for skip in self.skipped]
        return notes


def short_names(bundles: Sequence[str]) -> list[str]:
    """The name of each bundle's folder, or its path where two folders have the same name."""
    paths = [os.path.realpath(bundle) for bundle in bundles]
    names = {path: Path(path).name for path in paths}
    clash = len(set(names.values())) < len(names)
    return [bundle if clash else names[path] for bundle, path in zip(bundles, paths, strict=True)]


def _csv_line(one: Measurement, ratio: Ratio | None) -> dict[str, Any]:
    value, low, high, paired = ratio or (None, None, None, None)
    return {
        **{key: getattr(one, key) for key in ("bundle", "model", "precision", "runtime", "batch")},
        **{
            key: one.settings.get(key)
            for key in ("version", "device", "compute_precision", "threads", "num_requests", "callers")
        },
        **{f"{name}_ms": value for name, value in one.latency_ms().items()},
        "images_per_second": one.images_per_second,
        "load_seconds": one.load_seconds,
        "first_call_seconds": one.first_call_seconds,
        "peak_memory_bytes": one.peak_bytes,
        "gpu_memory_bytes": one.gpu_memory_bytes,
        "rounds": len(one.rounds),
        "calls": len(one.seconds),
        "ratio": value,
        "ratio_low": low,
        "ratio_high": high,
        "ratio_paired": paired,
    }


def _in_words(settings: Mapping[str, Any]) -> str:
    texts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name}={one}" for name, one in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        texts.append(f"{key.replace('_', ' ')} {value}")
    return "; ".join(texts)


def _conditions(conditions: Mapping[str, Any]) -> str:
    temperatures, load = conditions["temperatures_c"], conditions["load_average"]
    hot = max(temperatures, key=temperatures.get, default=None)
    heat = "no temperature to read" if hot is None else f"{temperatures[hot]:.1f} °C ({hot})"
    return f"{heat}, load average {'unknown' if load is None else load}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.0f}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3f} (too few rounds)"
    interval = f" ({ratio.low:.3f} to {ratio.high:.3f})" if ratio.low < ratio.high else ""
    return f"{ratio.value:.3f}{interval}"


def digits(value: float) -> str:
    """At least three significant digits: 0.123, 1.23, 12.3, 1234."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
