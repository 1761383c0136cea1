"""What only a check that has just run can show: its images, and what is taken for what."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.reporting.documents import inside
from vitdeploy.reporting.findings import Accuracy, Confusion
from vitdeploy.statistics import confusion
from vitdeploy.tasks.classification.comparison import Comparison, ImageSet
from vitdeploy.tasks.classification.plots import most_interesting, thumbnail

SIDE, QUALITY = 128, 82
MOST_PICTURES = 48  # of a page: a picture has about 4 kB, and nobody looks at more
MOST_CLASSES = 12


def with_pictures(accuracy: Accuracy, report: AccuracyReport) -> Accuracy:
    """The same with the confusions and the images that flipped, where the task is classification."""
    images = report.images
    if not isinstance(images, ImageSet):
        return accuracy
    runs = [
        replace(loss, confusion=_confusion(run, images))
        for loss, run in zip(accuracy.runs, report.runs, strict=True)
        if isinstance(run, Comparison)
    ]
    position_of = {inside(name): position for position, name in enumerate(images.names())}
    pictures = {name: _picture(images, position_of[name]) for name in accuracy.flipped_images(MOST_PICTURES)}
    known = {name: picture for name, picture in pictures.items() if picture is not None}
    return replace(accuracy, runs=runs, pictures=known)


def _picture(images: ImageSet, position: int) -> str | None:
    picture = thumbnail(images, position, SIDE)
    if picture is None:
        return None
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _confusion(run: Comparison, images: ImageSet) -> Confusion:
    size = len(images.classes)
    counts, before = (confusion(one.targets, one.chosen, size) for one in (run.answers, run.baseline))
    change = counts - before
    shown = most_interesting(counts, change, MOST_CLASSES)
    return Confusion(
        [images.classes[kind] for kind in shown],
        counts[shown][:, shown].tolist(),
        change[shown][:, shown].tolist(),
        len(set(images.targets.tolist()) | set(run.answers.chosen.tolist()) - {-1}),
    )
