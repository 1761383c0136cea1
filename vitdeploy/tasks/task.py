"""The parts of every task: its images, the row it keeps of each, the figures of a run and what they lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.data import Dataset

Array = NDArray[Any]
# What is kept of one image, or stacked along the first axis of many.
Row = Mapping[str, Array]


class Field(NamedTuple):
    """One array of a row; an axis that may have any length is a text."""

    dtype: str
    shape: tuple[int | str, ...] = ()

    def admits(self, array: Array, count: int) -> bool:
        """Whether `array` holds the values of `count` images."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape) + 1
            and len(array) == count
            and all(isinstance(w, str) or w == h for w, h in zip(self.shape, array.shape[1:], strict=True))
        )

    @property
    def bytes(self) -> int:
        """Of one image."""
        return np.dtype(self.dtype).itemsize * int(np.prod([1 if isinstance(a, str) else a for a in self.shape]))


@dataclass(frozen=True)
class ImageSet:
    """The images that all runs answered.

    dataset, indices  the images
    sha256            of the images' hashes and what is true of them, whatever their order
    """

    task: ClassVar[str]

    dataset: Dataset
    indices: Sequence[int]
    sha256: str

    def names(self) -> list[str]:
        """Of the images, in their order."""
        return [self.dataset.names[index] for index in self.indices]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.dataset.where,
            "sha256": self.sha256,
            "images": len(self.indices),
            "of": len(self.dataset),
        }

    def plots(self, runs: Sequence[Comparison]) -> dict[str, str | Image.Image]:
        """Plots of the runs by their file names, SVG as text; none unless the task has some."""
        return {}

    @abstractmethod
    def arrays(self, answers: Sequence[Answers]) -> tuple[str, dict[str, Array]]:
        """A file name and the arrays that a report keeps there of all runs, the baseline first."""


@dataclass(frozen=True)
class Answers(ABC):
    """What a run answered.

    name   in words: `lemevit-int8 on openvino`
    facts  what ran, see `Session.describe`
    """

    name: str
    facts: Mapping[str, Any]

    @property
    @abstractmethod
    def not_finite(self) -> int:
        """Images for which an output has NaN or Inf."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """The figures by name, as JSON values."""

    @abstractmethod
    def summary(self) -> str:
        """The figures in words: `top-1 93.60 %`."""

    @abstractmethod
    def judged(self) -> dict[str, Any]:
        """Of `figures` the one that the gate judges, by its name."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, **self.facts, **self.figures(), "not_finite": self.not_finite}


@dataclass(frozen=True)
class Comparison(ABC):
    """A run against the baseline on the same images."""

    HEADER: ClassVar[tuple[str, ...]]
    unit: ClassVar[str] = "points"  # of `drop`

    answers: Answers
    baseline: Answers

    @property
    @abstractmethod
    def drop(self) -> float:
        """What is lost of the figure that the gate judges, in `unit`."""

    @abstractmethod
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of `drop`, in its unit; None where there is none."""

    @abstractmethod
    def lines(self) -> list[tuple[str, ...]]:
        """The lines of the table, below `HEADER`."""

    @abstractmethod
    def details(self, images: Any) -> list[str]:
        """What more a reader should know of the run, a line each."""

    @abstractmethod
    def measures(self) -> dict[str, Any]:
        """The measures as JSON values, with `drop`, `drop_low` and `drop_high`; what is not finite is null."""

    def to_dict(self, images: Any) -> dict[str, Any]:
        """All that is known of the run as JSON values."""
        return {**self.answers.to_dict(), **self.measures()}


class Task(ABC):
    """What is true of DATA, and what is kept of an image's outputs.

    name     that `--task` states
    paired   whether the rows of a run are made against the baseline's outputs for the same image
    stored   whether rows are small enough to be kept on disk, so that an interrupted check can go on
    dataset  the images
    """

    name: ClassVar[str]
    paired: ClassVar[bool] = False
    stored: ClassVar[bool] = True

    dataset: Dataset

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """The arrays of a row."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs that rows are made of; their first axis counts the samples."""

    def identity(self) -> dict[str, Any]:
        """What rows depend on besides the image, what is true of it, and the source of the outputs; JSON values."""
        return {}

    def key(self, index: int, image: str) -> str:
        """What a row is kept by: the hash of the image, and of what is true of it where rows depend on that."""
        return image

    def truth(self, index: int) -> Any:
        """What is true of an image; called by several threads. None where rows do not depend on it."""
        return None

    @abstractmethod
    def row(self, outputs: Row, truth: Any, baseline: Row | None) -> Row:
        """What is kept of the outputs for one image, without the batch axis.

        `baseline` are the baseline's outputs for it where the task is `paired`, and None for the baseline itself.
        """

    @abstractmethod
    def images(self, indices: Sequence[int], keys: Iterable[str]) -> Any:
        """The `ImageSet` of the images that were chosen."""

    @abstractmethod
    def answers(self, name: str, facts: Mapping[str, Any], rows: Row, images: Any) -> Any:
        """The `Answers` of a run."""

    @abstractmethod
    def compare(self, answers: Any, baseline: Any) -> Any:
        """The `Comparison` of a run with the baseline."""

    def problems(self, baseline: Any, images: Any, weights: str) -> tuple[str, ...]:
        """What is wrong with the baseline, in words; `weights` is the kind that the manifest records."""
        return (f"it gives NaN or Inf on {baseline.not_finite} of {len(images.indices)} images",) * bool(
            baseline.not_finite
        )
