"""The search on a runtime of engines: each plan is built and proven on this device, which takes minutes.

So few plans are tried, and the cheap ones first: FP32, with TF32 where the GPU has it, and FP16; INT8 with ranges of no
meaning, so that nobody waits for a calibration that cannot pay; INT8 with each method, of the kinds of layers alone
that made the network at least 1.02 times as fast; and the fastest once more by a builder that looks longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from vitdeploy.bundle import MODEL, Bundle
from vitdeploy.errors import BackendError, GateError, UsageError, shell
from vitdeploy.graph.onnx_file import write_graph
from vitdeploy.progress import Progress
from vitdeploy.runtime.backends import Backend
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.race import race
from vitdeploy.search.front import front
from vitdeploy.search.plan import FIXED, INT8, Plan, Trial
from vitdeploy.search.report import OptimizeReport
from vitdeploy.search.setting import graph_of
from vitdeploy.search.steps import Ground, Search, megabytes
from vitdeploy.tensorrt.cache import EngineCache
from vitdeploy.tensorrt.int8_choice import WORTH, worth
from vitdeploy.tensorrt.int8_regions import Region, find_regions, without
from vitdeploy.tensorrt.options import LEVELS, BuildOptions
from vitdeploy.tensorrt.prove import build

if TYPE_CHECKING:
    import onnx_ir as ir

    from vitdeploy.costs.origin import Origin
    from vitdeploy.tensorrt.backend import EngineBackend

PLAIN: tuple[tuple[str, bool | int], ...] = ()  # no build option but the defaults
TF32_SINCE = 80  # compute capability, ten times
LONGER = 2  # plans that are built by a builder that looks longer
MOST = 4  # engines besides INT8 whose bundles are measured at the end


class EngineSearch(Search):
    """Plans are engines, each of a bundle and with build options of its own."""

    @property
    def _engines(self) -> type[EngineBackend]:
        return cast("type[EngineBackend]", self._kind)

    @property
    def _baseline(self) -> Plan:
        return Plan(target=self._setting.target, build=PLAIN)

    def _opened(self, plan: Plan, bundle: Bundle) -> Backend:
        asked = dict(plan.build or PLAIN)
        report = build(bundle, runtime=self._setting.runtime, **asked)  # type: ignore[arg-type]
        if not report.passed:
            raise GateError(
                f"the engine of {plan.label} does not reproduce the reference",
                why="; ".join(report.to_dict()["failures"]) or None,
                fix=f"vitdeploy build {shell(bundle.path)}, whose report names the block",
            )
        return self._kind.open(bundle, Options(build=asked))

    def _device(self) -> str:
        gpu = self._engines.gpu()
        return "no GPU" if gpu is None else f"{gpu.name} {gpu.uuid}".strip()

    def _best(self, ground: Ground) -> list[tuple[Trial, Bundle]]:
        target = self._setting.target
        made: dict[Plan, Bundle] = {}
        for plan in self._floats(target):
            self._try(plan, ground, made)
        floats = self._left_in_float(ground, made)
        if floats is not None:
            for method in self._budget.methods:
                plan = Plan(INT8, target, method, tuple(sorted(floats)), build=PLAIN)
                self._try(plan, ground, made, [node for nodes in floats.values() for node in nodes], late=True)
        for trial in sorted(self._tried(ground, made), key=lambda trial: trial.values[0])[:LONGER]:
            longer = self._admitted(optimization_level=LEVELS[-1])
            if longer:
                self._try(replace(trial.plan, build=(*(trial.plan.build or PLAIN), *longer)), ground, made, late=True)
        tried = self._tried(ground, made)
        best = front(tried, lambda trial: trial.values)
        return [(trial, made[trial.plan]) for trial in tried if trial in best or trial.plan.is_baseline]

    def _leave(self, report: OptimizeReport) -> None:
        """A load of a bundle takes its fastest engine that keeps what was asked, though others were built later."""
        kept = [point for point in report.points if not report.wish.misses(point)] or report.points
        cache = EngineCache()
        for path in dict.fromkeys(point.path for point in kept):
            point = min((one for one in kept if one.path == path), key=lambda one: one.ratio.value)
            asked = self._engines.admit_build(BuildOptions.of(dict(point.plan.build or PLAIN)))
            cache.prefer(self._engines.key(Bundle.open(path).read(MODEL), asked))

    def _floats(self, target: str) -> Iterator[Plan]:
        yield self._baseline
        gpu = self._engines.gpu()
        if gpu is not None and gpu.sm is not None and gpu.sm >= TF32_SINCE:
            yield Plan(target=target, build=self._admitted(tf32=True))
        yield Plan("fp16", target, build=PLAIN)

    def _admitted(self, **options: bool | int) -> tuple[tuple[str, bool | int], ...]:
        """Of these build options the ones that the builder can follow."""
        return tuple((name, value) for name, value in options.items() if name not in self._engines.build_refuses)

    def _try(
        self, plan: Plan, ground: Ground, made: dict[Plan, Bundle], floats: Sequence[str] = (), *, late: bool = False
    ) -> None:
        """Build a plan and measure it, unless that is done; where it cannot be built or is wrong, a note says so.

        floats  layers that stay in float though the plan is INT8
        late    only if there is time
        """
        if late and plan not in ground.known and self._is_late(ground, len(self._budget.methods), MOST):
            self._notes.append(f"{plan.label} was left out: the time was up")
            return
        try:
            bundle = self._setting.export(graph_of(plan), self._prepared, floats)
            backend = self._opened(plan, bundle)
        except (BackendError, GateError, UsageError) as error:  # UsageError: this version has no such build option
            self._notes.append(f"{plan.label} was left out: {error.what}")
            return
        with closing(backend):
            made[plan] = bundle
            if plan not in ground.known:
                ground.study.add(ground.bench.trial(plan, FIXED, backend, megabytes(bundle)))

    def _tried(self, ground: Ground, made: dict[Plan, Bundle]) -> list[Trial]:
        return [trial for trial in ground.study.trials() if trial.plan in made]

    def _left_in_float(self, ground: Ground, made: dict[Plan, Bundle]) -> dict[str, tuple[str, ...]] | None:
        """The kinds of layers that INT8 makes no faster, each with its nodes; None where INT8 is not worth calibrating.

        Latency does not depend on ranges, so nothing is calibrated for it. A kind stays in INT8 where the network with
        it is at least `WORTH` times as fast as without, the kind with the most arithmetic being asked first.
        """
        graph = _int8_of_no_meaning(ground.origin)
        regions = find_regions(graph.graph)
        for plan in ground.known:
            if plan.precision == INT8:
                return {region.name: region.nodes for region in regions if region.name in plan.floats}
        fastest = min(self._tried(ground, made), key=lambda trial: trial.values[0]).plan
        what = f"INT8 is not at least {WORTH} times as fast as {fastest.label} on {self._setting.runtime} here"
        if not regions:
            self._notes.append(f"{what}: the network has no layer for it")
            return None
        dropped: list[Region] = []
        try:
            with ExitStack() as stack, Progress("timing INT8, nothing calibrated", len(regions) + 1) as progress:
                inputs = ground.bench.judge.inputs
                best = self._timed(graph, stack)
                for region in regions:
                    other = self._timed(without(graph, [*dropped, region]), stack)
                    if not worth(race(other, best, inputs)):
                        dropped.append(region)
                        best = other
                    progress.advance()
                ratio = race(best, stack.enter_context(closing(self._opened(fastest, made[fastest]))), inputs)
                progress.advance()
        except BackendError as error:
            self._notes.append(f"INT8 was left out: {error.what}")
            return None
        if len(dropped) < len(regions) and ratio.faster and 1 / ratio.value >= WORTH:
            return {region.name: region.nodes for region in dropped}
        self._notes.append(f"{what} (x{ratio.value:.2f} of the time), so nothing was calibrated")
        return None

    def _timed(self, graph: ir.Model, stack: ExitStack) -> Backend:
        """An engine of a graph, which nobody proves, for its time alone."""
        model, asked = write_graph(graph), self._engines.admit_build(BuildOptions())
        timing = EngineCache().timing_file(self._engines.key(model, asked))
        built = self._engines.build_engine(model, asked, timing)
        return stack.enter_context(closing(self._engines(built.engine, Options(build=asked), asked)))


def _int8_of_no_meaning(origin: Origin) -> ir.Model:
    """The network with all of INT8, in the types that it ships in, and with ranges that nobody measured."""
    from vitdeploy.exporter.half import half_precision
    from vitdeploy.exporter.half_parts import pinned
    from vitdeploy.graph.run import run
    from vitdeploy.quantize.latency import with_any_ranges
    from vitdeploy.quantize.placement import place, restrict
    from vitdeploy.quantize.samples import BATCH
    from vitdeploy.targets import Int8Rules

    rules = origin.target.int8 or Int8Rules()
    kept = pinned(origin.graph)
    plan = restrict(place(origin.graph.graph, rules), lambda layer: kept.get(layer.node))
    model = with_any_ranges(origin.graph, plan, rules)
    if rules.half_rest:
        outputs = run(model, origin.inputs, "qdq", BATCH)
        model, _ = half_precision(model, origin.inputs, outputs, min_snr_db=float("-inf"))
    return model
