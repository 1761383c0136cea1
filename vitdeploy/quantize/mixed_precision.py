"""Mixed precision: the fewest layers to revert to float so that the goals are reached."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitdeploy.errors import GateError
from vitdeploy.progress import Progress
from vitdeploy.quantize.evaluator import Evaluator
from vitdeploy.quantize.gates import decided_by_interval, unreachable_drop, unreachable_goals, unreachable_snr
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import Plan, restrict
from vitdeploy.statistics import Paired, json_number

log = logging.getLogger(__name__)

REVERTED = "reverted to float for accuracy"


class Measures:
    """What the graphs of plans keep, each measured once.

    build      the quantized graph of a plan; all plans are made of the same layers
    evaluator  measures graphs
    """

    def __init__(self, build: Callable[[Plan], ir.Model], evaluator: Evaluator) -> None:
        self._build, self.evaluator = build, evaluator
        self._ratios: dict[frozenset[str], dict[str, float]] = {}
        self._drops: dict[frozenset[str], Paired] = {}

    def snr_db(self, plan: Plan) -> float:
        """`Evaluator.snr_db` of the graph."""
        return min(self.ratios(plan).values(), default=-math.inf)

    def ratios(self, plan: Plan) -> dict[str, float]:
        """`Evaluator.ratios` of the graph."""
        key = _quantized(plan)
        if key not in self._ratios:
            self._ratios[key] = self.evaluator.ratios(self._build(plan))
        return self._ratios[key]

    def margin(self, plan: Plan, options: Int8Options) -> float:
        """The fewest decibels by which an output exceeds its bound; -inf where no output has one, NaN where one is."""
        ratios = self.ratios(plan)
        over = [ratios[name] - bound for name, bound in options.bounds(ratios).items()]
        return math.nan if any(map(math.isnan, over)) else min(over, default=-math.inf)

    def drop(self, plan: Plan) -> Paired:
        """`Evaluator.drop` of the graph."""
        key = _quantized(plan)
        if key not in self._drops:
            self._drops[key] = self.evaluator.drop(self._build(plan))
        return self._drops[key]


@dataclass(frozen=True)
class Reverted:
    """A layer that was reverted to float.

    snr_db  signal-to-noise ratio of the outputs with this layer alone in INT8: what it cost
    bytes   that the file grows by
    """

    node: str
    snr_db: float
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"node": self.node, "snr_db_alone": json_number(self.snr_db, 2), "bytes": self.bytes}


@dataclass(frozen=True)
class Goal:
    """What a plan has to reach.

    score    of a plan, more is better
    bound    that the score has to reach
    words    a score in words
    failure  the error for the best mixture that was found, where none reaches the bound
    rank     of the plan with a single layer in INT8: the layers with the least are reverted first; None for what the
             worst output keeps
    """

    score: Callable[[Plan], float]
    bound: float
    words: Callable[[float], str]
    failure: Callable[[Mixture], GateError]
    rank: Callable[[Plan], float] | None = None


@dataclass(frozen=True)
class Mixture:
    """A plan with some layers reverted to float.

    score    of the plan
    reached  whether that is the goal; where it is not, no mixture that was tried scored better
    """

    plan: Plan
    reverted: tuple[Reverted, ...]
    score: float
    reached: bool

    def __str__(self) -> str:
        reverted = sum(layer.obstacle == REVERTED for layer in self.plan)  # for an earlier goal, too
        return f"{reverted} of {reverted + sum(layer.quantized for layer in self.plan)} layers reverted to float"


def meet_goals(
    plan: Plan, measures: Measures, options: Int8Options, *, extra_bytes: Mapping[str, int], reserve_db: float = 0.0
) -> tuple[Plan, tuple[Reverted, ...]]:
    """The plan with the fewest layers in float that reaches `min_snr` and `goals`, then `max_drop`, and the layers
    reverted.

    What is compared with `max_drop` is the upper end of the 95 % interval of the drop, or the drop itself on too few
    images for that. Where no mixture reaches a goal, GateError is raised; where the loss is accepted, the plan stays
    what it was before.

    extra_bytes  that a layer takes more in float, by node
    reserve_db   that `min_snr` is exceeded by, for what follows
    """
    reverted: tuple[Reverted, ...] = ()
    for goal in _goals(measures, options, reserve_db):
        found = revert_layers(plan, goal, measures.snr_db, rank=goal.rank, extra_bytes=extra_bytes)
        if found.reached:
            plan, reverted = found.plan, (*reverted, *found.reverted)
        elif not options.accept_loss:
            raise goal.failure(found)
    return plan, reverted


def _goals(measures: Measures, options: Int8Options, reserve_db: float) -> Iterator[Goal]:
    if options.goals:
        yield Goal(
            lambda plan: measures.margin(plan, options),
            reserve_db,
            lambda score: f"{score:+.1f} dB against the goals",
            lambda best: unreachable_goals(options, reserve_db, measures.ratios(best.plan), str(best)),
            lambda plan: measures.margin(plan, options),
        )
    elif options.min_snr is not None:
        yield Goal(
            measures.snr_db,
            options.min_snr + reserve_db,
            lambda score: f"{score:.1f} dB",
            lambda best: unreachable_snr(options, reserve_db, best.score, str(best)),
        )
    if options.max_drop is not None:
        by_interval = decided_by_interval(options, measures.evaluator.images)

        def score(plan: Plan) -> float:
            drop = measures.drop(plan)
            return -(drop.interval()[1] if by_interval else drop.drop)

        yield Goal(
            score,
            -options.max_drop,
            lambda score: f"a drop of {'up to ' if by_interval else ''}{-score:.2f} points",
            lambda best: unreachable_drop(options, measures.drop(best.plan), str(best)),
        )


def revert_layers(
    plan: Plan,
    goal: Goal,
    snr_db: Callable[[Plan], float],
    *,
    rank: Callable[[Plan], float] | None = None,
    extra_bytes: Mapping[str, int],
) -> Mixture:
    """The mixture that reaches the goal with the fewest layers in float; the best one tried where none does.

    The noise that each layer causes alone is measured once. Powers add up, since the roundings of different layers are
    all but independent; so the layers are sorted by it, and the shortest list from the top that reaches the goal is
    found by bisection.

    snr_db       of a plan, which ranks the layers unless `rank` does
    extra_bytes  that a layer takes more in float, by node
    """
    first = goal.score(plan)
    if first >= goal.bound:
        return Mixture(plan, (), first, True)
    layers = [layer.node for layer in plan if layer.quantized]
    wanted = goal.words(goal.bound)
    log.info("INT8 reaches %s, the goal is %s: looking for the layers to revert", goal.words(first), wanted)
    alone: dict[str, float] = {}
    with Progress("measuring layers", len(layers)) as progress:
        for name in layers:
            alone[name] = snr_db(_only(plan, name))
            progress.advance()
    ranks = alone if rank is None else {name: rank(_only(plan, name)) for name in layers}
    worst = sorted(ranks, key=lambda name: ranks[name])
    tried = {0: first}
    low, high = 0, len(worst)  # missed at `low`; reached at `high`, unless that is everything
    while high - low > 1:
        # A few layers make most of the noise: bisect the logarithm.
        middle = min(high - 1, max(low + 1, round(math.sqrt(max(low, 1) * high))))
        tried[middle] = goal.score(_without(plan, worst[:middle]))
        log.info("%d of %d layers in float: %s", middle, len(worst), goal.words(tried[middle]))
        if tried[middle] >= goal.bound:
            high = middle
        else:
            low = middle
    reached = high in tried
    count = high if reached else max(tried, key=lambda n: -math.inf if math.isnan(tried[n]) else tried[n])
    reverted = tuple(Reverted(name, alone[name], extra_bytes.get(name, 0)) for name in worst[:count])
    return Mixture(_without(plan, worst[:count]), reverted, tried[count], reached)


def _quantized(plan: Plan) -> frozenset[str]:
    return frozenset(layer.node for layer in plan if layer.quantized)


def _only(plan: Plan, name: str) -> Plan:
    return restrict(plan, lambda layer: None if layer.node == name else "measured without it")


def _without(plan: Plan, names: Sequence[str]) -> Plan:
    return restrict(plan, lambda layer: REVERTED if layer.node in names else None)
