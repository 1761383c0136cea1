"""What is true of images with masks, and what is kept of the scores for one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle
from vitdeploy.data.masks import MaskedImages
from vitdeploy.errors import InputError, UsageError
from vitdeploy.preprocess import to_mask
from vitdeploy.statistics import bootstrap_interval, energies
from vitdeploy.tasks import task
from vitdeploy.tasks.outputs import choose_output
from vitdeploy.tasks.resize import bilinear, nearest
from vitdeploy.tasks.segmentation.comparison import LABELLED, Answers, Comparison, ImageSet, kappa

Array = NDArray[Any]

IGNORE = 255
NOWHERE = -1  # in a mask of the network's frame: not judged
ROUNDING = 1e-9  # of a kappa that is 0


class Segmentation(task.Task):
    """Images with masks of class numbers.

    data    images and masks
    bundle  whose output, scores [N, classes, h, w] or class numbers [N, h, w], is judged
    output  its name, None for the only one, or the one called `logits`
    ignore  the number in masks of pixels that are not judged

    Memory: of each image what `fields` says.
    """

    name: ClassVar[str] = "segmentation"
    paired: ClassVar[bool] = True

    def __init__(self, data: MaskedImages, bundle: Bundle, output: str | None = None, ignore: int = IGNORE) -> None:
        spec = choose_output(bundle, self.name, output)
        manifest = bundle.manifest
        self._data, self.dataset, self._output, self._ignore = data, data.images, spec.name, ignore
        self._scores = spec.dtype.startswith("float")
        self._recipe = manifest.recipe
        classes = spec.shape[1] if self._scores else manifest.model.num_classes or len(manifest.labels)
        if not classes:
            raise UsageError(
                f"it is not known how many classes {bundle.path} has",
                why=f"its output {spec} gives class numbers, and the manifest has neither classes nor labels",
                fix="export the network again with --labels FILE, one class name a line",
            )
        self._classes = int(classes)
        self._names = manifest.labels or tuple(f"class {number}" for number in range(self._classes))

    @property
    def fields(self) -> Mapping[str, task.Field]:
        """counts  pixels of each class: right, answered, in the mask
        agreed  judged pixels with the baseline's class
        energy  of the baseline's scores, and of the difference from them; -1 for outputs of class numbers
        finite  whether the scores are
        """
        return {
            "counts": task.Field("int64", (3, self._classes)),
            "agreed": task.Field("int64"),
            "energy": task.Field("float64", (2,)),
            "finite": task.Field("bool"),
        }

    @property
    def outputs(self) -> tuple[str, ...]:
        """The one that is judged."""
        return (self._output,)

    def identity(self) -> dict[str, Any]:
        """What is judged, and which pixels are not."""
        return {"task": self.name, "output": self._output, "ignore": self._ignore}

    def key(self, index: int, image: str) -> str:
        """The hash of an image and its mask."""
        return hashlib.sha256(f"{image} {self._data.sha256(index)}".encode()).hexdigest()

    def truth(self, index: int) -> Array:
        """The mask in the network's frame [H, W]; `NOWHERE` where a pixel is not judged."""
        mask, size = self._data.mask(index), self.dataset.shape(index, self._recipe)
        frame = self._recipe.size
        if mask.shape != (size or frame):
            raise InputError(
                f"{self._data.name(index)} is {mask.shape[1]}x{mask.shape[0]} pixels",
                why=f"its image is {(size or frame)[1]}x{(size or frame)[0]}"
                + ("" if size else ", normalised in the network's own frame"),
                fix="a mask has exactly the pixels of its image, upright",
            )
        judged = np.where(mask == self._ignore, NOWHERE, mask)
        if (judged >= self._classes).any() or ((judged < 0) & (mask != self._ignore)).any():
            wrong = judged.max() if (judged >= self._classes).any() else mask.min()
            raise InputError(
                f"{self._data.name(index)} has class number {wrong}",
                why=f"the network has classes 0 to {self._classes - 1}, and {self._ignore} is not judged",
                fix="number the classes from 0, in the network's order; --ignore-index N for another number that is "
                "not judged",
            )
        return judged if size is None else to_mask(judged, self._recipe, NOWHERE)

    def row(self, outputs: task.Row, truth: Any, baseline: task.Row | None) -> task.Row:
        """The pixels of one image counted."""
        scores = outputs[self._output]
        own = self._chosen(scores, truth.shape)
        finite = bool(np.isfinite(scores).all()) if self._scores else True
        other, energy = own, (0.0, 0.0)
        if baseline is not None:
            other = self._chosen(baseline[self._output], truth.shape)
            energy = energies(baseline[self._output], scores)
        judged = truth != NOWHERE
        mine, right = own[judged], truth[judged]
        valid = mine >= 0
        counts = [
            np.bincount(numbers, minlength=self._classes)[: self._classes]
            for numbers in (right[mine == right], mine[valid], right)
        ]
        return {
            "counts": np.stack(counts).astype(np.int64),
            "agreed": np.array((mine == other[judged]).sum(), np.int64),
            "energy": np.array(energy if self._scores else (-1.0, -1.0)),
            "finite": np.array(finite),
        }

    def images(self, indices: Sequence[int], keys: Iterable[str]) -> ImageSet:
        """The images that were segmented."""
        digest = hashlib.sha256("".join(sorted(f"{key}\n" for key in keys)).encode()).hexdigest()
        return ImageSet(self.dataset, indices, digest, self._names)

    def answers(self, name: str, facts: Mapping[str, Any], rows: task.Row, images: ImageSet) -> Answers:
        """The answers of a run; InputError where no pixel of any mask is judged."""
        if not rows["counts"][:, LABELLED].any():
            raise InputError(
                f"no pixel of the masks of {self._data.where} has a class",
                why=f"all that the network sees of them are {self._ignore}, which is not judged",
                fix="masks of class numbers, or --ignore-index with the number that stands for no class",
            )
        return Answers(name, facts, rows)

    def compare(self, answers: Answers, baseline: Answers) -> Comparison:
        """A run against the baseline."""
        return Comparison(answers, baseline)

    def problems(self, baseline: Answers, images: ImageSet, weights: str) -> tuple[str, ...]:
        """Whether the baseline guesses."""
        found = super().problems(baseline, images, weights)
        counts = baseline.rows["counts"].astype(np.float64)
        low, _ = bootstrap_interval(lambda drawn: kappa(np.tensordot(drawn, counts, axes=1)), len(counts))
        if found or not low <= ROUNDING:
            return found
        reason = (
            "probably its classes are in another order than the masks', or it is fed in another way than in training"
        )
        if weights == "random":
            reason = "its weights are random: nothing was trained"
        return (f"it guesses: its pixel accuracy is {baseline.pixel_accuracy:.2f} %; {reason}",)

    def _chosen(self, output: Array, size: tuple[int, int]) -> Array:
        """The class of each pixel in the network's frame; -1 for scores that are not finite."""
        if not self._scores:
            numbers = output.reshape(output.shape[-2:]).astype(np.int64)
            return nearest(np.where((numbers >= 0) & (numbers < self._classes), numbers, -1), size)
        scores = bilinear(output, size)
        chosen: Array = np.where(np.isfinite(scores).all(axis=0), scores.argmax(axis=0), -1)
        return chosen
