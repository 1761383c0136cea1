"""`vitdeploy.optimize`: what is asked of a search, checked before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.argument_types import checked_arguments
from vitdeploy.data import DataSource
from vitdeploy.errors import UsageError
from vitdeploy.exporter.requirements import need_all
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.options import AUTO, Int8Options
from vitdeploy.runtime.backends import backends, find_backend, full_name
from vitdeploy.runtime.options import Options
from vitdeploy.search.budget import IMAGES, KEEP, MINUTES, Budget
from vitdeploy.search.graphs import GraphSearch
from vitdeploy.search.plan import OPTUNA
from vitdeploy.search.report import OptimizeReport, Wish
from vitdeploy.search.setting import Setting, folder_of_search
from vitdeploy.search.steps import Search
from vitdeploy.targets import find_target

if TYPE_CHECKING:
    from torch import nn


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
        minutes: For all of it. What the bundles will take at the end is estimated and set aside, two thirds at most.
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
    search_kind, target = _search_on(name, threads)
    setting = Setting(source, data, Path(output), name, target, threads, options, images, network)
    with ExitStack() as stack:
        stack.enter_context(folder_of_search(setting.output, force=force))
        return search_kind(setting, budget, wish, stack).run()


def _search_on(runtime: str, threads: int | None) -> tuple[type[Search], str]:
    """How plans are tried on a runtime, and the target in whose form the network is fastest there.

    UsageError for a runtime on which nothing is tried, and for threads of one that has none.
    """
    from vitdeploy.tensorrt.backend import EngineBackend

    kind = find_backend(runtime)
    if issubclass(kind, EngineBackend):
        from vitdeploy.search.engines import EngineSearch

        kind.admit(Options(threads=threads))
        kind.require_builder()
        return EngineSearch, find_target(kind.target()).name
    if not kind.times_layers:
        able = [one.name for one in backends() if one.times_layers or issubclass(one, EngineBackend)]
        raise UsageError(
            f"plans are not tried on {runtime}",
            why="it has one way to compute a bundle",
            fix=f"--runtime {', '.join(able[:-1])} or {able[-1]}",
        )
    kind.require()
    return GraphSearch, find_target(runtime).name
