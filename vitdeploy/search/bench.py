"""Trying plans: each takes turns with FP32 on the runtime, and answers for images that it was not calibrated on."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from vitdeploy.costs.origin import Origin
from vitdeploy.costs.trials import LAYER, Int8Trial
from vitdeploy.exporter.half_parts import pinned
from vitdeploy.progress import Progress
from vitdeploy.quantize.calibrate import Known, digest
from vitdeploy.quantize.latency import LatencyReport, time_layers
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import place, restrict
from vitdeploy.runtime.backends import Backend
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.race import race
from vitdeploy.search.greedy import Group
from vitdeploy.search.judge import Judge
from vitdeploy.search.plan import Plan, Trial
from vitdeploy.targets import Int8Rules

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """One runtime of this machine, with the network in FP32 on it.

    judge  on all images that judge, `few` on so few that every group of layers can be judged alone
    """

    kind: type[Backend]
    options: Options
    fp32: Backend
    judge: Judge
    few: Judge

    def load(self, model: ir.Model, compute_precision: str | None = None) -> tuple[Backend, float]:
        """A graph on the runtime, and its megabytes; BackendError where it cannot run it."""
        data = ir.to_proto(model).SerializeToString()
        options = replace(self.options, compute_precision=compute_precision)
        return self.kind.load(data, options=options), len(data) / 1e6

    def trial(self, plan: Plan, by: str, backend: Backend, megabytes: float) -> Trial:
        """What comes of a plan that is loaded."""
        ratio = race(backend, self.fp32, self.judge.inputs)
        return Trial(plan, by, ratio, *self.judge(backend), megabytes)


def int8_latency(
    origin: Origin, runtime: str, threads: int | None, compute_precision: str | None = None
) -> LatencyReport:
    """Which groups of layers are faster in INT8, and whether the network is: known before anything is calibrated."""
    rules = origin.target.int8 or Int8Rules()
    plan = restrict(place(origin.graph.graph, rules), lambda layer: pinned(origin.graph).get(layer.node))
    return time_layers(origin.graph, plan, rules, runtime=runtime, threads=threads, compute_precision=compute_precision)


class Int8Bench:
    """Plans in INT8 of one target and one range method: calibrated once, any groups of layers in float.

    whole   the plan with all of them in INT8
    groups  by name, see `greedy.Group`
    known   what was calibrated, for a bundle of a plan
    """

    def __init__(self, whole: Plan, origin: Origin, options: Int8Options, bench: Bench, timed: LatencyReport) -> None:
        self.whole, self._bench = whole, bench
        self._trial = Int8Trial(origin, options)
        self.known = Known(digest(origin.graph), self._trial.found)
        layers = {part.name for part in self._trial.parts(LAYER)}
        self.groups: dict[str, Group] = {}
        with Progress("measuring groups of layers alone", len(timed.groups)) as progress:
            for found in timed.groups:
                nodes = tuple(node for node in found.nodes if node in layers)
                saved = timed.whole.value * (1 / found.ratio.value - 1) if found.faster else 0.0
                self.groups[_name(found.nodes)] = Group(nodes, saved if nodes else 0.0, self._noise(nodes))
                progress.advance()

    def floats(self, plan: Plan) -> list[str]:
        """The layers that a plan leaves in float though they could be in INT8, by the name of their node."""
        return [node for name in plan.floats for node in self.groups[name].nodes]

    def inside(self, plan: Plan) -> list[str]:
        """The layers that a plan has in INT8; none of a plan that is FP32 after all."""
        return [node for name, group in self.groups.items() if name not in plan.floats for node in group.nodes]

    def load(self, plan: Plan) -> tuple[Backend, float]:
        """The graph of a plan on the runtime, and its megabytes."""
        return self._bench.load(self._trial.build(self.inside(plan)), plan.compute_precision)

    def trial(self, plan: Plan, by: str) -> Trial:
        """What comes of a plan."""
        backend, megabytes = self.load(plan)
        try:
            return self._bench.trial(plan, by, backend, megabytes)
        finally:
            backend.close()

    def _noise(self, nodes: Sequence[str]) -> float:
        """Power of the noise that layers in INT8 cause alone, over that of the signal."""
        if not nodes:
            return 0.0
        backend, _ = self._bench.load(self._trial.build(nodes))
        try:
            snr_db, _ = self._bench.few(backend)
        finally:
            backend.close()
        return math.pow(10.0, -snr_db / 10)


def group_names(timed: LatencyReport) -> list[str]:
    """The names of the groups that were timed."""
    return [_name(found.nodes) for found in timed.groups]


def _name(nodes: Sequence[str]) -> str:
    """`blocks.0.attn.qkv and 11 like it`."""
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} and {len(nodes) - 1} like it"
