"""The report of an accuracy check, as numbers, a table and JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Dataset
from vitdeploy.statistics import Paired, best_class, confusion, json_number, pair, ranks, snr_db
from vitdeploy.table import render

Array = NDArray[Any]
Integers = NDArray[np.int64]

# Flipped images that the table names for each run; JSON has all of them.
SHOWN_FLIPS = 5


@dataclass(frozen=True)
class ImageSet:
    """The images that all runs classified.

    dataset, indices  the images
    targets           class number of each, int64 [N]
    classes           names of all classes of the network
    sha256            of the images' hashes and classes, whatever their order
    """

    dataset: Dataset
    indices: Sequence[int]
    targets: Integers
    classes: tuple[str, ...]
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.dataset.where,
            "sha256": self.sha256,
            "images": len(self.indices),
            "of": len(self.dataset),
            "classes": len(np.unique(self.targets)),
        }


@dataclass(frozen=True)
class Answers:
    """One run's logits, float32 [N, classes], and the accuracies computed from them, in percent.

    name   in words: `lemevit-int8 on openvino`
    facts  what ran, see `Session.describe`
    """

    name: str
    facts: Mapping[str, Any]
    logits: Array = field(repr=False)
    targets: Integers = field(repr=False)

    @cached_property
    def chosen(self) -> Integers:
        """The best class of each image; -1 where logits are not finite."""
        return best_class(self.logits)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which images are classified correctly."""
        right: NDArray[np.bool_] = self.chosen == self.targets
        return right

    @property
    def top1(self) -> float:
        """Images whose best class is the right one."""
        return 100 * float(self.right.mean())

    @property
    def top5(self) -> float | None:
        """Images whose right class is among the best five; None for five classes or fewer."""
        return 100 * float((ranks(self.logits, self.targets) < 5).mean()) if self.logits.shape[1] > 5 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            **self.facts,
            "top1": self.top1,
            "top5": self.top5,
            "not_finite": int((self.chosen < 0).sum()),
        }


@dataclass(frozen=True)
class Comparison:
    """A run against the baseline on the same images."""

    answers: Answers
    baseline: Answers

    @cached_property
    def paired(self) -> Paired:
        """Images that were lost and won, the drop in points, its interval and McNemar's p-value."""
        return pair(self.baseline.right, self.answers.right)

    @cached_property
    def agreement(self) -> float:
        """Images, in percent, with the same best class as the baseline."""
        return 100 * float((self.answers.chosen == self.baseline.chosen).mean())

    @cached_property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of the logits against the baseline's, in dB."""
        return snr_db(self.baseline.logits, self.answers.logits)

    @cached_property
    def flipped(self) -> list[int]:
        """Positions of the images whose best class differs from the baseline's."""
        found: list[int] = np.flatnonzero(self.answers.chosen != self.baseline.chosen).tolist()
        return found

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Of each class in DATA: its images, both accuracies in percent and the drop in points."""
        size = len(classes)
        before, after = (confusion(a.targets, a.chosen, size).diagonal() for a in (self.baseline, self.answers))
        totals = np.bincount(self.baseline.targets, minlength=size)
        return [
            {
                "class": classes[kind],
                "images": int(totals[kind]),
                "baseline_top1": 100 * float(before[kind] / totals[kind]),
                "top1": 100 * float(after[kind] / totals[kind]),
                "drop": 100 * float((before[kind] - after[kind]) / totals[kind]),
            }
            for kind in np.flatnonzero(totals).tolist()
        ]

    def measures(self) -> dict[str, Any]:
        """The measures as JSON values; accuracies in percent, drops in points; what is not finite is null."""
        paired = self.paired
        low, high = paired.interval()
        return {
            "top1": self.answers.top1,
            "top5": self.answers.top5,
            "drop": paired.drop,
            "drop_low": low,
            "drop_high": high,
            "p_value": paired.p_value(),
            "lost": paired.lost,
            "won": paired.won,
            "agreement": self.agreement,
            "snr_db": json_number(self.snr_db),
        }

    def to_dict(self, images: ImageSet) -> dict[str, Any]:
        """JSON values; a flipped image has the logits, before and after, of its label and of both best classes."""
        return {
            **self.answers.to_dict(),
            **self.measures(),
            "per_class": self.per_class(images.classes),
            "flipped": [self.flip(position, images) for position in self.flipped],
        }

    def flip(self, position: int, images: ImageSet) -> dict[str, Any]:
        """One flipped image as JSON values."""
        label, before, after = (
            int(column[position]) for column in (images.targets, self.baseline.chosen, self.answers.chosen)
        )
        names = (*images.classes, "not finite")
        return {
            "image": images.dataset.names[images.indices[position]],
            "label": names[label],
            "baseline": names[before],
            "run": names[after],
            "logits": {
                names[kind]: [json_number(a.logits[position, kind]) for a in (self.baseline, self.answers)]
                for kind in dict.fromkeys((label, before, after))
                if kind >= 0
            },
        }


@dataclass(frozen=True)
class AccuracyReport:
    """What `validate` found; `str()` is a table.

    baseline  the FP32 results that the others are compared with; `kind` describes them in words
    problems  what is wrong with the baseline, in words
    runs      every other bundle and runtime, compared with the baseline
    skipped   of `all` runtimes those that could not run a bundle, each with the reason
    max_drop  the gate in points, or None
    """

    images: ImageSet
    baseline: Answers
    kind: str
    problems: tuple[str, ...]
    runs: tuple[Comparison, ...]
    skipped: tuple[Mapping[str, str], ...] = ()
    max_drop: float | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Everything that fails, in words."""
        found = [f"the baseline is broken: {problem}" for problem in self.problems]
        for run in self.runs:
            if broken := int((run.answers.chosen < 0).sum()):
                found.append(f"{run.answers.name} gives NaN or Inf on {broken} images")
            if self.max_drop is not None and run.paired.drop > self.max_drop:
                found.append(f"{run.answers.name} drops {run.paired.drop:.2f} points, allowed are {self.max_drop:g}")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether the baseline is sound and every run is within the gate."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "data": self.images.to_dict(),
            "baseline": {"kind": self.kind, **self.baseline.to_dict(), "problems": list(self.problems)},
            "max_drop": self.max_drop,
            "runs": [run.to_dict(self.images) for run in self.runs],
            "skipped": [dict(skip) for skip in self.skipped],
        }

    def __str__(self) -> str:
        return format_report(self)


