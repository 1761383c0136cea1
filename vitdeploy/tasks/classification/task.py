"""What is true of labelled images, and what is kept of the class scores for one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle
from vitdeploy.data import Dataset
from vitdeploy.errors import InputError
from vitdeploy.tasks import task
from vitdeploy.tasks.classification.comparison import Answers, Comparison, ImageSet
from vitdeploy.tasks.classification.problems import find_problems
from vitdeploy.tasks.outputs import choose_output

Array = NDArray[Any]


class Classification(task.Task):
    """The classes of DATA's images are those of the network, by name or by number.

    dataset  labelled images
    bundle   whose output [N, classes] is judged
    output   its name, None for the only one, or the one called `logits`
    """

    name: ClassVar[str] = "classification"

    def __init__(self, dataset: Dataset, bundle: Bundle, output: str | None = None) -> None:
        spec = choose_output(bundle, self.name, output)
        classes = spec.shape[1]
        assert isinstance(classes, int), "`choose_output` takes no other one"
        self.dataset, self._output, self._classes = dataset, spec.name, classes
        self._asked = output
        self._labels = bundle.manifest.labels
        self._numbers = _class_numbers(dataset, classes, bundle)

    @property
    def fields(self) -> Mapping[str, task.Field]:
        """The logits."""
        return {"logits": task.Field("float32", (self._classes,))}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The one that is judged."""
        return (self._output,)

    def identity(self) -> dict[str, Any]:
        """Nothing, unless it was said which output is meant."""
        return {} if self._asked is None else {"output": self._asked}

    def row(self, outputs: task.Row, truth: Any, baseline: task.Row | None) -> task.Row:
        """The logits of one image."""
        return {"logits": outputs[self._output].astype(np.float32, copy=False)}

    def images(self, indices: Sequence[int], keys: Iterable[str]) -> ImageSet:
        """The images with their classes."""
        targets = self._numbers[list(indices)]
        names = self._labels or self.dataset.classes or tuple(f"class {i}" for i in range(self._classes))
        lines = sorted(f"{digest} {target}\n" for digest, target in zip(keys, targets.tolist(), strict=True))
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        return ImageSet(self.dataset, indices, digest, targets, names)

    def answers(self, name: str, facts: Mapping[str, Any], rows: task.Row, images: ImageSet) -> Answers:
        """The answers of a run."""
        return Answers(name, facts, rows["logits"], images.targets)

    def compare(self, answers: Answers, baseline: Answers) -> Comparison:
        """A run against the baseline."""
        return Comparison(answers, baseline)

    def problems(self, baseline: Answers, images: ImageSet, weights: str) -> tuple[str, ...]:
        """Whether the baseline guesses, or its classes look shifted."""
        by_name = bool(self._labels and self.dataset.classes)
        return find_problems(images.targets, baseline.chosen, images.classes, weights=weights, by_name=by_name)


def _class_numbers(dataset: Dataset, classes: int, bundle: Bundle) -> Array:
    """The class number of each image, int64 [N]; InputError unless they are certainly those of the network."""
    if dataset.targets is None:
        raise InputError(
            f"the images of {dataset.where} have no labels",
            why="accuracy needs the right class of each",
            fix="make one folder for each class, with its images directly inside; or --task features, which needs none",
        )
    named = 0 if dataset.classes is None else len(dataset.classes)
    if bundle.manifest.labels or named == classes:
        return dataset.targets
    if named:
        raise InputError(
            f"{dataset.where} has {named} classes, the network {classes}",
            why=f"{bundle.path} has no class names, so DATA's classes cannot be found among the {classes}",
            fix="add a labels.txt with all classes in the network's order to DATA, or export with --labels",
        )
    if dataset.targets.max() >= classes:
        raise InputError(
            f"{dataset.where} has class number {dataset.targets.max()}",
            why=f"the network has classes 0 to {classes - 1}",
            fix="number the classes from 0, in the network's order",
        )
    return dataset.targets
