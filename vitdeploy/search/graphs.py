"""The search on a runtime that loads graphs in a moment, as those of a CPU do.

Cheap questions come first. The forms in float are exported and timed; then INT8 is timed with ranges of no meaning, so
that nobody waits for a calibration that cannot pay; then layers are calibrated once, and a greedy search and Optuna
try which groups of them to leave in float. The best take turns once more and become bundles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle import Bundle
from vitdeploy.errors import BackendError, GateError
from vitdeploy.progress import Progress
from vitdeploy.quantize.options import Int8Options
from vitdeploy.runtime.backends import Backend
from vitdeploy.runtime.options import Options
from vitdeploy.search.finalists import RIVALS, is_int8, kept, rivals, timed_again
from vitdeploy.search.greedy import greedy_plans
from vitdeploy.search.plan import FIXED, GREEDY, INT8, OPTUNA, Plan, Trial
from vitdeploy.search.setting import graph_of
from vitdeploy.search.steps import Ground, Search, megabytes
from vitdeploy.search.study import Study

if TYPE_CHECKING:
    from vitdeploy.search.bench import Bench, Int8Bench

GREEDY_PLANS = 8
AT_LEAST = 2  # plans in INT8 that are tried even where time is short
HINTS = ("bf16",)  # precisions of a session that may be faster than the types of the graph
LOSSY = 35.0  # dB that INT8 mostly keeps: a hint with which FP32 keeps less costs more than INT8 does
UNLIMITED = 1 << 30  # plans


class GraphSearch(Search):
    """Plans are graphs that the runtime loads as they are; only the best become bundles."""

    def _opened(self, plan: Plan, bundle: Bundle) -> Backend:
        options = Options(threads=self._setting.threads, compute_precision=plan.compute_precision)
        return self._kind.open(bundle, options)

    def _best(self, ground: Ground) -> list[tuple[Trial, Bundle]]:
        from vitdeploy.search.bench import Int8Bench, group_names, int8_latency

        setting, origin, study, bench = self._setting, ground.origin, ground.study, ground.bench
        self._floats(ground)
        faster = _faster_by_hint(study.trials())
        # INT8 takes the hint where that costs next to nothing; else only the best of its plans are tried in it, too.
        hint = faster.plan.compute_precision if faster is not None and faster.snr_db >= LOSSY else None
        timed = int8_latency(origin, setting.runtime, setting.threads, hint)
        inside: dict[str, Int8Bench] = {}
        if timed.faster:
            wholes = [Plan(INT8, setting.target, method, compute_precision=hint) for method in self._budget.methods]
            study.search_among({whole: group_names(timed) for whole in wholes})
            for whole in wholes:
                int8 = Int8Options(samples=setting.options.samples, seed=setting.options.seed, method=whole.method)
                inside[graph_of(whole).label] = Int8Bench(whole, origin, int8, bench, timed)
                self._greedy(inside[graph_of(whole).label], ground)
            if self._budget.search == OPTUNA:
                self._optuna(inside, ground)
            if faster is not None and hint is None:
                self._in_less(inside, study, faster.plan.compute_precision)
        else:
            computed = "FP32" if hint is None else f"FP32 computed in {hint}"
            self._notes.append(
                f"INT8 is not faster than {computed} on {setting.runtime} here (x{timed.whole.value:.2f} of the time), "
                "so nothing was calibrated"
            )
        return [(trial, self._bundle(trial, inside)) for trial in self._finalists(study, inside, bench)]

    def _finalists(self, study: Study, inside: Mapping[str, Int8Bench], bench: Bench) -> list[Trial]:
        """What becomes a bundle, with the times that the best plans take in turns."""
        found = study.trials()
        real = [trial for trial in found if is_int8(trial) and _has_layers(trial.plan, inside)]
        again = timed_again(
            rivals(real, RIVALS * self._budget.keep),
            bench.fp32,
            lambda plan: inside[graph_of(plan).label].load(plan)[0],
            bench.judge.inputs,
        )
        best = kept([*(trial for trial in found if not is_int8(trial)), *again], self._budget.keep)
        # What a bundle that is written anyway is computed in costs no export.
        written, plans = {graph_of(trial.plan) for trial in best if is_int8(trial)}, {trial.plan for trial in best}
        return [*best, *(one for one in real if graph_of(one.plan) in written and one.plan not in plans)]

    def _bundle(self, trial: Trial, inside: Mapping[str, Int8Bench]) -> Bundle:
        plan = graph_of(trial.plan)
        if not is_int8(trial):
            return self._setting.export(plan, self._prepared)
        tried = inside[plan.label]
        return self._setting.export(plan, self._prepared, tried.floats(trial.plan), tried.known)

    def _floats(self, ground: Ground) -> None:
        """FP32, FP16, and FP32 computed in less where the runtime lets one choose that."""
        target, bench, known = self._setting.target, ground.bench, ground.known
        plans = [Plan(target=target), Plan("fp16", target)]
        if "compute_precision" not in self._kind.refuses:
            plans += [Plan(target=target, compute_precision=hint) for hint in HINTS]
        for plan in plans:
            if plan in known:
                continue
            try:
                made = self._setting.export(graph_of(plan), self._prepared)
                backend = self._opened(plan, made)
            except (BackendError, GateError) as error:  # the network loses too much in FP16, or the runtime has none
                self._notes.append(f"{plan.label} was left out: {error.what}")
                continue
            try:
                if plan.compute_precision is not None and _computes(backend) == _computes(bench.fp32):
                    self._notes.append(f"{plan.label} was left out: {_computes(backend)} is computed here all the same")
                else:
                    ground.study.add(bench.trial(plan, FIXED, backend, megabytes(made)))
            finally:
                backend.close()

    def _greedy(self, inside: Int8Bench, ground: Ground) -> None:
        study, known = ground.study, ground.known
        # Times of groups that read from each other do not quite add up: all of them in INT8 may be faster. Of the two
        # plans that may be the fastest neither is left out for want of time.
        greedy = greedy_plans(inside.whole, inside.groups, GREEDY_PLANS)
        proposed = [*greedy[:1], inside.whole, *greedy[1:]]
        plans = [plan for plan in dict.fromkeys(proposed) if plan not in known]
        with Progress("trying plans, greedily", len(plans)) as progress:
            for number, plan in enumerate(plans[: min(len(plans), self._left(study))]):
                if number >= AT_LEAST and self._has_enough(ground):
                    return
                study.add(inside.trial(plan, GREEDY))
                progress.advance()

    def _optuna(self, inside: Mapping[str, Int8Bench], ground: Ground) -> None:
        study = ground.study
        total = None if self._budget.trials is None else self._left(study)
        with Progress("trying plans of Optuna", total) as progress:
            for proposal in study.proposals():
                if self._left(study) <= 0 or self._has_enough(ground):
                    proposal.give_up()
                    return
                try:
                    proposal.tell(inside[graph_of(proposal.plan).label].trial(proposal.plan, OPTUNA))
                except BaseException:
                    proposal.give_up()
                    raise
                progress.advance()

    def _in_less(self, inside: Mapping[str, Int8Bench], study: Study, hint: str | None) -> None:
        """The best plans in INT8, with what they leave in float computed by a hint."""
        trials = study.trials()
        known = {trial.plan for trial in trials}
        best = [trial.plan for trial in kept(trials, self._budget.keep) if is_int8(trial)]
        plans = [replace(plan, compute_precision=hint) for plan in best]
        plans = [plan for plan in dict.fromkeys(plans) if plan not in known and graph_of(plan).label in inside]
        with Progress(f"trying INT8 computed in {hint}", len(plans)) as progress:
            for plan in plans[: self._left(study)]:
                study.add(inside[graph_of(plan).label].trial(plan, GREEDY))
                progress.advance()

    def _has_enough(self, ground: Ground) -> bool:
        """Whether there is no time for another plan, and for the bundle that it may become."""
        trials = ground.study.trials()
        tried = sum(map(is_int8, trials))
        return self._is_late(ground, min(self._budget.keep, tried + 1), len(trials) - tried)

    def _left(self, study: Study) -> int:
        """Plans in INT8 that may still be tried."""
        most = UNLIMITED if self._budget.trials is None else self._budget.trials
        return max(0, most - sum(is_int8(trial) for trial in study.trials()))


def _has_layers(plan: Plan, inside: Mapping[str, Int8Bench]) -> bool:
    """Whether a plan has layers in INT8, of what was calibrated now."""
    label = graph_of(plan).label
    return label in inside and bool(inside[label].inside(plan))


def _faster_by_hint(trials: Sequence[Trial]) -> Trial | None:
    """FP32 in the precision of a session in which it takes certainly less time, the fastest; None where none is."""
    able = [
        trial
        for trial in trials
        if trial.plan.precision == "fp32" and trial.plan.compute_precision is not None and trial.ratio.faster
    ]
    return min(able, key=lambda trial: trial.ratio.value, default=None)


def _computes(backend: Backend) -> Any:
    """The precision that a session really has."""
    return backend.describe().get("compute_precision")