def format_report(report: AccuracyReport) -> str:
    """The report as text: what was compared, a line for each run, the flipped images, and whether the gate passed."""
    images, baseline = report.images, report.baseline
    lines = [
        f"{len(images.indices)} of {len(images.dataset)} images of {images.dataset.where}",
        f"baseline  {report.kind}: {_accuracies(baseline)}",
        *(f"BASELINE BROKEN: {problem}" for problem in report.problems),
        "",
    ]
    header = ("", "top-1 %", "top-5 %", "drop, points", "95 % interval", "p", "agreement %", "SNR dB", "flipped")
    rows = [_row(run) for run in report.runs]
    lines.append(render(rows, header=header, align="<" * len(header), rule=False))
    lines += [f"left out: {skip['bundle']} on {skip['runtime']}: {skip['reason']}" for skip in report.skipped]
    for run in report.runs:
        lines += _details(run, report)
    verdict = [f"FAILED: {failure}" for failure in report.failures[len(report.problems) :]]
    if report.problems:
        verdict.insert(0, "FAILED: the baseline is broken, see above")
    if report.passed and report.max_drop is not None:
        verdict = [f"passed: no drop is above {report.max_drop:g} points"]
    return "\n".join([*lines, "", *verdict] if verdict else lines)


def _details(run: Comparison, report: AccuracyReport) -> list[str]:
    lines = []
    worst = max(run.per_class(report.images.classes), key=lambda one: float(one["drop"]))
    if worst["drop"] > 0:
        lines.append(f"most lost: {worst['class']}, {worst['drop']:.2f} points of {worst['images']} images")
    flipped = run.flipped
    for position in flipped[:SHOWN_FLIPS]:
        one = run.flip(position, report.images)
        lines.append(f"flipped: {one['image']} ({one['label']}) from {one['baseline']} to {one['run']}")
    if len(flipped) > SHOWN_FLIPS:
        lines.append(f"and {len(flipped) - SHOWN_FLIPS} more, see --json or --report")
    high = run.paired.interval()[1]
    if report.max_drop is not None and run.paired.drop <= report.max_drop < high:
        lines.append(f"within the gate, but the drop may be up to {high:.2f} points: more images would tell")
    return ["", run.answers.name, *(f"  {line}" for line in lines)] if lines else []


def _row(run: Comparison) -> tuple[str, ...]:
    paired = run.paired
    low, high = paired.interval()
    p = paired.p_value()
    return (
        run.answers.name,
        f"{run.answers.top1:.2f}",
        _percent(run.answers.top5),
        f"{paired.drop:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{p:.3f}" if p >= 0.001 else "<0.001",
        f"{run.agreement:.2f}",
        f"{run.snr_db:.1f}",
        f"{len(run.flipped)} (lost {paired.lost}, won {paired.won})",
    )


def _accuracies(answers: Answers) -> str:
    top5 = answers.top5
    return f"top-1 {answers.top1:.2f} %" + ("" if top5 is None else f", top-5 {top5:.2f} %")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
