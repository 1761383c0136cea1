"""The images of INT8: those that calibrate, and others on which the result is evaluated."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Dataset, DataSource, open_data
from vitdeploy.errors import InputError, UsageError
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.gates import check_images, judges_wanted
from vitdeploy.quantize.options import Int8Options

Array = NDArray[Any]

log = logging.getLogger(__name__)

ENOUGH = 32  # images; published INT8 results for vision transformers start here (PTQ4ViT)
SNR_IMAGES = 64  # on which the signal-to-noise ratio is measured
REFERENCE_IMAGES = 8
BATCH = 16  # images read at once
_NAMED = 5


class Images:
    """Batches of preprocessed images float32 [n, C, height, width] on their way into a network, read as often as asked.

    Iterating hands the batches on and records every image; `check` then says whether they were fit to calibrate on.

    batches  iterated anew each time; a generator serves once
    names    what messages call the images, in their order; by default `image 0`, `image 1`, ...
    depth    C, the channels of the network's images
    hashes   SHA-256 of each image's float32 values, in hexadecimal, as of the last time
    flat     indices of the images without any contrast: every channel has a single value
    """

    def __init__(self, batches: Iterable[Array], *, names: Sequence[str] | None = None, depth: int = 3) -> None:
        self._batches, self._names, self._depth = batches, names, depth
        self.hashes: list[str] = []
        self.flat: list[int] = []

    def __iter__(self) -> Iterator[Array]:
        """The batches; InputError for one that is of another kind, or holds NaN or Inf."""
        self.hashes, self.flat = [], []
        for batch in self._batches:
            if batch.ndim != 4 or batch.shape[1] != self._depth or batch.dtype != np.float32:
                raise InputError(
                    f"a calibration batch is {batch.dtype} {list(batch.shape)}",
                    fix=f"preprocessed images, float32 [n, {self._depth}, height, width]",
                )
            for image in batch:
                self._record(np.ascontiguousarray(image))
            yield batch

    @property
    def expected(self) -> int | None:
        """Images there will be; None where nobody named them."""
        return None if self._names is None else len(self._names)

    @property
    def count(self) -> int:
        """Images seen so far."""
        return len(self.hashes)

    def check(self) -> None:
        """UsageError where the images cannot calibrate anything; a warning where they are few, flat or repeated."""
        if not self.count:
            raise UsageError("there are no calibration images", fix="--calibration with a folder, zip or npz of images")
        distinct = len(set(self.hashes))
        if len(self.flat) == self.count:
            raise UsageError(
                f"all {self.count} calibration images are flat, for example all black",
                why="activations of such images say nothing about the ranges of real ones",
                fix="check the images and their preprocessing",
            )
        if distinct == 1 and self.count > 1:
            raise UsageError(
                f"all {self.count} calibration images are the same image", fix="images like those of the task"
            )
        if distinct < ENOUGH:
            log.warning(
                "only %d calibration image%s: ranges may be too narrow; give %d or more, better 300",
                distinct,
                ("" if distinct == 1 else "s") + (" that differ" if distinct < self.count else ""),
                ENOUGH,
            )
        elif distinct < self.count:
            log.warning("%d of %d calibration images are repetitions", self.count - distinct, self.count)
        if self.flat:
            some = ", ".join(map(self._name, self.flat[:_NAMED])) + (", …" if len(self.flat) > _NAMED else "")
            log.warning("%d of %d calibration images are flat: %s", len(self.flat), self.count, some)

    def _record(self, image: Array) -> None:
        if not np.isfinite(image).all():
            raise InputError(f"{self._name(self.count)} holds NaN or Inf after preprocessing", fix="check that image")
        if np.all(image.max(axis=(1, 2)) == image.min(axis=(1, 2))):
            self.flat.append(self.count)
        self.hashes.append(hashlib.sha256(image.tobytes()).hexdigest())

    def _name(self, index: int) -> str:
        return self._names[index] if self._names is not None else f"image {index}"


@dataclass(frozen=True)
class CalibrationSet:
    """The images of DATA by what they are for, each read when it is needed.

    calibrate  indices of the images that calibrate
    evaluate   indices of those on which the result is evaluated: others, or where DATA has no more the last of these
    recipe     how images become the network's input
    """

    data: Dataset
    calibrate: Sequence[int]
    evaluate: Sequence[int]
    recipe: Preprocessing

    def calibration(self) -> Images:
        """The images to calibrate on."""
        batches, names = _Batches(self.data, self.calibrate, self.recipe), [self.data.names[i] for i in self.calibrate]
        return Images(batches, names=names, depth=self.recipe.depth)

    def evaluation(self) -> Iterable[Array]:
        """The images to evaluate on, in batches float32 [at most 16, C, H, W] that are read anew each time."""
        return _Batches(self.data, self.evaluate, self.recipe)

    def labels(self) -> list[int]:
        """Class numbers of the images to evaluate on; UsageError where one has none."""
        found = [self.data.label(index) for index in self.evaluate]
        labels = [label for label in found if label is not None]
        if len(labels) < len(found):
            raise UsageError(f"{self.data.where} has no labels", fix="--min-snr 35")
        return labels

    def reference(self, batch: int) -> Array:
        """Images to prove the bundle on, in whole batches: pixels uint8 [n, H, W, 3] where DATA holds images."""
        count = min(batch * -(-REFERENCE_IMAGES // batch), len(self.evaluate) // batch * batch) or batch
        indices = [self.evaluate[i % len(self.evaluate)] for i in range(count)]
        first = self.data.read(indices[0])
        floats = isinstance(first, np.ndarray) and first.dtype == np.float32
        normalised = floats or not self.recipe.takes_colours
        return np.stack([self.data.tensor(index, self.recipe, normalised=normalised) for index in indices])


@dataclass(frozen=True)
class _Batches:
    data: Dataset
    indices: Sequence[int]
    recipe: Preprocessing

    def __iter__(self) -> Iterator[Array]:
        for start in range(0, len(self.indices), BATCH):
            yield np.stack([self.data.tensor(index, self.recipe) for index in self.indices[start : start + BATCH]])


def regroup(batches: Iterable[Array], size: int) -> Iterator[Array]:
    """The images in batches of `size`, views where they already come so; the last one may be smaller."""
    waiting: list[Array] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += len(batch)
        if count >= size:
            whole = _joined(waiting)
            for start in range(0, count - count % size, size):
                yield whole[start : start + size]
            count %= size
            waiting = [whole[len(whole) - count :]] if count else []
    if count:
        yield _joined(waiting)


def _joined(batches: Sequence[Array]) -> Array:
    return batches[0] if len(batches) == 1 else np.concatenate(batches)


def open_calibration(data: DataSource | None, options: Int8Options) -> Dataset:
    """DATA, before anything slow begins.

    Raises UsageError without DATA, and where `max_drop` is asked for without labels or with too few images to decide
    it (see `gates.check_images`); InputError as `open_data`.
    """
    if data is None:
        raise UsageError(
            "INT8 needs images to calibrate on",
            why="ranges of activations come from data like the data in use, never from random numbers",
            fix="--calibration DATA: a folder or zip of images, or an .npz (about 300 images are enough)",
        )
    dataset = open_data(data)
    if options.max_drop is not None and dataset.targets is None:
        raise UsageError(f"--max-drop needs labels, and {dataset.where} has none", fix="--min-snr 35")
    check_images(options, len(dataset), dataset.where)
    return dataset


def choose_samples(
    dataset: Dataset, labels: Sequence[str], recipe: Preprocessing, options: Int8Options
) -> CalibrationSet:
    """What each image is for.

    labels  names of the network's classes by number, empty where they are not known
    recipe  how images become its input

    Raises InputError where labels are needed and are not those of the network.
    """
    if options.max_drop is not None and labels:
        dataset = dataset.relabelled(labels)
    wanted = SNR_IMAGES if options.max_drop is None else judges_wanted(options.max_drop)
    least = SNR_IMAGES if options.max_drop is None else 1  # a drop is worth little on images that calibrated
    order = dataset.sample(options.samples + wanted, options.seed)
    calibrate, evaluate = order[: options.samples], order[options.samples :]
    if len(evaluate) < least:
        log.warning("%s has only %d images: INT8 is evaluated on those it was calibrated on", dataset.where, len(order))
        evaluate = order[-wanted:]
    return CalibrationSet(dataset, calibrate, evaluate, recipe)
