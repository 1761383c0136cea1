"""The pixels that one run gets right against those of another, as numbers and JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.statistics import bootstrap_interval, decibels, json_number
from vitdeploy.tasks import task

Array = NDArray[Any]
Floats = NDArray[np.float64]

SHOWN_CLASSES, SHOWN_IMAGES = 3, 3

# Rows of `counts`: pixels of each class that are right, that were answered, and that are in the masks.
RIGHT, ANSWERED, LABELLED = range(3)


@dataclass(frozen=True)
class ImageSet(task.ImageSet):
    """The images that all runs segmented; `classes` are the names of all classes of the network."""

    task = "segmentation"

    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**super().to_dict(), "classes": len(self.classes)}

    def arrays(self, answers: Sequence[Any]) -> tuple[str, dict[str, Array]]:
        """`images` and `runs` (names), `classes`, and `counts` [1 + runs, images, 3, classes]: pixels of each class
        that are right, that were answered, and that are in the mask.
        """
        return "pixels.npz", {
            "images": np.array(self.names()),
            "classes": np.array(self.classes),
            "runs": np.array([one.name for one in answers]),
            "counts": np.stack([one.rows["counts"] for one in answers]),
        }


@dataclass(frozen=True)
class Answers(task.Answers):
    """One run's counts of pixels, and the figures computed from them, in percent; see `Segmentation.fields`."""

    rows: task.Row = field(repr=False)

    @cached_property
    def counts(self) -> Floats:
        """Of all images together, [3, classes]."""
        total: Floats = self.rows["counts"].sum(axis=0).astype(np.float64)
        return total

    @property
    def iou(self) -> Floats:
        """Intersection over union of each class, [classes]; NaN for a class that the masks do not have."""
        return class_iou(self.counts)

    @property
    def mean_iou(self) -> float:
        """The mean of `iou` over the classes that the masks have."""
        return float(mean_iou(self.counts[None])[0])

    @property
    def pixel_accuracy(self) -> float:
        """Pixels whose class is the right one."""
        return 100 * float(self.counts[RIGHT].sum() / self.counts[LABELLED].sum())

    @property
    def not_finite(self) -> int:
        """Images whose scores have NaN or Inf."""
        return int((~self.rows["finite"]).sum())

    def figures(self) -> dict[str, Any]:
        """Both figures."""
        return {"mean_iou": self.mean_iou, "pixel_accuracy": self.pixel_accuracy}

    def judged(self) -> dict[str, Any]:
        """The mean intersection over union."""
        return {"mean_iou": self.mean_iou}

    def summary(self) -> str:
        """`mIoU 61.20 %, pixel accuracy 80.10 %`."""
        return f"mIoU {self.mean_iou:.2f} %, pixel accuracy {self.pixel_accuracy:.2f} %"


