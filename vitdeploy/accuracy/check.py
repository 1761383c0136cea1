"""What an accuracy check compares, and the report of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vitdeploy.accuracy.compute import Source
from vitdeploy.accuracy.report import AccuracyReport
from vitdeploy.accuracy.runs import Run, check_same_network, open_baseline, open_runs
from vitdeploy.bundle import Bundle
from vitdeploy.data import DataSource
from vitdeploy.errors import UsageError
from vitdeploy.runtime.options import Options
from vitdeploy.tasks.choose import Asked, open_task
from vitdeploy.tasks.outputs import SEGMENTATION
from vitdeploy.tasks.task import ImageSet, Row, Task


class Ran(NamedTuple):
    """What is told of a run, as JSON values.

    name       in words
    facts      what ran, see `Session.describe`
    bundle     its place among the bundles of the check; -1 for the one that is only the baseline
    reference  whether it is PyTorch
    """

    name: str
    facts: Mapping[str, Any]
    bundle: int
    reference: bool


class Opened(NamedTuple):
    """The runs of a check, ready to compute, the baseline first; and the runtimes that were left out."""

    ran: Sequence[Ran]
    sources: Sequence[Source]
    skipped: Sequence[dict[str, str]]


@dataclass(frozen=True)
class Check:
    """Bundles of one network on some runtimes, their baseline, and the samples that they answer.

    bundles, baseline  opened; None to find the baseline
    runtimes, options  as they were asked for
    checkpoint         of PyTorch
    task, indices      the samples, in their order
    """

    bundles: Sequence[Bundle]
    baseline: Bundle | None
    runtimes: Sequence[str]
    options: Mapping[str, Any]
    checkpoint: str | Path | None
    task: Task
    indices: Sequence[int]

    @classmethod
    def of(
        cls,
        bundle: Bundle | str | Path | Sequence[Bundle | str | Path],
        data: DataSource,
        asked: Asked,
        options: Options,
        *,
        runtime: str | Sequence[str],
        baseline: Bundle | str | Path | None,
        samples: int | None,
        seed: int,
    ) -> Check:
        """Opens bundles and DATA; no runtime is opened. Raises as `validate`."""
        given = [bundle] if isinstance(bundle, (Bundle, str, Path)) else list(bundle)
        bundles = [_opened(one) for one in given]
        runtimes = [runtime] if isinstance(runtime, str) else list(runtime)
        if not bundles or not runtimes:
            raise UsageError("there is nothing to validate", fix="give at least one bundle and one runtime")
        check_same_network(bundles)
        labels = next((one.manifest.labels for one in bundles if one.manifest.labels), ())
        task = open_task(bundles[0], data, asked._replace(labels=labels))
        dataset = task.dataset
        indices = dataset.sample(samples, seed) if samples is not None else range(len(dataset))
        given_options = options.given()
        checkpoint = given_options.pop("checkpoint", None)
        extra = None if baseline is None else _opened(baseline)
        return cls(bundles, extra, runtimes, given_options, checkpoint, task, indices)

    def open(self, closing: ExitStack) -> Opened:
        """Loads every run and the baseline. Raises as `validate`."""
        runs, skipped = open_runs(self.bundles, self.runtimes, self.options, closing)
        reference = open_baseline(
            self.bundles, self.baseline, str(runs[0].facts["backend"]), self.checkpoint, self.options, closing
        )
        others = [run for run in runs if run.source.identity != reference.source.identity]
        if not others:
            raise UsageError(
                f"there is nothing to compare: {reference.name} is the baseline",
                fix="give another bundle, or another --runtime",
            )
        every = (reference, *others)
        _check_frames(self.task, every)
        return Opened([self._ran(run) for run in every], [run.source for run in every], skipped)

    def bundle_of(self, ran: Ran) -> Bundle:
        """The bundle of a run."""
        if ran.bundle >= 0:
            return self.bundles[ran.bundle]
        assert self.baseline is not None, "the only bundle that is not among the others"
        return self.baseline

    def report(
        self,
        images: ImageSet,
        ran: Sequence[Ran],
        rows: Sequence[Row],
        skipped: Sequence[Mapping[str, str]],
        max_drop: float | None,
    ) -> AccuracyReport:
        """The report of what was computed, of the baseline first."""
        baseline, *answers = (
            self.task.answers(one.name, one.facts, found, images) for one, found in zip(ran, rows, strict=True)
        )
        reference = ran[0]
        by_torch = f"PyTorch FP32 (torch {reference.facts['version']})"
        return AccuracyReport(
            images,
            baseline,
            by_torch if reference.reference else f"FP32 bundle, {reference.name}",
            self.task.problems(baseline, images, self.bundle_of(reference).manifest.model.weights.kind),
            tuple(self.task.compare(one, baseline) for one in answers),
            tuple(skipped),
            max_drop,
        )

    def _ran(self, run: Run) -> Ran:
        paths = [bundle.path for bundle in self.bundles]
        place = paths.index(run.bundle.path) if run.bundle.path in paths else -1
        return Ran(run.name, run.facts, place, run.is_reference)


def _opened(bundle: Bundle | str | Path) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def _check_frames(task: Task, runs: Sequence[Run]) -> None:
    """UsageError unless all runs see the same part of an image, where masks are compared there."""
    frames = {
        None if recipe is None else (recipe.size, recipe.mode, recipe.crop_ratio)
        for recipe in (run.bundle.manifest.preprocessing for run in runs)
    }
    if task.name == SEGMENTATION and len(frames) > 1:
        raise UsageError(
            "the bundles see different parts of an image",
            why="their preprocessing differs in size, mode or crop, and masks are compared in the network's frame",
            fix="validate them one at a time, each with a baseline of its own",
        )
