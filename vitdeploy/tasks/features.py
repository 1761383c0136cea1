"""Features: every output of the network against the baseline's, without labels; cosine similarity judged.

What uses features, such as a detector or a search, looks at their direction more than at their length. Therefore the
gate judges the cosine similarity of the worst output, and the signal-to-noise ratio stands beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle
from vitdeploy.data import Dataset
from vitdeploy.errors import UsageError
from vitdeploy.statistics import decibels, energies, json_number, mean_interval
from vitdeploy.tasks import task

Array = NDArray[Any]
Floats = NDArray[np.float64]

SHOWN_IMAGES = 3


@dataclass(frozen=True)
class ImageSet(task.ImageSet):
    """The samples that all runs computed the features of."""

    task = "features"

    def arrays(self, answers: Sequence[Any]) -> tuple[str, dict[str, Array]]:
        """`images`, `runs` and `outputs` (names), and `cosine` [1 + runs, images, outputs]."""
        return "cosine.npz", {
            "images": np.array(self.names()),
            "runs": np.array([one.name for one in answers]),
            "outputs": np.array(answers[0].outputs),
            "cosine": np.stack([one.rows["cosine"] for one in answers]),
        }


@dataclass(frozen=True)
class Answers(task.Answers):
    """One run's similarities to the baseline, see `Features.fields`; `outputs` are the names of the outputs."""

    outputs: tuple[str, ...]
    rows: task.Row = field(repr=False)

    @property
    def cosine(self) -> Floats:
        """Mean over images of each output, [outputs]."""
        mean: Floats = self.rows["cosine"].mean(axis=0)
        return mean

    @property
    def worst(self) -> int:
        """The output with the smallest similarity."""
        return int(self.cosine.argmin())

    @property
    def not_finite(self) -> int:
        """Images for which some output has NaN or Inf."""
        return int((~self.rows["finite"]).sum())

    def figures(self) -> dict[str, Any]:
        """The similarity of the worst output."""
        return {"cosine": float(self.cosine.min())}

    judged = figures

    def summary(self) -> str:
        """The outputs that are compared."""
        return f"{len(self.outputs)} output{'' if len(self.outputs) == 1 else 's'}: {', '.join(self.outputs)}"


@dataclass(frozen=True)
class Comparison(task.Comparison):
    """A run against the baseline on the same images."""

    HEADER = ("", "output", "cosine", "drop, %", "95 % interval", "SNR dB")
    unit: ClassVar[str] = "% of cosine similarity"

    answers: Answers
    baseline: Answers

    @property
    def drop(self) -> float:
        """100 (1 - cosine similarity) of the worst output: percent of the similarity that is lost."""
        return float(self._drops[self.answers.worst])

    @property
    def _drops(self) -> Floats:
        drops: Floats = 100 * (1 - self.answers.cosine)
        return drops

    @cached_property
    def _intervals(self) -> list[tuple[float, float]]:
        lost = 100 * (1 - self.answers.rows["cosine"])
        return [mean_interval(one) for one in lost.T]

    def interval(self) -> tuple[float, float]:
        """Of the worst output, by a bootstrap over images."""
        return self._intervals[self.answers.worst]

    @property
    def snr_db(self) -> list[float]:
        """Signal-to-noise ratio of each output against the baseline's, in dB."""
        return [decibels(signal, noise) for signal, noise in self.answers.rows["energy"].sum(axis=0).T.tolist()]

    def lines(self) -> list[tuple[str, ...]]:
        """A line for each output."""
        return [
            (
                "" if place else self.answers.name,
                name,
                f"{self.answers.cosine[place]:.6f}",
                f"{self._drops[place]:.4f}",
                "{:.4f} to {:.4f}".format(*self._intervals[place]),
                f"{self.snr_db[place]:.1f}",
            )
            for place, name in enumerate(self.answers.outputs)
        ]

    def details(self, images: ImageSet) -> list[str]:
        """The images that changed most."""
        cosine, names = self.answers.rows["cosine"].min(axis=1), images.names()
        worst = [i for i in np.argsort(cosine, kind="stable").tolist()[:SHOWN_IMAGES] if cosine[i] < 1]
        return [f"changed: {names[i]}, cosine similarity {cosine[i]:.6f}" for i in worst]

    def measures(self) -> dict[str, Any]:
        """Similarities from -1 to 1, drops in percent; what is not finite is null."""
        low, high = self.interval()
        return {
            **self.answers.figures(),
            "drop": self.drop,
            "drop_low": json_number(low),
            "drop_high": json_number(high),
            "snr_db": json_number(min(self.snr_db)),
            "outputs": [
                {
                    "output": name,
                    "cosine": float(self.answers.cosine[place]),
                    "drop": float(self._drops[place]),
                    "snr_db": json_number(self.snr_db[place]),
                }
                for place, name in enumerate(self.answers.outputs)
            ],
        }

    def to_dict(self, images: ImageSet) -> dict[str, Any]:
        """JSON values, with the worst similarity of each image."""
        cosine = self.answers.rows["cosine"].min(axis=1).tolist()
        return {**super().to_dict(images), "images": dict(zip(images.names(), cosine, strict=True))}


