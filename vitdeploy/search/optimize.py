"""`vitdeploy.optimize`: from a network and images to the bundles that nothing beats on this machine.

Cheap questions come first. The forms in float are exported and timed; then INT8 is timed with ranges of no meaning, so
that nobody waits for a calibration that cannot pay; then layers are calibrated once, and a greedy search and Optuna
try which groups of them to leave in float. What is best becomes bundles, and only what is measured of these counts.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.argument_types import checked_arguments
from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.data import DataSource
from vitdeploy.errors import BackendError, GateError, UsageError
from vitdeploy.exporter.requirements import need_all
from vitdeploy.preprocess import Preprocessing
from vitdeploy.progress import Progress
from vitdeploy.quantize.options import AUTO, Int8Options
from vitdeploy.runtime.backends import Backend, backends, find_backend, full_name
from vitdeploy.runtime.options import Options
from vitdeploy.search.budget import IMAGES, KEEP, MINUTES, Budget
from vitdeploy.search.front import front
from vitdeploy.search.greedy import greedy_plans
from vitdeploy.search.plan import FIXED, GREEDY, INT8, OPTUNA, Plan, Trial
from vitdeploy.search.report import OptimizeReport, Wish
from vitdeploy.search.setting import Setting, folder_of_search, graph_of
from vitdeploy.search.study import Study
from vitdeploy.targets import find_target

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.costs.origin import Origin
    from vitdeploy.search.bench import Bench, Int8Bench

log = logging.getLogger(__name__)

GREEDY_PLANS = 8
FEW = 64  # images that judge one group of layers alone
HINTS = ("bf16",)  # precisions of a session that may be faster than the types of the graph
UNLIMITED = 1 << 30  # plans


@checked_arguments
def optimize(
    source: str | Path | nn.Module,
    data: DataSource,
    output: str | Path,
    *,
    runtime: str,
    max_drop: float | None = None,
    latency: float | None = None,
    megabytes: float | None = None,
    search: str = OPTUNA,
    minutes: float = MINUTES,
    trials: int | None = None,
    keep: int = KEEP,
    methods: Sequence[str] = (AUTO,),
    threads: int | None = None,
    samples: int = 300,
    images: int = IMAGES,
    final_images: int | None = None,
    seed: int = 0,
    force: bool = False,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    inputs: Sequence[str] | None = None,
    batch: int | str | None = None,
    checkpoint: str | Path | None = None,
    labels: Sequence[str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    features: bool = False,
) -> OptimizeReport:
    """Find the bundles of a network that no other beats in both speed and accuracy on this machine.

    Args:
        source: What `vitdeploy.export` takes.
        data: Labelled images like those in use, see `vitdeploy.data`; without labels the ratio to noise is judged.
        output: The folder of the bundles, and of the journal with which an interrupted search goes on.
        runtime: What it is to run on, here and now.
        max_drop: Points of top-1 that may be lost against FP32.
        latency: Milliseconds that a call may take, in the median.
        megabytes: That the model may have.
        search: `optuna`, after a greedy one, or `greedy` alone.
        minutes: After which the search tries nothing more; the export of what was found comes on top.
        trials: Plans in INT8 that the search may try; None for as many as the time allows.
        keep: Bundles in INT8 to write at most.
        methods: How ranges are chosen, each of which is calibrated and tried, see `Int8Options`.
        threads: Threads of the runtime; None leaves it to it.
        samples: Images to calibrate on.
        images: Images that judge a trial.
        final_images: Images that judge the bundles at the end, every class with its share; None for all of DATA.
        seed: Seed of the choice of images and of the search.
        force: Whether to begin anew in a folder that has a search already.
        image_size: See `vitdeploy.export`, like all that follow.
        num_classes: Classes of a model of the zoo or of timm.
        inputs: Of a network that is no classifier of RGB images.
        batch: Samples a call takes, or `dynamic`.
        checkpoint: Weights for a model of the zoo or of timm.
        labels: Names of the classes in the order of the logits.
        hyperparameters: Replace some of the card's.
        preprocessing: How images become inputs.
        features: Whether the feature pyramid is exported instead of the logits.

    Returns:
        What was found. It has not passed where no bundle keeps all that was asked.

    Raises:
        UsageError: A name or an option does not exist or does not fit, or the folder has a search of something else.
        InputError: DATA is not there, is empty, or does not feed the network.
        ExportError: The network cannot be exported.
        BackendError: The runtime is not here or cannot run the network.
        MissingDependencyError: A package of the extra `optimize` or `export` is not installed.
    """
    need_all()
    wish = Wish(max_drop, latency, megabytes)
    wish.check()
    budget = Budget(search, minutes, trials, keep, tuple(dict.fromkeys(methods)), images, final_images)
    budget.check()
    name = full_name(runtime)
    network = {
        "image_size": image_size,
        "num_classes": num_classes,
        "inputs": inputs,
        "batch": batch,
        "checkpoint": checkpoint,
        "labels": labels,
        "hyperparameters": hyperparameters,
        "preprocessing": preprocessing,
        "features": features,
    }
    options = Int8Options(samples=samples, seed=seed)
    setting = Setting(source, data, Path(output), name, _target(name), threads, options, images, network)
    with ExitStack() as stack:
        stack.enter_context(folder_of_search(setting.output, force=force))
        return _Search(setting, budget, wish, stack).run()


class _Search:
    """The steps, one after another; what each of them finds is in the study at once."""

    def __init__(self, setting: Setting, budget: Budget, wish: Wish, stack: ExitStack) -> None:
        self._setting, self._budget, self._wish, self._stack = setting, budget, wish, stack
        self._end = time.monotonic() + 60 * budget.minutes
        self._notes: list[str] = []

    def run(self) -> OptimizeReport:
        """Everything."""
        from vitdeploy.costs.origin import open_source
        from vitdeploy.search.bench import Bench, Int8Bench, int8_latency
        from vitdeploy.search.final import measured

        setting = self._setting
        kind, options = find_backend(setting.runtime), Options(threads=setting.threads)
        asked = {"source": setting.source, "precision": INT8, "target": setting.target, **setting.network}
        origin = open_source(setting.data, setting.options, max(setting.images, FEW), asked)
        self._notes += origin.notes
        timed = int8_latency(origin, setting.runtime, setting.threads)
        # Before anything is written or read in the folder: what lies there may be of another network.
        study = Study(setting.output, self._about(kind, origin), self._choices(timed), seed=setting.options.seed)
        bundle = setting.export(Plan(target=setting.target))
        fp32 = kind.open(bundle, options)
        self._stack.callback(fp32.close)
        bench = Bench(kind, options, fp32, *_judges(fp32, origin))
        known = {trial.plan: trial for trial in study.trials()}
        self._floats(bench, bundle, study, known)
        inside: dict[str, Int8Bench] = {}
        if timed.faster:
            for method in self._budget.methods:
                int8 = Int8Options(samples=setting.options.samples, seed=setting.options.seed, method=method)
                whole = Plan(INT8, setting.target, method)
                inside[whole.label] = Int8Bench(whole, origin, int8, bench, timed)
                self._greedy(inside[whole.label], study, known)
            if self._budget.search == OPTUNA:
                self._optuna(inside, study)
            self._hints(inside, study)
        else:
            self._notes.append(
                f"INT8 is not faster than FP32 on {setting.runtime} here (x{timed.whole.value:.2f} of the time), "
                "so nothing was calibrated"
            )
        found = study.trials()
        real = [one for one in found if not _is_int8(one) or _has_layers(one.plan, inside)]
        best = _with_hints(_kept(real, self._budget.keep), real)
        bundles = [(trial, self._bundle(trial, inside)) for trial in best]
        labelled = origin.labels is not None
        points, judges = measured(
            bundles,
            bundle,
            setting.data,
            setting.runtime,
            setting.threads,
            images=self._budget.final_images,
            labelled=labelled,
        )
        images = {"trials": bench.judge.images, "bundles": judges}
        return OptimizeReport(points, found, self._wish, fp32.describe(), images, self._notes)

    def _bundle(self, trial: Trial, inside: Mapping[str, Int8Bench]) -> Bundle:
        plan = graph_of(trial.plan)
        if not _is_int8(trial):
            return self._setting.export(plan)
        tried = inside[plan.label]
        return self._setting.export(plan, tried.floats(trial.plan), tried.known)

    def _about(self, kind: type[Backend], origin: Origin) -> dict[str, Any]:
        """What the trials depend on."""
        from vitdeploy import __version__
        from vitdeploy.machine.hardware import read_cpu
        from vitdeploy.quantize.calibrate import digest

        setting, samples = self._setting, origin.samples
        judges = "".join(samples.data.sha256(index) for index in samples.evaluate)
        return {
            "network": digest(origin.graph),
            "runtime": [setting.runtime, kind.version(), setting.threads],
            "processor": read_cpu().name,
            "data": hashlib.sha256(judges.encode()).hexdigest(),
            "samples": setting.options.samples,
            "images": setting.images,
            "methods": list(self._budget.methods),
            "seed": setting.options.seed,
            "vitdeploy": __version__,
        }

    def _choices(self, timed: Any) -> dict[Plan, list[str]]:
        from vitdeploy.search.bench import group_names

        return {Plan(INT8, self._setting.target, method): group_names(timed) for method in self._budget.methods}

    def _floats(self, bench: Bench, bundle: Bundle, study: Study, known: dict[Plan, Trial]) -> None:
        """FP32, FP16, and FP32 computed in less where the runtime lets one choose that."""
        target = self._setting.target
        plans = [Plan(target=target), Plan("fp16", target)]
        if "compute_precision" not in bench.kind.refuses:
            plans += [Plan(target=target, compute_precision=hint) for hint in HINTS]
        for plan in plans:
            if plan in known:
                continue
            try:
                made = self._setting.export(graph_of(plan)) if plan.precision != "fp32" else bundle
                options = Options(threads=self._setting.threads, compute_precision=plan.compute_precision)
                backend = bench.kind.open(made, options)
            except (BackendError, GateError) as error:  # the network loses too much in FP16, or the runtime has none
                self._notes.append(f"{plan.label} was left out: {error.what}")
                continue
            try:
                if plan.compute_precision is not None and _computes(backend) == _computes(bench.fp32):
                    self._notes.append(f"{plan.label} was left out: {_computes(backend)} is computed here all the same")
                else:
                    study.add(bench.trial(plan, FIXED, backend, _megabytes(made)))
            finally:
                backend.close()

    def _greedy(self, inside: Int8Bench, study: Study, known: dict[Plan, Trial]) -> None:
        # Times of groups that read from each other do not quite add up: all of them in INT8 may be faster.
        proposed = [*greedy_plans(inside.whole, inside.groups, GREEDY_PLANS), inside.whole]
        plans = [plan for plan in dict.fromkeys(proposed) if plan not in known]
        with Progress("trying plans, greedily", len(plans)) as progress:
            for number, plan in enumerate(plans[: min(len(plans), self._left(study))]):
                if number and time.monotonic() > self._end:
                    return
                study.add(inside.trial(plan, GREEDY))
                progress.advance()

    def _optuna(self, inside: Mapping[str, Int8Bench], study: Study) -> None:
        total = None if self._budget.trials is None else self._left(study)
        with Progress("trying plans of Optuna", total) as progress:
            for proposal in study.proposals():
                if self._left(study) <= 0 or time.monotonic() > self._end:
                    proposal.give_up()
                    return
                try:
                    proposal.tell(inside[proposal.plan.label].trial(proposal.plan, OPTUNA))
                except BaseException:
                    proposal.give_up()
                    raise
                progress.advance()

    def _hints(self, inside: Mapping[str, Int8Bench], study: Study) -> None:
        """The best plans in INT8 with their floats computed in less, where that makes FP32 faster."""
        trials = study.trials()
        known = {trial.plan for trial in trials}
        hints = [trial.plan.compute_precision for trial in trials if _is_faster_by_hint(trial)]
        best = [trial.plan for trial in _kept(trials, self._budget.keep) if _is_int8(trial)]
        plans = [replace(plan, compute_precision=hint) for plan in map(graph_of, best) for hint in hints]
        plans = [plan for plan in dict.fromkeys(plans) if plan not in known and graph_of(plan).label in inside]
        with Progress("trying INT8 computed in less", len(plans)) as progress:
            for plan in plans[: self._left(study)]:
                study.add(inside[graph_of(plan).label].trial(plan, GREEDY))
                progress.advance()

    def _left(self, study: Study) -> int:
        """Plans in INT8 that may still be tried."""
        most = UNLIMITED if self._budget.trials is None else self._budget.trials
        return max(0, most - sum(_is_int8(trial) for trial in study.trials()))


def _judges(fp32: Backend, origin: Any) -> tuple[Any, Any]:
    from vitdeploy.search.judge import Judge

    few = replace(origin.samples, evaluate=origin.samples.evaluate[:FEW])
    return Judge(fp32, origin.samples, origin.labels, origin.scores), Judge(fp32, few, None, None)


def _kept(trials: Sequence[Trial], most: int) -> list[Trial]:
    """What becomes a bundle: everything in float, and of INT8 what is on the front, at most `most`, spread over it."""
    fixed = [trial for trial in trials if not _is_int8(trial)]
    best = [trial for trial in front(trials, lambda trial: trial.values) if _is_int8(trial)]
    if len(best) > most:
        step = (len(best) - 1) / max(1, most - 1)
        best = [best[round(number * step)] for number in range(most)]
    return [*fixed, *best]


def _with_hints(best: Sequence[Trial], trials: Sequence[Trial]) -> list[Trial]:
    """What becomes a bundle, and other trials of the same bundles: what they are computed in costs no export."""
    graphs = {graph_of(one.plan) for one in best if _is_int8(one)}
    return [*best, *(one for one in trials if graph_of(one.plan) in graphs and one not in best)]


def _has_layers(plan: Plan, inside: Mapping[str, Int8Bench]) -> bool:
    """Whether a plan has layers in INT8, of what was calibrated now."""
    label = graph_of(plan).label
    return label in inside and bool(inside[label].inside(plan))


def _is_faster_by_hint(trial: Trial) -> bool:
    """Whether it is FP32 computed in less, and that takes certainly less time."""
    high = trial.ratio.high
    return trial.plan.precision == "fp32" and trial.plan.compute_precision is not None and high is not None and high < 1


def _computes(backend: Backend) -> Any:
    """The precision that a session really has."""
    return backend.describe().get("compute_precision")


def _is_int8(trial: Trial) -> bool:
    return trial.plan.precision == INT8


def _megabytes(bundle: Bundle) -> float:
    return bundle.manifest.files[MODEL].bytes / 1e6


def _target(runtime: str) -> str:
    """The target in whose form the network is fastest on a runtime; UsageError for one on which nothing is tried."""
    kind = find_backend(runtime)
    if not kind.times_layers:
        able = [one.name for one in backends() if one.times_layers]
        raise UsageError(
            f"plans are not tried on {runtime}",
            why="its engines are built and timed by vitdeploy build BUNDLE",
            fix=f"--runtime {' or '.join(able)}",
        )
    kind.require()
    return find_target(runtime).name
