"""Where an INT8 engine is worth it on this device: each kind of layer is measured in INT8 and without.

Whether integers are faster depends on the kernels that TensorRT finds, which no rule tells. So engines are built with
the Q/DQ of one kind of layer after another taken out, held against the reference as every engine is, and let take
turns. Q/DQ stays where the engine with it was at least 1.02 times as fast, with 95 % confidence that it is faster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import BackendError
from vitdeploy.graph.onnx_file import read_graph, write_graph
from vitdeploy.runtime.backends.base import Array
from vitdeploy.runtime.race import ROUNDS, race
from vitdeploy.statistics import Ratio
from vitdeploy.tensorrt.backend import EngineBackend
from vitdeploy.tensorrt.int8_regions import Region, find_regions, without
from vitdeploy.tensorrt.trial import Job, Trial, try_model

log = logging.getLogger(__name__)

WORTH = 1.02
MAX_BUILDS = 8

NOT_FASTER, FASTER = "INT8 is not at least 1.02 times as fast", "INT8 is at least 1.02 times as fast"
NO_BUILDS = "not measured by itself: no builds were left"
NOT_PROVEN = "without INT8 here the engine does not hold"


@dataclass
class _Search:
    """Engines of one network with more or less INT8; `left` is how many may still be built."""

    job: Job
    graph: ir.Model
    regions: Sequence[Region]
    left: int
    inputs: Mapping[str, Array]
    trials: dict[tuple[Region, ...], Trial | None] = field(default_factory=dict)
    races: list[dict[str, Any]] = field(default_factory=list)

    def trial(self, dropped: tuple[Region, ...]) -> Trial | None:
        """The proven engine without the INT8 of `dropped`; None where it does not build or does not hold."""
        dropped = tuple(region for region in self.regions if region in dropped)
        if dropped not in self.trials:
            self.left -= 1
            model = write_graph(without(self.graph, dropped)) if dropped else self.job.model
            try:
                self.trials[dropped] = try_model(self.job, model, "", self._words(dropped))
            except BackendError as error:
                self.job.attempts.append(
                    {"workaround": "as it is", "what": self._words(dropped), "passed": False, "failures": error.lines(),
                     "build_seconds": 0.0}
                )  # fmt: skip
                self.trials[dropped] = None
        found = self.trials[dropped]
        return found if found is not None and found.passed else None

    def speedup(self, more: Trial, fewer: Trial, what: str) -> Ratio:
        """How many times as fast the engine with `more` INT8 is as the one with `fewer`; noted."""
        with self._loaded(fewer) as slow, self._loaded(more) as fast:
            ratio = race(slow, fast, self.inputs)
        self.races.append({"what": what, "speedup": ratio.value, "low": ratio.low, "high": ratio.high})
        log.info("INT8 is %.3f times as fast: %s", ratio.value, what)
        return ratio

    @contextmanager
    def _loaded(self, trial: Trial) -> Iterator[EngineBackend]:
        with closing(self.job.kind(trial.engine, self.job.options, self.job.asked)) as backend:
            yield backend

    def _words(self, dropped: Sequence[Region]) -> str:
        if not dropped:
            return "all of INT8"
        if len(dropped) == len(self.regions):
            return "no INT8"
        return f"INT8, but not in {', '.join(region.name for region in dropped)}"


def worth(ratio: Ratio) -> bool:
    """Whether a measured speedup is enough to keep INT8 for."""
    return ratio.value >= WORTH and ratio.low is not None and ratio.low > 1


def choose_int8(job: Job, max_builds: int = MAX_BUILDS) -> tuple[Trial | None, dict[str, Any]]:
    """The fastest proven engine with INT8 where it is worth it, and what was measured.

    The Trial is None where neither all of INT8 nor none of it holds. At most `max_builds` engines are built, two of
    which are these two; then one for each kind of layer, the one with the most arithmetic first, with the kinds before
    it as decided.
    """
    graph = read_graph(job.model)
    regions = find_regions(graph.graph)
    search = _Search(job, graph, regions, max_builds, _inputs(job))
    everything, nothing = search.trial(()), search.trial(tuple(regions))
    decided: dict[str, dict[str, Any]] = {}
    if everything is None or nothing is None:
        chosen, dropped = (nothing, tuple(regions)) if everything is None else (everything, ())
        why = "all of INT8 does not hold" if everything is None else "the network without INT8 does not hold"
        decided = {region.name: {"int8": everything is not None, "why": why} for region in regions}
    else:
        dropped, decided = _greedy(search, everything)
        chosen, dropped = _best(search, dropped)
    kept = [region.name for region in regions if region not in dropped]
    gpu = job.kind.gpu()
    return chosen, {
        "threshold": WORTH,
        "device": gpu.name if gpu else None,
        "tensorrt": job.library.version,
        "rounds": ROUNDS,
        "batch": len(next(iter(search.inputs.values()))),
        "builds": max_builds - search.left,
        "max_builds": max_builds,
        "regions": [
            {"name": region.name, "layers": len(region.nodes), "macs": region.macs, **decided.get(region.name, {}),
             "kept": region.name in kept}
            for region in regions
        ],
        "kept": kept,
        "dropped": [region.name for region in dropped],
        "races": search.races,
    }  # fmt: skip


def _greedy(search: _Search, everything: Trial) -> tuple[tuple[Region, ...], dict[str, dict[str, Any]]]:
    """The regions whose INT8 was not worth it, each measured with the ones before it as decided."""
    current, dropped = everything, tuple[Region, ...]()
    decided: dict[str, dict[str, Any]] = {}
    for region in search.regions:
        tried = (*dropped, region)
        known = len(tried) == len(search.regions)  # all of it: that engine is there
        if search.left < 1 and not known:
            decided[region.name] = {"int8": True, "why": NO_BUILDS}
            continue
        trial = search.trial(tried)
        if trial is None:
            decided[region.name] = {"int8": True, "why": NOT_PROVEN}
            continue
        ratio = search.speedup(current, trial, f"with INT8 in {region.name} against without")
        keeps = worth(ratio)
        decided[region.name] = {"int8": keeps, "why": FASTER if keeps else NOT_FASTER, "speedup": ratio.value}
        if not keeps:
            current, dropped = trial, tried
    return dropped, decided


def _best(search: _Search, dropped: tuple[Region, ...]) -> tuple[Trial | None, tuple[Region, ...]]:
    """Of all INT8, what the search found and none: the one with the least INT8 than which no other is worth more."""
    forms = sorted({(), dropped, tuple(search.regions)}, key=len, reverse=True)
    best = forms[0]
    for form in forms[1:]:
        more, fewer = search.trial(form), search.trial(best)
        if more is not None and fewer is not None:
            what = f"{search._words(form)} against {search._words(best)}"
            if worth(search.speedup(more, fewer, what)):
                best = form
    return search.trial(best), best


def _inputs(job: Job) -> dict[str, Array]:
    """Inputs of the reference, as many as a call has: the fixed batch, or that which the engine is tuned for."""
    batch = job.bundle.manifest.inputs[0].shape[0]
    count = batch if isinstance(batch, int) else job.asked.profile[1]
    samples = job.bundle.reference().inputs
    return {name: array[np.arange(count) % len(array)] for name, array in samples.items()}
