"""One set of class scores against another, as numbers and JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.statistics import Paired, best_class, confusion, json_number, pair, ranks, snr_db
from vitdeploy.tasks import task
from vitdeploy.tasks.classification.plots import plots

Array = NDArray[Any]
Integers = NDArray[np.int64]

# Of the FP32 accuracy, in permille: what the tasks of MLPerf Inference's edge suite have to keep, 99 % in image
# classification, 99 % or 99.9 % in segmentation ("MLPerf Inference Rules", section "Benchmarks",
# github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc).
MLPERF_LEVELS = (990, 999)

# Flipped images that the table names for each run; JSON has all of them.
SHOWN_FLIPS = 5


class Level(NamedTuple):
    """A part of the baseline's top-1 that a run may have to keep.

    percent  of the baseline's top-1
    needed   top-1 that this is, in percent
    met      whether the run has it
    """

    percent: float
    needed: float
    met: bool

    def __str__(self) -> str:
        return f"{self.percent:g} % of FP32 ({self.needed:.2f} %) {'met' if self.met else 'not met'}"


@dataclass(frozen=True)
class ImageSet(task.ImageSet):
    """The images that all runs classified.

    targets  class number of each, int64 [N]
    classes  names of all classes of the network
    """

    task = "classification"

    targets: Integers
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**super().to_dict(), "classes": len(np.unique(self.targets))}

    def plots(self, runs: Sequence[Any]) -> dict[str, str | Image.Image]:
        """A confusion matrix and a sheet of the flipped images of every run."""
        return plots(runs, self)

    def arrays(self, answers: Sequence[Any]) -> tuple[str, dict[str, Array]]:
        """`images` (names), `labels` (class numbers), `classes`, `runs` and `logits` [1 + runs, images, classes]."""
        return "logits.npz", {
            "images": np.array(self.names()),
            "labels": self.targets,
            "classes": np.array(self.classes),
            "runs": np.array([one.name for one in answers]),
            "logits": np.stack([one.logits for one in answers]),
        }


@dataclass(frozen=True)
class Answers(task.Answers):
    """One run's logits, float32 [N, classes], and the accuracies computed from them, in percent."""

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

    @property
    def not_finite(self) -> int:
        """Images whose logits have NaN or Inf."""
        return int((self.chosen < 0).sum())

    def figures(self) -> dict[str, Any]:
        """Both accuracies."""
        return {"top1": self.top1, "top5": self.top5}

    def judged(self) -> dict[str, Any]:
        """Top-1."""
        return {"top1": self.top1}

    def summary(self) -> str:
        """`top-1 93.60 %, top-5 99.80 %`."""
        return f"top-1 {self.top1:.2f} %" + ("" if self.top5 is None else f", top-5 {self.top5:.2f} %")


@dataclass(frozen=True)
class Comparison(task.Comparison):
    """A run against the baseline on the same images."""

    HEADER = ("", "top-1 %", "top-5 %", "drop, points", "95 % interval", "p", "agreement %", "SNR dB", "flipped")

    answers: Answers
    baseline: Answers

    @cached_property
    def paired(self) -> Paired:
        """Images that were lost and won, the drop in points, its interval and McNemar's p-value."""
        return pair(self.baseline.right, self.answers.right)

    @property
    def drop(self) -> float:
        """Points of top-1 that are lost."""
        return self.paired.drop

    def interval(self) -> tuple[float, float]:
        """Tango's score interval of the drop."""
        return self.paired.interval()

    @property
    def mlperf(self) -> tuple[Level, ...]:
        """Whether the run keeps the accuracy that MLPerf asks for in its edge suite."""
        before, after = int(self.baseline.right.sum()), int(self.answers.right.sum())
        return tuple(
            Level(level / 10, level / 1000 * self.baseline.top1, before > 0 and 1000 * after >= level * before)
            for level in MLPERF_LEVELS
        )

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

    def lines(self) -> list[tuple[str, ...]]:
        """One line: accuracies, what was lost, and how sure that is."""
        low, high = self.interval()
        p = self.paired.p_value()
        top5 = self.answers.top5
        return [
            (
                self.answers.name,
                f"{self.answers.top1:.2f}",
                "-" if top5 is None else f"{top5:.2f}",
                f"{self.drop:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{p:.3f}" if p >= 0.001 else "<0.001",
                f"{self.agreement:.2f}",
                f"{self.snr_db:.1f}",
                f"{len(self.flipped)} (lost {self.paired.lost}, won {self.paired.won})",
            )
        ]

    def details(self, images: ImageSet) -> list[str]:
        """MLPerf's levels, the class that lost most, and some of the flipped images."""
        found = [f"MLPerf edge: {'; '.join(map(str, self.mlperf))}"]
        worst = max(self.per_class(images.classes), key=lambda one: float(one["drop"]))
        if worst["drop"] > 0:
            found.append(f"most lost: {worst['class']}, {worst['drop']:.2f} points of {worst['images']} images")
        for position in self.flipped[:SHOWN_FLIPS]:
            one = self.flip(position, images)
            found.append(f"flipped: {one['image']} ({one['label']}) from {one['baseline']} to {one['run']}")
        if len(self.flipped) > SHOWN_FLIPS:
            found.append(f"and {len(self.flipped) - SHOWN_FLIPS} more, see --json or --report")
        return found

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
            "mlperf": [{"percent": one.percent, "top1_needed": one.needed, "met": one.met} for one in self.mlperf],
            "agreement": self.agreement,
            "snr_db": json_number(self.snr_db),
        }

    def to_dict(self, images: ImageSet) -> dict[str, Any]:
        """JSON values; a flipped image has the logits, before and after, of its label and of both best classes."""
        return {
            **super().to_dict(images),
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
