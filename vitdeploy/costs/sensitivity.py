"""`vitdeploy.sensitivity`: what each layer or block costs by itself, measured one after another."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitdeploy.argument_types import checked_arguments
from vitdeploy.data import DataSource
from vitdeploy.errors import UsageError
from vitdeploy.exporter.requirements import need_all
from vitdeploy.preprocess import Preprocessing
from vitdeploy.progress import Progress
from vitdeploy.quantize.options import AUTO, Int8Options
from vitdeploy.runtime.backends import find_backend, full_name
from vitdeploy.runtime.race import timing_runtime

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.costs.origin import Origin
    from vitdeploy.costs.report import Cost, SensitivityReport
    from vitdeploy.costs.trials import Part, Trial
    from vitdeploy.quantize.evaluator import Evaluator
    from vitdeploy.targets import Target

log = logging.getLogger(__name__)

PRECISIONS = ("int8", "fp16")
UNITS = ("layer", "block")
IMAGES = 200


@checked_arguments
def sensitivity(
    source: str | Path | nn.Module,
    data: DataSource,
    *,
    precision: str = "int8",
    target: str | None = None,
    by: str = "layer",
    sort: str = "snr",
    runtime: str | None = None,
    latency: bool = True,
    threads: int | None = None,
    samples: int = 300,
    images: int = IMAGES,
    method: str = AUTO,
    seed: int = 0,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    inputs: Sequence[str] | None = None,
    batch: int | str | None = None,
    checkpoint: str | Path | None = None,
    labels: Sequence[str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    features: bool = False,
    on_interrupt: Literal["raise", "report"] = "raise",
) -> SensitivityReport:
    """Measure what every layer or block of a network costs when it alone is in INT8 or FP16, and say why.

    Args:
        source: An FP32 bundle, or everything that `vitdeploy.export` takes.
        data: Images like those in use, see `vitdeploy.data`; those that calibrate and those that judge are different
            ones. Labels, where they are those of the network, give points of top-1.
        precision: `int8` or `fp16`.
        target: A name of `vitdeploy targets`, in whose form the graph is; None for `portable`, or that of the bundle.
        by: `layer` or `block`, whose layers change their precision together.
        sort: `snr`, `points`, `ms` or `order`, that of the graph.
        runtime: What milliseconds are measured on; None for the first runtime of the target that is here.
        latency: Whether milliseconds are measured.
        threads: Threads of the runtime; None leaves it to it.
        samples: Images to calibrate INT8 on.
        images: Images to judge on; noise is measured on the first 64 of them.
        method: How ranges of activations are chosen, see `Int8Options`.
        seed: Seed of the choice of images.
        image_size: See `vitdeploy.export`, like all that follow but the last one; for a bundle they are refused.
        num_classes: Classes of a model of the zoo or of timm.
        inputs: Of a network that is no classifier of RGB images.
        batch: Samples a call takes, or `dynamic`.
        checkpoint: Weights for a model of the zoo or of timm.
        labels: Names of the classes in the order of the logits.
        hyperparameters: Replace some of the card's.
        preprocessing: How images become inputs.
        features: Whether the feature pyramid is measured instead of the logits.
        on_interrupt: Whether Ctrl-C raises KeyboardInterrupt, or ends with a `report` of the parts that were measured;
            without any it always raises.

    Returns:
        What was measured.

    Raises:
        UsageError: A name or an option does not exist or does not fit, or the bundle is not FP32.
        InputError: DATA is not there, is empty, or does not feed the network.
        ExportError: The network cannot be captured, or has nothing that could change its precision.
        BackendError: The runtime is not here or cannot run the network.
        MissingDependencyError: A package of the extra `export` is not installed.
    """
    need_all()
    from vitdeploy.costs.origin import is_bundle, open_bundle, open_source
    from vitdeploy.costs.report import check_sort
    from vitdeploy.costs.trials import HalfTrial, Int8Trial
    from vitdeploy.quantize.evaluator import Evaluator
    from vitdeploy.quantize.samples import Kept

    _choose("precision", precision, PRECISIONS)
    _choose("by", by, UNITS)
    check_sort(sort)
    if images < 1:
        raise UsageError("at least 1 image is required to judge", fix=f"--images {IMAGES}")
    network = {
        "image_size": image_size,
        "num_classes": num_classes,
        "inputs": inputs,
        "batch": batch,
        "checkpoint": checkpoint,
        "labels": labels,
        "hyperparameters": hyperparameters or None,
        "preprocessing": preprocessing or None,
        "features": features,
    }
    options = Int8Options(samples=samples, method=method, seed=seed)
    if precision == "fp16":
        options = replace(options, samples=1)  # which nothing is calibrated on
    _check_runtime(runtime, target, latency)
    if is_bundle(source):
        assert isinstance(source, (str, Path)), "nothing else is a folder"
        _refuse(source, network)
        origin = open_bundle(source, data, options, images, target)
    else:
        asked = {"source": source, "precision": precision, "target": target or "portable", **network}
        origin = open_source(data, options, images, asked)
    timing = _runtime(runtime, origin.target) if latency else None
    evaluator = Evaluator(origin.graph, Kept(origin.samples.evaluation()), origin.labels, scores=origin.scores)
    trial: Trial = Int8Trial(origin, options) if precision == "int8" else HalfTrial(origin)
    measuring = _Measuring(origin, trial, evaluator, precision, by, timing, threads)
    try:
        measuring.run()
    except KeyboardInterrupt:
        if on_interrupt == "raise" or not measuring.costs:
            raise
        return measuring.report(sort, interrupted=True)
    return measuring.report(sort, interrupted=False)


class _Measuring:
    """The parts that were measured so far."""

    def __init__(
        self,
        origin: Origin,
        trial: Trial,
        evaluator: Evaluator,
        precision: str,
        by: str,
        runtime: str | None,
        threads: int | None,
    ) -> None:
        self._origin, self._trial, self._evaluator = origin, trial, evaluator
        self._precision, self._by, self._runtime, self._threads = precision, by, runtime, threads
        self._parts = trial.parts(by)
        self._all = [node for part in self._parts for node in part.nodes]
        self.costs: dict[str, Cost] = {}

    def run(self) -> None:
        """Measure all parts together, one after another, and then their time."""
        with Progress(f"measuring each {self._by} alone", len(self._parts) + 1) as progress:
            self._together = self._measured(self._all)
            progress.advance()
            for part in self._parts:
                self.costs[part.name] = self._cost(part)
                progress.advance()
        if self._runtime is not None:
            self._time(self._runtime)

    def report(self, sort: str, *, interrupted: bool) -> SensitivityReport:
        """What was measured."""
        from vitdeploy.costs.report import SensitivityReport, ranked, shared
        from vitdeploy.quantize.samples import SNR_IMAGES

        origin, (together, drop) = self._origin, self._together
        judges = len(origin.samples.evaluate)
        costs = list(self.costs.values())
        if len(costs) == len(self._parts):
            costs = shared(costs, together)
        return SensitivityReport(
            source=origin.name,
            precision=self._precision,
            target=origin.target.name,
            by=self._by,
            parts=ranked(costs, sort),
            together=together,
            drop=drop,
            fp32_top1=self._evaluator.fp32_top1,
            images={
                "calibrate": len(origin.samples.calibrate) if self._precision == "int8" else 0,
                "noise": min(judges, SNR_IMAGES),
                "judge": self._evaluator.images,
            },
            runtime=self._runtime,
            left=self._trial.left,
            notes=origin.notes,
            total=len(self._parts),
            interrupted=interrupted,
        )

    def _measured(self, nodes: Sequence[str]) -> tuple[dict[str, float], Any]:
        trial = self._trial
        return self._evaluator.measure(trial.judged(trial.build(nodes)), trial.mode)

    def _cost(self, part: Part) -> Cost:
        from vitdeploy.costs.reasons import judged
        from vitdeploy.costs.report import Cost

        own_db, reasons = self._trial.reasons(part)
        if all(node in self._trial.left for node in part.nodes):
            return Cost(part, {}, own_db, reasons=reasons)
        outputs, drop = self._measured(part.nodes)
        at_outputs = min(outputs.values(), default=float("inf"))
        return Cost(part, outputs, own_db, drop=drop, reasons=judged(own_db, at_outputs, reasons))

    def _time(self, runtime: str) -> None:
        """The milliseconds that the parts save, those of a group by their multiply-accumulates."""
        from vitdeploy.quantize.latency import Race
        from vitdeploy.runtime.options import Options

        race = Race(find_backend(runtime), Options(threads=self._threads), self._trial.model)
        groups = [group for group in self._trial.together(self._parts) if group]
        plain = race.load(self._trial.model)
        with Progress(f"measuring milliseconds on {runtime}", len(groups)) as progress:
            for group in groups:
                other = race.load(self._trial.build([node for part in group for node in part.nodes]))
                saving = race.saved(plain, other)
                other.close()
                macs = sum(part.macs for part in group)
                for part in group:
                    share = part.macs / macs if macs else 1 / len(group)
                    self.costs[part.name] = replace(self.costs[part.name], saving=saving.part(share))
                progress.advance()


def _choose(option: str, value: str, words: Sequence[str]) -> None:
    if value not in words:
        raise UsageError(f"--{option} cannot be {value!r}", fix=f"--{option} {' or '.join(words)}")


def _refuse(source: str | Path, network: Mapping[str, object]) -> None:
    given = [name for name, value in network.items() if value not in (None, False)]
    if given:
        option = {"inputs": "input", "hyperparameters": "set"}.get(given[0], given[0].replace("_", "-"))
        raise UsageError(
            f"--{option} does not belong to {source}",
            why="a bundle has its network, its weights and its preprocessing",
            fix=f"leave --{option} out, or give what the bundle was exported from",
        )


def _check_runtime(runtime: str | None, target: str | None, latency: bool) -> None:
    """UsageError for a runtime that cannot time layers, before anything slow begins."""
    if runtime is None:
        return
    if not latency:
        raise UsageError("--runtime is what milliseconds are measured on", fix="leave --no-latency out")
    from vitdeploy.platforms.boards import export_target

    timing_runtime(full_name(runtime), export_target(target or "portable")[0], "--runtime")
    find_backend(full_name(runtime)).require()


def _runtime(runtime: str | None, target: Target) -> str | None:
    """The runtime that was asked for, or the first one of the target that is here; None where there is none."""
    if runtime is not None:
        return timing_runtime(full_name(runtime), target, "--runtime")
    able = [find_backend(name) for name in target.runtimes]
    found = next((one.name for one in able if one.times_layers and one.available() is None), None)
    if found is None:
        log.warning("no runtime of %s that times layers is here: milliseconds are not measured", target.name)
    return found
