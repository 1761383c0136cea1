"""What every search does: open the network and what it found before, let plans be tried, and measure their bundles."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import monotonic as now
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.runtime.backends import Backend, find_backend
from vitdeploy.runtime.options import Options
from vitdeploy.search.budget import Budget, closing_seconds
from vitdeploy.search.plan import INT8, Plan, Trial
from vitdeploy.search.report import OptimizeReport, Wish
from vitdeploy.search.setting import Setting
from vitdeploy.search.study import Study

if TYPE_CHECKING:
    from vitdeploy.costs.origin import Origin
    from vitdeploy.exporter.preparation import Prepared
    from vitdeploy.search.bench import Bench

log = logging.getLogger(__name__)

FEW = 64  # images that judge one group of layers alone


@dataclass(frozen=True)
class Ground:
    """What a search stands on: the network with its images, what was tried, and FP32 as a bundle and on the runtime."""

    origin: Origin
    study: Study
    bundle: Bundle
    bench: Bench

    @property
    def known(self) -> dict[Plan, Trial]:
        """What was tried, now or before an interruption."""
        return {trial.plan: trial for trial in self.study.trials()}


class Search(ABC):
    """The steps, one after another; what each of them finds is in the study at once."""

    def __init__(self, setting: Setting, budget: Budget, wish: Wish, stack: ExitStack) -> None:
        self._setting, self._budget, self._wish, self._stack = setting, budget, wish, stack
        self._kind = find_backend(setting.runtime)
        self._end = now() + 60 * budget.minutes
        self._notes: list[str] = []
        self._prepared: Prepared | None = None

    def run(self) -> OptimizeReport:
        """Everything."""
        from vitdeploy.costs.origin import open_source
        from vitdeploy.search.bench import Bench
        from vitdeploy.search.final import measured

        setting = self._setting
        options = Options(threads=setting.threads)
        asked = {"source": setting.source, "precision": INT8, "target": setting.target, **setting.network}
        origin = open_source(setting.data, setting.options, max(setting.images, FEW), asked)
        self._notes += origin.notes
        # Before anything is written or read in the folder: what lies there may be of another network.
        study = Study(setting.output, self._about(origin), seed=setting.options.seed)
        self._prepared = origin.prepared
        baseline = self._baseline
        bundle = setting.export(baseline, self._prepared)
        fp32 = self._opened(baseline, bundle)
        self._stack.callback(fp32.close)
        ground = Ground(origin, study, bundle, Bench(self._kind, options, fp32, *_judges(fp32, origin)))
        made = self._best(ground)
        labelled = origin.labels is not None
        points, judges = measured(
            made,
            bundle,
            setting.data,
            setting.runtime,
            setting.threads,
            images=self._budget.final_images,
            labelled=labelled,
        )
        images = {"trials": ground.bench.judge.images, "bundles": judges}
        report = OptimizeReport(points, study.trials(), self._wish, fp32.describe(), images, self._notes)
        self._leave(report)
        return report

    @property
    def _baseline(self) -> Plan:
        """FP32, which all others are compared with."""
        return Plan(target=self._setting.target)

    @abstractmethod
    def _opened(self, plan: Plan, bundle: Bundle) -> Backend:
        """A plan in float on the runtime; BackendError or GateError where that cannot be."""

    @abstractmethod
    def _best(self, ground: Ground) -> Sequence[tuple[Trial, Bundle]]:
        """Try plans; the best of them as bundles, FP32 included."""

    def _leave(self, report: OptimizeReport) -> None:  # noqa: B027
        """What is left to do for whoever uses the bundles."""

    def _is_late(self, ground: Ground, written: int, there: int) -> bool:
        """Whether there is time for nothing but the bundles: so many that will be written, and so many that are there.

        Two thirds of all there is are set aside for them at most.
        """
        images = 0
        if ground.origin.labels is not None:
            images = self._budget.final_images or len(ground.origin.samples.data)
        exported = sum(ground.bundle.manifest.graph["seconds"].values())
        needed = closing_seconds(written, there, exported, images, ground.bench.judge.seconds)
        late = now() > self._end - min(needed, 60 * self._budget.minutes * 2 / 3)
        if late:
            log.info("no more plans are tried: the bundles of the front will take about %.0f s", needed)
        return late

    def _device(self) -> str:
        """What the times are of."""
        from vitdeploy.machine.hardware import read_cpu

        return read_cpu().name

    def _about(self, origin: Origin) -> dict[str, Any]:
        """What the trials depend on."""
        from vitdeploy import __version__
        from vitdeploy.quantize.calibrate import digest

        setting, samples = self._setting, origin.samples
        judges = "".join(samples.data.sha256(index) for index in samples.evaluate)
        return {
            "network": digest(origin.graph),
            "runtime": [setting.runtime, self._kind.version(), setting.threads],
            "processor": self._device(),
            "data": hashlib.sha256(judges.encode()).hexdigest(),
            "samples": setting.options.samples,
            "images": setting.images,
            "methods": list(self._budget.methods),
            "seed": setting.options.seed,
            "vitdeploy": __version__,
        }


def megabytes(bundle: Bundle) -> float:
    """Of its model."""
    return bundle.manifest.files[MODEL].bytes / 1e6


def _judges(fp32: Backend, origin: Any) -> tuple[Any, Any]:
    from vitdeploy.search.judge import Judge

    few = replace(origin.samples, evaluate=origin.samples.evaluate[:FEW])
    return Judge(fp32, origin.samples, origin.labels, origin.scores), Judge(fp32, few, None, None)
