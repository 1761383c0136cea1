"""A figure of the user's own: `function(outputs, targets)` on the outputs of all samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vitdeploy.bundle import Bundle
from vitdeploy.data import Dataset
from vitdeploy.errors import UsageError
from vitdeploy.statistics import json_number, mean_interval
from vitdeploy.tasks import task
from vitdeploy.user_code import call_theirs

Array = NDArray[Any]
Floats = NDArray[np.float64]
# Outputs of all samples by name, and targets of all samples by name: what is known of them.
MetricFunction = Callable[[dict[str, Array], dict[str, Array]], Any]

LARGEST_BYTES = 1 << 32  # of the outputs of a run

_RETURNS = (
    "return a number, a mapping from names to numbers, or instead of a number an array [N] of one for each sample"
)


@dataclass(frozen=True)
class ImageSet(task.ImageSet):
    """The samples, and what is known of them by name, each with the samples along the first axis."""

    task = "metric"

    targets: Mapping[str, Array] = field(repr=False)

    def arrays(self, answers: Sequence[Any]) -> tuple[str, dict[str, Array]]:
        """`images`, `runs` and `figures` (names), and `values` [1 + runs, figures]."""
        return "figures.npz", {
            "images": np.array(self.names()),
            "runs": np.array([one.name for one in answers]),
            "figures": np.array(list(answers[0].values)),
            "values": np.array([[one.values[name] for name in answers[0].values] for one in answers]),
        }


@dataclass(frozen=True)
class Answers(task.Answers):
    """The figures of one run.

    values   by name, the one that is judged first
    samples  of a figure that is a mean over samples, its value for each, [N]
    broken   samples with an output that has NaN or Inf
    """

    values: Mapping[str, float]
    samples: Mapping[str, Floats] = field(repr=False)
    broken: int = 0

    @property
    def not_finite(self) -> int:
        """Samples with an output that has NaN or Inf."""
        return self.broken

    def figures(self) -> dict[str, Any]:
        """The figures under `figures`."""
        return {"figures": {name: json_number(value) for name, value in self.values.items()}}

    judged = figures

    def summary(self) -> str:
        """`dice 0.8123, recall 0.91`."""
        return ", ".join(f"{name} {value:.6g}" for name, value in self.values.items())


@dataclass(frozen=True)
class Comparison(task.Comparison):
    """A run against the baseline on the same samples."""

    HEADER = ("", "figure", "baseline", "run", "drop", "95 % interval")
    unit: ClassVar[str] = "of its figure"

    answers: Answers
    baseline: Answers

    @property
    def judged(self) -> str:
        """The figure that the gate judges, the first one."""
        return next(iter(self.answers.values))

    @property
    def drop(self) -> float:
        """What the judged figure lost, in its own unit."""
        return self._drop(self.judged)

    def _drop(self, name: str) -> float:
        return self.baseline.values[name] - self.answers.values[name]

    @cached_property
    def _intervals(self) -> dict[str, tuple[float, float]]:
        samples = self.answers.samples
        return {name: mean_interval(self.baseline.samples[name] - mine) for name, mine in samples.items()}

    def interval(self) -> tuple[float, float] | None:
        """By a paired bootstrap, of a figure that is a mean over samples."""
        return self._intervals.get(self.judged)

    def lines(self) -> list[tuple[str, ...]]:
        """A line for each figure."""
        return [
            (
                "" if place else self.answers.name,
                name,
                f"{self.baseline.values[name]:.6g}",
                f"{value:.6g}",
                f"{self._drop(name):.4g}",
                "{:.4g} to {:.4g}".format(*self._intervals[name]) if name in self._intervals else "-",
            )
            for place, (name, value) in enumerate(self.answers.values.items())
        ]

    def details(self, images: ImageSet) -> list[str]:
        """Nothing: only the function knows more."""
        return []

    def measures(self) -> dict[str, Any]:
        """The figures with the drop of each; what is not finite is null."""
        low, high = self.interval() or (math.nan, math.nan)
        return {
            **self.answers.figures(),
            "judged": self.judged,
            "drop": json_number(self.drop),
            "drop_low": json_number(low),
            "drop_high": json_number(high),
            "drops": {name: json_number(self._drop(name)) for name in self.answers.values},
        }


class Metric(task.Task):
    """Samples with whatever DATA knows of them, and the function that makes figures of the outputs.

    dataset   the samples
    targets   by name, each with one row for each sample of `dataset`, or a function of the index that makes such a row
    function  called once a run with the outputs and the targets of all samples, both by name
    name_of   how messages call the function

    Memory: all outputs of a run.
    """

    name: ClassVar[str] = "metric"
    stored: ClassVar[bool] = False

    def __init__(
        self,
        dataset: Dataset,
        targets: Mapping[str, Array | Callable[[int], Array]],
        bundle: Bundle,
        function: MetricFunction,
        name_of: str,
    ) -> None:
        self.dataset, self._targets, self._function, self._called = dataset, targets, function, name_of
        self._specs = bundle.manifest.outputs

    def check_count(self, count: int) -> None:
        """UsageError where all outputs of a run do not fit into memory."""
        size = count * sum(one.bytes for one in self.fields.values())
        if size > LARGEST_BYTES:
            raise UsageError(
                f"the outputs of {count} samples take {size / 1e9:.1f} GB of memory",
                why=f"{self._called} is called with all of them at once",
                fix=f"--samples {max(1, count * LARGEST_BYTES // size)}",
            )

    @property
    def fields(self) -> Mapping[str, task.Field]:
        """All outputs, without the batch axis."""
        return {spec.name: task.Field(spec.dtype, spec.shape[1:]) for spec in self._specs}

    @property
    def outputs(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(spec.name for spec in self._specs)

    def row(self, outputs: task.Row, truth: Any, baseline: task.Row | None) -> task.Row:
        """All outputs of a sample."""
        return {spec.name: outputs[spec.name].astype(spec.dtype, copy=False) for spec in self._specs}

    def images(self, indices: Sequence[int], keys: Iterable[str]) -> ImageSet:
        """The samples with what is known of them."""
        self.check_count(len(indices))
        chosen = list(indices)
        targets = {
            name: np.stack([values(index) for index in chosen]) if callable(values) else values[chosen]
            for name, values in self._targets.items()
        }
        digest = hashlib.sha256("".join(sorted(f"{key}\n" for key in keys)).encode())
        for name, array in sorted(targets.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
        return ImageSet(self.dataset, indices, digest.hexdigest(), targets)

    def answers(self, name: str, facts: Mapping[str, Any], rows: task.Row, images: ImageSet) -> Answers:
        """The figures of a run; UsageError for what the function raises, and for what is no figure."""
        log = f"{self._called} on the outputs of {name}"
        outputs, targets = ({key: array.copy() for key, array in arrays.items()} for arrays in (rows, images.targets))
        found = call_theirs(log, lambda: self._function(outputs, targets))
        values, samples = {}, {}
        for figure, value in (
            found if isinstance(found, Mapping) else {self._called.rpartition(":")[2]: found}
        ).items():
            values[str(figure)], of_each = self._figure(str(figure), value, len(images.indices))
            if of_each is not None:
                samples[str(figure)] = of_each
        if not values:
            raise UsageError(f"{self._called} returns no figure", fix=_RETURNS)
        broken = np.zeros(len(images.indices), bool)
        for array in rows.values():
            if array.dtype.kind == "f":
                broken |= ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        return Answers(name, facts, values, samples, int(broken.sum()))

    def compare(self, answers: Answers, baseline: Answers) -> Comparison:
        """A run against the baseline; UsageError where the function gives other figures for it."""
        if list(answers.values) != list(baseline.values) or answers.samples.keys() != baseline.samples.keys():
            raise UsageError(
                f"{self._called} returns other figures for {answers.name} than for the baseline",
                why=f"{', '.join(answers.values)} against {', '.join(baseline.values)}",
                fix="return the same figures in the same order for all outputs",
            )
        return Comparison(answers, baseline)

    def problems(self, baseline: Answers, images: ImageSet, weights: str) -> tuple[str, ...]:
        """Outputs or figures that are not finite."""
        odd = [name for name, value in baseline.values.items() if not math.isfinite(value)]
        return super().problems(baseline, images, weights) + tuple(f"its {name} is NaN or Inf" for name in odd)

    def _figure(self, name: str, value: Any, count: int) -> tuple[float, Floats | None]:
        """A figure, and its value for each sample where the function gave those."""
        try:
            array = np.empty((0, 0)) if value is None else np.asarray(value, np.float64)
        except (TypeError, ValueError):
            array = np.empty((0, 0))
        if array.ndim == 0 or (array.ndim == 1 and array.size == 1 and count != 1):
            return float(array.reshape(())), None
        if array.shape == (count,):
            return float(array.mean()), array
        told = f"an array {list(array.shape)}" if array.size else f"a {type(value).__name__}"
        raise UsageError(f"{self._called} returns {told} as {name}", why=f"there are {count} samples", fix=_RETURNS)