class Features(task.Task):
    """Images, or samples of several inputs, of which nothing needs to be known.

    dataset  the samples
    bundle   whose floating-point outputs are compared
    output   one of them; None for all
    """

    name: ClassVar[str] = "features"
    paired: ClassVar[bool] = True

    def __init__(self, dataset: Dataset, bundle: Bundle, output: str | None = None) -> None:
        self.dataset = dataset
        specs = bundle.manifest.outputs
        floats = [spec.name for spec in specs if spec.dtype.startswith("float")]
        self._outputs = tuple(name for name in floats if output in (None, name))
        if not self._outputs:
            shown = ", ".join(map(str, specs))
            raise UsageError(
                f"{bundle.path} has no output {'of features' if output is None else repr(output)} to compare",
                why=f"its outputs are {shown}",
                fix=f"--output {' or '.join(floats)}" if floats else "--metric FILE.py:FUNCTION",
            )

    @property
    def fields(self) -> Mapping[str, task.Field]:
        """cosine  similarity of each output, all its values as one vector, to the baseline's
        energy  of the baseline's outputs, and of the difference from them
        finite  whether all outputs are
        """
        size = len(self._outputs)
        return {
            "cosine": task.Field("float64", (size,)),
            "energy": task.Field("float64", (2, size)),
            "finite": task.Field("bool"),
        }

    @property
    def outputs(self) -> tuple[str, ...]:
        """Those that are compared."""
        return self._outputs

    def identity(self) -> dict[str, Any]:
        """Which outputs are compared."""
        return {"task": self.name, "outputs": list(self._outputs)}

    def row(self, outputs: task.Row, truth: Any, baseline: task.Row | None) -> task.Row:
        """The similarities of one image."""
        pairs = [((baseline or outputs)[name], outputs[name]) for name in self._outputs]
        return {
            "cosine": np.array([cosine(*pair) for pair in pairs]),
            "energy": np.array([energies(*pair) for pair in pairs]).T,
            "finite": np.array(all(np.isfinite(outputs[name]).all() for name in self._outputs)),
        }

    def images(self, indices: Sequence[int], keys: Iterable[str]) -> ImageSet:
        """The samples that were compared."""
        digest = hashlib.sha256("".join(sorted(f"{key}\n" for key in keys)).encode()).hexdigest()
        return ImageSet(self.dataset, indices, digest)

    def answers(self, name: str, facts: Mapping[str, Any], rows: task.Row, images: ImageSet) -> Answers:
        """The answers of a run."""
        return Answers(name, facts, self._outputs, rows)

    def compare(self, answers: Answers, baseline: Answers) -> Comparison:
        """A run against the baseline."""
        return Comparison(answers, baseline)


def cosine(reference: Array, actual: Array) -> float:
    """Cosine of the angle between two arrays as vectors: 1 where both are zero, 0 where one is or is not finite."""
    one, other = (array.astype(np.float64).ravel() for array in (reference, actual))
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0
    if np.array_equal(one, other):
        return 1.0
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return min(1.0, float(one @ other) / lengths) if lengths > 0 else 0.0
