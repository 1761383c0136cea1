"""What `validate` found, as JSON and as text: what was compared, a line for each run, and whether the gate passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitdeploy.accuracy.comparison import Answers, Comparison, ImageSet
from vitdeploy.table import render

# Flipped images that the table names for each run; JSON has all of them.
SHOWN_FLIPS = 5


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
            if self.max_drop is not None and not run.paired.drop <= self.max_drop:
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
    lines = [f"MLPerf edge: {'; '.join(map(str, run.mlperf))}"]
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
    return ["", run.answers.name, *(f"  {line}" for line in lines)]


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
