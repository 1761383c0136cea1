"""Mixed precision: give back to float the fewest layers that bring the accuracy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from vitdeploy.progress import Progress
from vitdeploy.quantize.histogram import in_json
from vitdeploy.quantize.placement import Plan, restrict

log = logging.getLogger("vitdeploy.calibration")

GIVEN_BACK = "given back to float for accuracy"


@dataclass(frozen=True)
class GivenBack:
    """A layer that went back to float.

    snr_db  signal-to-noise ratio of the outputs with this layer alone in INT8: what it cost
    bytes   that the file grows by
    """

    node: str
    snr_db: float
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"node": self.node, "snr_db_alone": in_json(self.snr_db), "bytes": self.bytes}


def give_back(
    plan: Plan,
    build: Callable[[Plan], ir.Model],
    score: Callable[[ir.Model], float],
    noise: Callable[[ir.Model], float],
    goal: float,
    *,
    extra_bytes: Mapping[str, int],
) -> tuple[Plan, tuple[GivenBack, ...]]:
    """The plan that scores at least `goal` with the fewest layers in float, and what was given back for it.

    The noise power that each layer causes alone is measured once. Powers add up, since the roundings of different
    layers are all but independent; so the layers are sorted by it, and the shortest list from the top that reaches the
    goal is found by bisection. Where no list does, the plan comes back as it was, with a warning.

    score        of a graph, more is better
    extra_bytes  that a layer takes more in float, by node
    """
    first = score(build(plan))
    if first >= goal:
        return plan, ()
    layers = [layer.node for layer in plan if layer.quantized]
    log.info("INT8 reaches %.2f, the goal is %.2f: looking for the layers to give back", first, goal)
    powers: dict[str, float] = {}
    with Progress("measuring layers", len(layers)) as progress:
        for name in layers:
            powers[name] = noise(build(_only(plan, name)))
            progress.advance()
    worst = sorted(powers, key=lambda name: powers[name], reverse=True)
    low, high, reached = 0, len(worst), False  # missed at `low`; reached at `high`, where nothing is quantized
    while high - low > 1:
        # A few layers make most of the noise: bisect the logarithm.
        middle = min(high - 1, max(low + 1, round(math.sqrt(max(low, 1) * high))))
        found = score(build(_without(plan, worst[:middle])))
        log.info("%d of %d layers in float: %.2f", middle, len(worst), found)
        if found >= goal:
            high, reached = middle, True
        else:
            low = middle
    if not reached:
        log.warning("no mixture of INT8 and float reaches %.2f; every layer stays in INT8", goal)
        return plan, ()
    given = tuple(GivenBack(name, _decibel(powers[name]), extra_bytes.get(name, 0)) for name in worst[:high])
    return _without(plan, worst[:high]), given


def _only(plan: Plan, name: str) -> Plan:
    return restrict(plan, lambda layer: None if layer.node == name else "measured without it")


def _without(plan: Plan, names: list[str]) -> Plan:
    given = frozenset(names)
    return restrict(plan, lambda layer: GIVEN_BACK if layer.node in given else None)


def _decibel(power: float) -> float:
    return -10 * math.log10(power) if power > 0 else math.inf