@dataclass(frozen=True)
class Comparison(task.Comparison):
    """A run against the baseline on the same images."""

    HEADER = ("", "mIoU %", "pixels %", "drop, points of mIoU", "95 % interval", "agreement %", "SNR dB")

    answers: Answers
    baseline: Answers

    @property
    def drop(self) -> float:
        """Points of the mean intersection over union that are lost."""
        return self.baseline.mean_iou - self.answers.mean_iou

    @cached_property
    def _interval(self) -> tuple[float, float]:
        before, after = (a.rows["counts"].astype(np.float64) for a in (self.baseline, self.answers))

        def drops(weights: Floats) -> Floats:
            one, other = (np.tensordot(weights, counts, axes=1) for counts in (before, after))
            return mean_iou(one) - mean_iou(other)

        return bootstrap_interval(drops, len(before))

    def interval(self) -> tuple[float, float]:
        """By a paired bootstrap over images."""
        return self._interval

    @property
    def _agreeing(self) -> Floats:
        pixels = self.answers.rows["counts"][:, LABELLED].sum(axis=1)
        agreeing: Floats = 100 * self.answers.rows["agreed"] / np.maximum(pixels, 1)
        return agreeing

    @property
    def agreement(self) -> float:
        """Judged pixels, in percent, with the same class as the baseline's."""
        return 100 * float(self.answers.rows["agreed"].sum() / self.answers.counts[LABELLED].sum())

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio of the scores against the baseline's, in dB; None for outputs of class numbers."""
        signal, noise = self.answers.rows["energy"].sum(axis=0).tolist()
        return None if signal < 0 else decibels(signal, noise)

    def lines(self) -> list[tuple[str, ...]]:
        """One line: the figures, what was lost, and how sure that is."""
        low, high = self.interval()
        return [
            (
                self.answers.name,
                f"{self.answers.mean_iou:.2f}",
                f"{self.answers.pixel_accuracy:.2f}",
                _points(self.drop),
                f"{_points(low)} to {_points(high)}",
                f"{self.agreement:.2f}",
                "-" if self.snr_db is None else f"{self.snr_db:.1f}",
            )
        ]

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Of each class in the masks: its pixels, both figures in percent and the drop in points."""
        before, after = self.baseline.iou, self.answers.iou
        pixels = self.baseline.counts[LABELLED]
        return [
            {
                "class": classes[kind],
                "pixels": int(pixels[kind]),
                "baseline_iou": float(before[kind]),
                "iou": float(after[kind]),
                "drop": float(before[kind] - after[kind]),
            }
            for kind in np.flatnonzero(pixels).tolist()
        ]

    def details(self, images: ImageSet) -> list[str]:
        """The classes that lost most, and the images that changed most."""
        worst = sorted(self.per_class(images.classes), key=lambda one: -float(one["drop"]))[:SHOWN_CLASSES]
        found = [
            f"most lost: {one['class']}, IoU {one['baseline_iou']:.2f} to {one['iou']:.2f} %"
            for one in worst
            if round(one["drop"], 2) > 0
        ]
        changed = self._changed(images)
        found += [f"changed: {one['image']}, {100 - one['agreement']:.2f} % of its pixels" for one in changed]
        return found

    def _changed(self, images: ImageSet) -> list[dict[str, Any]]:
        agreeing, names = self._agreeing, images.names()
        worst = [i for i in np.argsort(agreeing, kind="stable").tolist() if agreeing[i] < 100][:SHOWN_IMAGES]
        return [{"image": names[i], "agreement": float(agreeing[i])} for i in worst]

    def measures(self) -> dict[str, Any]:
        """Figures in percent, drops in points; what is not finite is null."""
        low, high = self.interval()
        return {
            **self.answers.figures(),
            "drop": self.drop,
            "drop_low": json_number(low),
            "drop_high": json_number(high),
            "agreement": self.agreement,
            "snr_db": json_number(self.snr_db),
        }

    def to_dict(self, images: ImageSet) -> dict[str, Any]:
        """JSON values, with each class and the agreement of each image."""
        agreement = dict(zip(images.names(), self._agreeing.tolist(), strict=True))
        return {**super().to_dict(images), "per_class": self.per_class(images.classes), "images": agreement}


def _points(value: float) -> str:
    """With two decimals, and no sign before 0.00."""
    return f"{round(value, 2) + 0.0:.2f}"


def class_iou(counts: Floats) -> Floats:
    """Intersection over union in percent, [..., classes], of counts [..., 3, classes]; NaN without labelled pixels."""
    right, labelled = counts[..., RIGHT, :], counts[..., LABELLED, :]
    union = counts[..., ANSWERED, :] + labelled - right
    with np.errstate(invalid="ignore", divide="ignore"):
        iou: Floats = np.where(labelled > 0, 100 * right / union, np.nan)
    return iou


def mean_iou(counts: Floats) -> Floats:
    """The mean of `class_iou` over the classes that are labelled, [...]; NaN where none is."""
    iou = class_iou(counts)
    known = ~np.isnan(iou)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, iou, 0).sum(axis=-1) / known.sum(axis=-1)
    return mean


def kappa(counts: Floats) -> Floats:
    """Cohen's kappa of counts [..., 3, classes]: 1 for all right, 0 for the same answers in random places.

    With a single class in the masks that would be 0 for all answers, so there chance is one over the number of classes.
    """
    labelled = counts[..., LABELLED, :]
    total = labelled.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = (counts[..., ANSWERED, :] * labelled).sum(axis=-1) / np.square(total)
        chance = np.where((labelled > 0).sum(axis=-1) > 1, chance, 1 / counts.shape[-1])
        found: Floats = (counts[..., RIGHT, :].sum(axis=-1) / total - chance) / (1 - chance)
    return found
