"""Which layers are faster in 8-bit integers on a runtime of this machine: measured, since kernels differ widely.

Layers of equal shapes are timed together, small ones with all small ones of their kind, and in the whole graph: only
there does a runtime fuse what it will fuse in use. Latency does not depend on ranges, so no calibration comes before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.caches import Cache
from vitdeploy.errors import ExportError
from vitdeploy.files import write_atomically
from vitdeploy.graph.edit import sizes
from vitdeploy.graph.qdq import Array
from vitdeploy.machine.contention import TOLERATED, Contention
from vitdeploy.machine.hardware import read_cpu
from vitdeploy.progress import Progress
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.placement import Layer, Plan, restrict, tensors
from vitdeploy.runtime.backends import Backend, find_backend
from vitdeploy.runtime.options import Options
from vitdeploy.runtime.race import ROUNDS, TURN_SECONDS, race, turns
from vitdeploy.statistics import CONFIDENCE, Ratio, median_interval
from vitdeploy.targets import Int8Rules

log = logging.getLogger(__name__)

SMALL = 0.01  # part of the arithmetic; what less than that changes is lost in the noise of a measurement
_RANGE = 4.0


@dataclass(frozen=True)
class Group:
    """Layers of one kind that were timed together.

    nodes  their names
    ratio  time of the network with them in INT8 over its time with them in float, the rest being equal
    """

    nodes: tuple[str, ...]
    ratio: Ratio

    @property
    def faster(self) -> bool:
        """Whether INT8 is faster with 95 % confidence: what is not measurably faster stays in float."""
        return self.ratio.faster

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"nodes": list(self.nodes), "int8": self.faster, **_in_json(self.ratio)}


@dataclass(frozen=True)
class LatencyReport:
    """What was measured.

    settings  runtime, version, threads and processor
    groups    in the order in which they were timed; each with the ones before it as decided
    whole     time of the network with the groups that are faster in INT8 over its time in FP32
    """

    settings: Mapping[str, Any]
    groups: Sequence[Group]
    whole: Ratio

    @property
    def faster(self) -> bool:
        """Whether INT8 is faster than FP32 here at all."""
        return self.whole.faster and any(group.faster for group in self.groups)

    def obstacle(self, layer: Layer) -> str | None:
        """Why a layer stays in float, for `placement.restrict`; None where it is faster in INT8."""
        for group in self.groups:
            if layer.node in group.nodes and not group.faster:
                return f"INT8 is not faster in {self.settings['backend']} here (x{group.ratio.value:.3f} of the time)"
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "settings": dict(self.settings),
            "int8_over_fp32": _in_json(self.whole),
            "groups": [group.to_dict() for group in self.groups],
        }


class Saving(NamedTuple):
    """Milliseconds of a call that are saved, the median of rounds, with its 95 % interval; below 0 they are lost."""

    ms: float
    low: float | None
    high: float | None

    def part(self, share: float) -> Saving:
        """What belongs to a part that makes up `share` of all that was timed together."""
        low, high = (None if bound is None else share * bound for bound in (self.low, self.high))
        return Saving(share * self.ms, low, high)


def faster_layers(model: ir.Model, plan: Plan, rules: Int8Rules, runtime: str) -> LatencyReport:
    """`time_layers`; ExportError where nothing is faster, before anybody waits for calibration."""
    report = time_layers(model, plan, rules, runtime=runtime)
    if not report.faster:
        raise ExportError(
            f"INT8 is not faster than FP32 in {runtime} on this machine",
            why=f"the network takes {report.whole.value:.2f} of the time of FP32 at best",
            fix="--fp16, or leave --tune-latency out",
        )
    return report


def time_layers(
    model: ir.Model,
    plan: Plan,
    rules: Int8Rules,
    *,
    runtime: str,
    threads: int | None = None,
    compute_precision: str | None = None,
    cache: Path | None = None,
) -> LatencyReport:
    """What to quantize of `plan` so that every group of layers makes the network faster on `runtime`.

    model              optimized FP32 graph with one input, float32 [batch, 3, height, width]; a free batch is
                       measured at 1
    threads            of the runtime; None leaves it to it, as a session does
    compute_precision  of what is in float, on both sides; None for FP32
    cache              folder of earlier results for the same graph, runtime, version, processor and threads; None for
                       the user's cache. What was measured beside other work is not kept, and said to be so

    Raises UsageError for a runtime that does not exist and BackendError for one that is not here or cannot run it.
    """
    options = Options(threads=threads, compute_precision=compute_precision)
    race = Race(find_backend(runtime), options, model)
    quantized = with_any_ranges(model, plan, rules)
    best = race.load(quantized)
    settings = {**best.describe(), "processor": read_cpu().name, "rounds": ROUNDS}
    kept, entry = Cache("latency", cache), _fingerprint(quantized, settings)
    file = kept.folder / f"{entry}.json"
    known = _read(file, settings)
    if known is not None:
        kept.touch(file)
        log.info("latency on %s: measured before, %s", runtime, file)
        return known
    groups, others = list[Group](), Contention()
    wanted = alike(model.graph, plan)
    with Progress(f"measuring INT8 on {runtime}", len(wanted) + 1) as progress:
        for nodes in wanted:
            trial = _without(plan, nodes)
            other = race.load(with_any_ranges(model, trial, rules))
            groups.append(Group(nodes, race.run(best, other)))
            if not groups[-1].faster:
                plan, best, other = trial, other, best
            other.close()
            progress.advance()
        report = LatencyReport(settings, tuple(groups), race.run(best, race.load(model)))
        progress.advance()
    taken = others.cores()
    if taken is not None and taken > TOLERATED:
        log.warning(
            "other work took %.1f cores while INT8 was timed on %s: end it and run this again, for it is not kept",
            taken,
            runtime,
        )
    else:
        _write(kept, entry, report)
    return report


def alike(graph: ir.Graph, plan: Plan) -> list[tuple[str, ...]]:
    """Names of the quantized layers, those to be timed together; the group with the most arithmetic first."""
    nodes = {node.name: node for node in graph}
    layers = [layer for layer in plan if layer.quantized]
    same: dict[Any, list[Layer]] = {}
    for layer in layers:
        node = nodes[layer.node]
        # The bias is left out: with or without it, the kernel is the same.
        shapes = tuple(sizes(value) for value in (*node.inputs[:2], *node.outputs))
        same.setdefault((layer.kind, node.op_type, shapes), []).append(layer)
    limit = SMALL * _macs(layers)
    found: dict[Any, list[Layer]] = {}
    for key, group in same.items():
        found.setdefault(key if _macs(group) >= limit else group[0].kind, []).extend(group)
    return [tuple(layer.node for layer in group) for group in sorted(found.values(), key=_macs, reverse=True)]


def _macs(layers: Sequence[Layer]) -> int:
    return sum(layer.macs for layer in layers)


def _without(plan: Plan, nodes: Sequence[str]) -> Plan:
    return restrict(plan, lambda layer: "measured without it" if layer.node in nodes else None)


def with_any_ranges(model: ir.Model, plan: Plan, rules: Int8Rules) -> ir.Model:
    """The INT8 graph of a plan, with ranges of no meaning, which change what is computed, not how long that takes."""
    schemes = {
        name: layers[0].scheme or rules.activation if layers else rules.activation
        for name, layers in tensors(model.graph, plan).items()
    }
    ranges = {name: scheme.params(-_RANGE, _RANGE) for name, scheme in schemes.items()}
    return insert(model, plan, ranges, {}, rules)


class Race:
    """Lets graphs take turns on one runtime.

    model  the graph whose inputs all of them take; a free batch is measured at 1
    """

    def __init__(self, backend: type[Backend], options: Options, model: ir.Model) -> None:
        self._backend, self._options = backend, options
        rng = np.random.default_rng(0)
        self._inputs: dict[str, Array] = {}
        for source in model.graph.inputs:
            shape = [size if isinstance(size, int) else 1 for size in sizes(source) or ()]
            kind = np.dtype(source.dtype.numpy() if source.dtype is not None else np.float32)
            made = rng.standard_normal(shape, dtype=np.float32) if kind.kind == "f" else np.zeros(shape)
            self._inputs[str(source.name)] = made.astype(kind)

    def load(self, model: ir.Model) -> Backend:
        """The graph on the runtime; BackendError where it cannot run it."""
        return self._backend.load(ir.to_proto(model).SerializeToString(), options=self._options)

    def run(self, first: Backend, second: Backend) -> Ratio:
        """Time of `first` over time of `second`."""
        return race(first, second, self._inputs, rounds=ROUNDS, turn_seconds=TURN_SECONDS)

    def saved(self, first: Backend, second: Backend) -> Saving:
        """Milliseconds of a call that `first` takes more than `second`."""
        pairs = zip(*turns((first, second), self._inputs, rounds=ROUNDS, turn_seconds=TURN_SECONDS), strict=True)
        saved = [1000 * (a - b) for a, b in pairs]
        return Saving(median(saved), *median_interval(saved, CONFIDENCE))


def _fingerprint(model: ir.Model, settings: Mapping[str, Any]) -> str:
    """A hash of everything that latency depends on: nodes, attributes and shapes, not the values of weights."""
    nodes = [
        [
            node.name,
            node.op_type,
            [sizes(value) for value in chain(node.inputs, node.outputs)],
            sorted(f"{name}={attribute.value}" for name, attribute in node.attributes.items()),
        ]
        for node in model.graph
    ]
    text = json.dumps([nodes, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(file: Path, settings: Mapping[str, Any]) -> LatencyReport | None:
    """An earlier result; None where there is none that can be read."""
    try:
        document = json.loads(file.read_text())
        groups = tuple(Group(tuple(row["nodes"]), _ratio(row)) for row in document["groups"])
        return LatencyReport(settings, groups, _ratio(document["int8_over_fp32"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(cache: Cache, entry: str, report: LatencyReport) -> None:
    """Keep a result; where that is impossible, the next run measures again."""
    with contextlib.suppress(OSError):
        cache.folder.mkdir(parents=True, exist_ok=True)
        with cache.lock(entry):
            write_atomically(cache.folder / f"{entry}.json", json.dumps(report.to_dict(), indent=1))
        cache.evict(keep=(entry,))


def _ratio(row: Mapping[str, Any]) -> Ratio:
    low, high = (None if row[bound] is None else float(row[bound]) for bound in ("low", "high"))
    return Ratio(float(row["ratio"]), low, high, paired=True)


def _in_json(ratio: Ratio) -> dict[str, Any]:
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
