"""The samples of INT8: those that calibrate, and others on which the result is evaluated."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitdeploy.data import Dataset, DataSource, open_data
from vitdeploy.data.arrays import array_names
from vitdeploy.data.masks import has_masks, open_masks
from vitdeploy.data.named import open_samples
from vitdeploy.data.slots import Slot, takes_images_alone
from vitdeploy.errors import InputError, UsageError
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.gates import check_images, judges_wanted
from vitdeploy.quantize.options import Int8Options

Array = NDArray[Any]
# Samples of a network's only input, or of all inputs by name, along the first axis.
Batch = Array | Mapping[str, Array]

log = logging.getLogger(__name__)

ENOUGH = 32  # images; published INT8 results for vision transformers start here (PTQ4ViT)
SNR_IMAGES = 64  # on which the signal-to-noise ratio is measured
REFERENCE_IMAGES = 8
BATCH = 16  # images read at once
KEPT_BYTES = 1 << 28  # of images that are judged again and again
_NAMED = 5


class Images:
    """Batches of preprocessed samples on their way into a network, read as often as asked.

    Iterating hands the batches on and records every sample; `check` then says whether they were fit to calibrate on.

    batches  iterated anew each time; a generator serves once. Of a network that takes images alone float32
             [n, C, height, width], of another one arrays [n, ...] by the names of its inputs
    names    what messages call the samples, in their order; by default `image 0`, `image 1`, ...
    depth    C, the channels of the network's images
    hashes   SHA-256 of each sample's values, in hexadecimal, as of the last time
    flat     indices of the images without any contrast: every channel has a single value
    """

    def __init__(self, batches: Iterable[Batch], *, names: Sequence[str] | None = None, depth: int = 3) -> None:
        self._batches, self._names, self._depth = batches, names, depth
        self.hashes: list[str] = []
        self.flat: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        """The batches; InputError for one that is of another kind, or holds NaN or Inf."""
        self.hashes, self.flat = [], []
        for batch in self._batches:
            if isinstance(batch, Mapping):
                for index in range(length(batch)):
                    self._record([array[index] for array in batch.values()])
                yield batch
                continue
            if batch.ndim != 4 or batch.shape[1] != self._depth or batch.dtype != np.float32:
                raise InputError(
                    f"a calibration batch is {batch.dtype} {list(batch.shape)}",
                    fix=f"preprocessed images, float32 [n, {self._depth}, height, width]",
                )
            for image in batch:
                if np.all(image.max(axis=(1, 2)) == image.min(axis=(1, 2))):
                    self.flat.append(self.count)
                self._record([image])
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

    def _record(self, sample: Sequence[Array]) -> None:
        if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in sample):
            raise InputError(f"{self._name(self.count)} holds NaN or Inf after preprocessing", fix="check that image")
        digest = hashlib.sha256()
        for array in sample:
            digest.update(np.ascontiguousarray(array).tobytes())
        self.hashes.append(digest.hexdigest())

    def _name(self, index: int) -> str:
        return self._names[index] if self._names is not None else f"image {index}"


@dataclass(frozen=True)
class CalibrationSet:
    """The samples of DATA by what they are for, each read when it is needed.

    calibrate  indices of the samples that calibrate
    evaluate   indices of those on which the result is evaluated: others, or where DATA has no more the last of these
    recipe     how images become the network's input
    slots      the inputs of a network that takes more or other things than one image; none for one that does not
    """

    data: Dataset
    calibrate: Sequence[int]
    evaluate: Sequence[int]
    recipe: Preprocessing
    slots: tuple[Slot, ...] = ()

    @property
    def images(self) -> tuple[str, ...] | None:
        """The inputs that are images; None for a network that takes nothing but one."""
        return tuple(slot.name for slot in self.slots if slot.image) if self.slots else None

    def calibration(self) -> Images:
        """The samples to calibrate on."""
        names = [self.data.names[i] for i in self.calibrate]
        return Images(self._batches(self.calibrate), names=names, depth=self.recipe.depth)

    def evaluation(self) -> Iterable[Batch]:
        """The samples to evaluate on, in batches of at most 16 that are read anew each time; see `Images`."""
        return self._batches(self.evaluate)

    def _batches(self, indices: Sequence[int]) -> _Batches:
        return _Batches(self.data, indices, self.recipe, self.slots)

    def labels(self) -> list[int]:
        """Class numbers of the images to evaluate on; UsageError where one has none."""
        found = [self.data.label(index) for index in self.evaluate]
        labels = [label for label in found if label is not None]
        if len(labels) < len(found):
            raise UsageError(f"{self.data.where} has no labels", fix="--min-snr 35")
        return labels

    def reference(self, batch: int) -> Batch:
        """Samples to prove the bundle on, in whole batches: pixels uint8 [n, H, W, 3] where DATA holds images alone."""
        count = min(batch * -(-REFERENCE_IMAGES // batch), len(self.evaluate) // batch * batch) or batch
        indices = [self.evaluate[i % len(self.evaluate)] for i in range(count)]
        if self.slots:
            return stacked([self.data.inputs(index, self.slots, self.recipe) for index in indices])
        first = self.data.read(indices[0])
        floats = isinstance(first, np.ndarray) and first.dtype == np.float32
        normalised = floats or not self.recipe.takes_colours
        return np.stack([self.data.tensor(index, self.recipe, normalised=normalised) for index in indices])


@dataclass(frozen=True)
class _Batches:
    data: Dataset
    indices: Sequence[int]
    recipe: Preprocessing
    slots: tuple[Slot, ...]

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.indices), BATCH):
            some = self.indices[start : start + BATCH]
            if self.slots:
                yield stacked([self.data.inputs(index, self.slots, self.recipe) for index in some])
            else:
                yield np.stack([self.data.tensor(index, self.recipe) for index in some])


class Kept:
    """Batches that are read once and kept, where all of them fit into `most` bytes; otherwise they are read anew."""

    def __init__(self, batches: Iterable[Batch], most: int = KEPT_BYTES) -> None:
        self._batches, self._most = batches, most
        self._kept: list[Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, left = [], self._most
        for batch in self._batches:
            left -= sum(array.nbytes for array in (batch.values() if isinstance(batch, Mapping) else (batch,)))
            if left >= 0:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        if left >= 0:
            self._kept = kept


def stacked(samples: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Samples by the names of their inputs as one batch."""
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def length(batch: Batch) -> int:
    """Samples in a batch."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)


def by_name(batch: Batch, names: Sequence[str]) -> dict[str, Array]:
    """A batch by the names of the inputs; one array alone is that of the first."""
    return dict(batch) if isinstance(batch, Mapping) else {names[0]: batch}


def part(batch: Batch, start: int, stop: int) -> Batch:
    """The samples from `start` to `stop`, as views."""
    if isinstance(batch, Mapping):
        return {name: array[start:stop] for name, array in batch.items()}
    return batch[start:stop]


def regroup(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The samples in batches of `size`, views where they already come so; the last one may be smaller."""
    waiting: list[Batch] = []
    count = 0
    for batch in batches:
        waiting.append(batch)
        count += length(batch)
        if count >= size:
            whole = _joined(waiting)
            for start in range(0, count - count % size, size):
                yield part(whole, start, start + size)
            left = count % size
            waiting = [part(whole, count - left, count)] if left else []
            count = left
    if count:
        yield _joined(waiting)


