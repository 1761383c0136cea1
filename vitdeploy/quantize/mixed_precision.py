"""Mixed precision: what INT8 costs on images not calibrated on, and the fewest layers to revert for a goal."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.graph.qdq import Array
from vitdeploy.graph.run import Runner
from vitdeploy.progress import Progress
from vitdeploy.quantize.placement import Plan, restrict
from vitdeploy.quantize.samples import BATCH, SNR_IMAGES
from vitdeploy.statistics import json_number, snr_db

log = logging.getLogger(__name__)

REVERTED = "reverted to float for accuracy"


class Evaluator:
    """Holds quantized graphs against the FP32 graph they were made from, Q and DQ computed as the standard says.

    graph   FP32, one input [n, 3, H, W]
    images  batches float32 [m, 3, H, W], iterated anew for each measure
    labels  class numbers of the images, for `drop`

    Memory: `SNR_IMAGES` images and their outputs, and one batch more.
    """

    def __init__(self, graph: ir.Model, images: Iterable[Array], labels: Sequence[int] | None = None) -> None:
        self._images = images
        self._few = np.concatenate(list(_first(images, SNR_IMAGES)))
        self._labels = None if labels is None else np.asarray(labels)
        runner = Runner(graph, "qdq")
        self._expected = self._outputs(runner)
        self._correct = None if labels is None else self._count_correct(runner)

    def snr_db(self, model: ir.Model) -> float:
        """Signal-to-noise ratio of the worst floating-point output on the first `SNR_IMAGES` images."""
        found = self._outputs(Runner(model, "qdq"))
        ratios = [snr_db(self._expected[name], array) for name, array in found.items()]
        return min(ratios, default=math.inf)

    def drop(self, model: ir.Model) -> float:
        """Points of top-1 accuracy lost against the FP32 graph, on all images; UsageError without labels."""
        if self._labels is None or self._correct is None:
            raise UsageError("top-1 cannot be measured without labels", fix="--min-snr 35")
        return 100 * (self._correct - self._count_correct(Runner(model, "qdq"))) / len(self._labels)

    def gain(self, model: ir.Model) -> float:
        """The drop with its sign changed: more is better, as of every score."""
        return -self.drop(model)

    def _outputs(self, runner: Runner) -> dict[str, Array]:
        """The floating-point outputs for the few images."""
        found = runner({runner.inputs[0]: self._few}, BATCH)
        return {name: array for name, array in found.items() if np.issubdtype(array.dtype, np.floating)}

    def _count_correct(self, runner: Runner) -> int:
        """How many images have the right class as the best one of the first output."""
        correct = start = 0
        for batch in self._images:
            best = runner({runner.inputs[0]: batch}, BATCH)[runner.outputs[0]].argmax(axis=1)
            correct += int((best == self._labels[start : start + len(batch)]).sum())  # type: ignore[index]
            start += len(batch)
        return correct


def _first(batches: Iterable[Array], count: int) -> Iterator[Array]:
    """The first `count` images, in batches."""
    for batch in batches:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


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


def revert_layers(
    plan: Plan,
    build: Callable[[Plan], ir.Model],
    score: Callable[[ir.Model], float],
    snr_db: Callable[[ir.Model], float],
    goal: float,
    *,
    extra_bytes: Mapping[str, int],
) -> tuple[Plan, tuple[Reverted, ...]]:
    """The plan that scores at least `goal` with the fewest layers in float, and the layers that were reverted for it.

    The noise that each layer causes alone is measured once. Powers add up, since the roundings of different layers are
    all but independent; so the layers are sorted by it, and the shortest list from the top that reaches the goal is
    found by bisection. Where no list does, the plan comes back as it was, with a warning.

    build        the quantized graph of a plan
    score        of a graph, more is better; `snr_db` of a graph ranks the layers
    extra_bytes  that a layer takes more in float, by node
    """
    first = score(build(plan))
    if first >= goal:
        return plan, ()
    layers = [layer.node for layer in plan if layer.quantized]
    log.info("INT8 reaches %.2f, the goal is %.2f: looking for the layers to revert", first, goal)
    alone: dict[str, float] = {}
    with Progress("measuring layers", len(layers)) as progress:
        for name in layers:
            alone[name] = snr_db(build(_only(plan, name)))
            progress.advance()
    worst = sorted(alone, key=lambda name: alone[name])
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
    reverted = tuple(Reverted(name, alone[name], extra_bytes.get(name, 0)) for name in worst[:high])
    return _without(plan, worst[:high]), reverted


def _only(plan: Plan, name: str) -> Plan:
    return restrict(plan, lambda layer: None if layer.node == name else "measured without it")


def _without(plan: Plan, names: Sequence[str]) -> Plan:
    return restrict(plan, lambda layer: REVERTED if layer.node in names else None)
