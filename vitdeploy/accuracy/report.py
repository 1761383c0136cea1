"""What `validate` found, as JSON and as text: what was compared, a line for each run, and whether the gate passed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitdeploy.junit import Case
from vitdeploy.table import render
from vitdeploy.tasks.task import Answers, Comparison, ImageSet


@dataclass(frozen=True)
class AccuracyReport:
    """What `validate` found; `str()` is a table.

    Attributes:
        images: What was compared: the images and what is true of them.
        baseline: The FP32 results that the others are compared with; `kind` describes them in words.
        kind: The baseline in words: PyTorch with its version, or the bundle.
        problems: What is wrong with the baseline, in words.
        runs: Every other bundle and runtime, compared with the baseline.
        skipped: Those of `all` runtimes that could not run a bundle, each with the reason.
        max_drop: The gate in points, or in what the task judges, or None.
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
        judged = (failure for run in self.runs for failure in (self._not_finite(run), self._dropped(run)))
        return (*map(_broken, self.problems), *(failure for failure in judged if failure is not None))

    def cases(self) -> list[Case]:
        """The gates that the baseline and every run had to pass, for a report of tests."""
        found = [Case(self.baseline.name, "is a sound baseline", "\n".join(map(_broken, self.problems)) or None)]
        for run in self.runs:
            found.append(Case(run.answers.name, "gives finite outputs", self._not_finite(run)))
            if self.max_drop is not None:
                gate = f"drops at most {self.max_drop:g} {run.unit}"
                found.append(Case(run.answers.name, gate, self._dropped(run)))
        skips = ((f"{Path(skip['bundle']).name} on {skip['runtime']}", skip["reason"]) for skip in self.skipped)
        return found + [Case(name, "runs", skipped=reason) for name, reason in skips]

    def _not_finite(self, run: Comparison) -> str | None:
        broken = run.answers.not_finite
        return f"{run.answers.name} gives NaN or Inf on {broken} images" if broken else None

    def _dropped(self, run: Comparison) -> str | None:
        if self.max_drop is None or run.drop <= self.max_drop:
            return None
        lost = _number(run.drop, self.max_drop)
        return f"{run.answers.name} drops {lost} {run.unit}, allowed are {self.max_drop:g}"

    @property
    def passed(self) -> bool:
        """Whether the baseline is sound and every run is within the gate."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "task": self.images.task,
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
        f"baseline  {report.kind}: {baseline.summary()}",
        *(f"BASELINE BROKEN: {problem}" for problem in report.problems),
        "",
    ]
    header = report.runs[0].HEADER
    rows = [line for run in report.runs for line in run.lines()]
    lines.append(render(rows, header=header, align="<" * len(header), rule=False))
    lines += [f"left out: {skip['bundle']} on {skip['runtime']}: {skip['reason']}" for skip in report.skipped]
    for run in report.runs:
        lines += _details(run, report)
    verdict = [f"FAILED: {failure}" for failure in report.failures[len(report.problems) :]]
    if report.problems:
        verdict.insert(0, "FAILED: the baseline is broken, see above")
    if report.passed and report.max_drop is not None:
        verdict = [f"passed: no drop is above {report.max_drop:g} {report.runs[0].unit}"]
    return "\n".join([*lines, "", *verdict] if verdict else lines)


def _details(run: Comparison, report: AccuracyReport) -> list[str]:
    lines = run.details(report.images)
    interval = run.interval()
    if report.max_drop is not None and interval is not None and run.drop <= report.max_drop < interval[1]:
        high = _number(interval[1], report.max_drop)
        lines.append(f"within the gate, but the drop may be up to {high} {run.unit}: more images would tell")
    return ["", run.answers.name, *(f"  {line}" for line in lines)] if lines else []


def _broken(problem: str) -> str:
    return f"the baseline is broken: {problem}"


def _number(value: float, limit: float) -> str:
    """With two decimals, or so many more that it can be told from a limit as small as this."""
    return f"{value:.2f}" if limit >= 0.01 or (limit == 0 and abs(value) >= 0.01) else f"{value:.3g}"