def _joined(batches: Sequence[Batch]) -> Batch:
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: np.concatenate([batch[name] for batch in batches]) for name in first}
    return np.concatenate(batches)  # type: ignore[arg-type]


def open_calibration(data: DataSource | None, options: Int8Options) -> Dataset | None:
    """DATA, before anything slow begins; None for arrays by name, which only a network with its inputs can open.

    Raises UsageError without DATA, and where `max_drop` is asked for without labels or with too few images to decide
    it (see `gates.check_images`); InputError as `open_data`.
    """
    if data is None:
        raise UsageError(
            "INT8 needs images to calibrate on",
            why="ranges of activations come from data like the data in use, never from random numbers",
            fix="--calibration DATA: a folder or zip of images, or an .npz (about 300 images are enough)",
        )
    if isinstance(data, Mapping) or (isinstance(data, (str, Path)) and _has_other_arrays(Path(data))):
        return None
    # Folders called images and masks are no classes, and nothing is calibrated on masks.
    masked = isinstance(data, (str, Path)) and Path(data).suffix.lower() != ".npz" and has_masks(data)
    return _checked(open_masks(data).images if masked else open_data(data), options)


def fit_inputs(opened: Dataset | None, data: DataSource, slots: Sequence[Slot], options: Int8Options) -> Dataset:
    """DATA for a network of these inputs: `opened` for one that takes images alone, otherwise arrays by their names.

    Raises InputError for DATA that does not feed the inputs, and UsageError as `open_calibration`.
    """
    if opened is not None and takes_images_alone(slots):
        return opened
    return _checked(open_samples(data, slots), options)


def _has_other_arrays(path: Path) -> bool:
    names = array_names(path) if path.suffix.lower() == ".npz" else ()
    return bool(names) and "images" not in names


def _checked(dataset: Dataset, options: Int8Options) -> Dataset:
    if options.max_drop is not None and dataset.targets is None:
        raise UsageError(f"--max-drop needs labels, and {dataset.where} has none", fix="--min-snr 35")
    check_images(options, len(dataset), dataset.where)
    return dataset


def choose_samples(
    dataset: Dataset,
    labels: Sequence[str],
    recipe: Preprocessing,
    options: Int8Options,
    slots: tuple[Slot, ...] = (),
    *,
    judges: int | None = None,
) -> CalibrationSet:
    """What each sample is for.

    labels  names of the network's classes by number, empty where they are not known
    recipe  how images become its input
    slots   its inputs, where it takes more or other things than one image
    judges  samples to evaluate on, where there are as many; None for as many as the options need

    Raises InputError where labels are needed and are not those of the network.
    """
    if options.max_drop is not None and labels:
        dataset = dataset.relabelled(labels)
    needed = SNR_IMAGES if options.max_drop is None else judges_wanted(options.max_drop)
    wanted = needed if judges is None else judges
    # A drop is worth little on images that calibrated.
    least = min(wanted, SNR_IMAGES) if options.max_drop is None else 1
    order = dataset.sample(options.samples + wanted, options.seed)
    calibrate, evaluate = order[: options.samples], order[options.samples :]
    if len(evaluate) < least:
        log.warning("%s has only %d images: INT8 is evaluated on those it was calibrated on", dataset.where, len(order))
        evaluate = order[-wanted:]
    return CalibrationSet(dataset, calibrate, evaluate, recipe, slots)
