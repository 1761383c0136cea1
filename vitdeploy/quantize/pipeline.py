"""The straight flow: an optimized FP32 graph and calibration images in, a graph with Q/DQ and what it took out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.calibrate import Known, calibrate, digest
from vitdeploy.quantize.evaluator import Evaluator
from vitdeploy.quantize.latency import LatencyReport
from vitdeploy.quantize.mixed_precision import Measures, Reverted, meet_goals
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import Plan
from vitdeploy.quantize.ranges import TensorRange
from vitdeploy.quantize.samples import Images
from vitdeploy.statistics import Paired, json_number
from vitdeploy.targets import Int8Rules, Target

# What `min_snr` is exceeded by where the rest becomes FP16: that costs 0.4 dB of 40 dB if it has 50 dB by itself.
HALF_RESERVE_DB = 0.5


@dataclass
class Int8Report:
    """What quantization decided; JSON by `to_dict`.

    plan      every product of the graph: quantized, or the reason why not
    ranges    by name of a tensor that becomes integer
    outputs   signal-to-noise ratio of each against the FP32 graph by its name, on images not calibrated on
    goals     that each of them had to keep, of those that had one
    images    the calibration images
    repairs   what was changed in the network so that it quantizes well
    reverted  layers in float for accuracy
    drop      of top-1 on labelled images, and `fp32_top1`, the percentage of FP32, where that was asked for
    latency   what was measured, where that was asked for
    """

    plan: Plan
    ranges: Mapping[str, TensorRange]
    outputs: Mapping[str, float]
    images: Mapping[str, Any]
    repairs: list[dict[str, Any]] = field(default_factory=list)
    reverted: Sequence[Reverted] = ()
    drop: Paired | None = None
    fp32_top1: float | None = None
    latency: LatencyReport | None = None
    goals: Mapping[str, float] = field(default_factory=dict)

    @property
    def snr_db(self) -> float:
        """Of the worst output."""
        return min(self.outputs.values(), default=-math.inf)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as they stand in a manifest."""
        counts: dict[str, list[int]] = {}
        for layer in self.plan:
            count = counts.setdefault(layer.kind, [0, 0])
            count[0] += layer.quantized
            count[1] += 1
        macs = sum(layer.macs for layer in self.plan)
        low, high = (None, None) if self.drop is None else self.drop.interval()
        return {
            "snr_db": json_number(self.snr_db, 2),
            "outputs": {name: json_number(ratio, 2) for name, ratio in self.outputs.items()},
            "goals": dict(self.goals),
            "fp32_top1": self.fp32_top1,
            "drop": None if self.drop is None else self.drop.drop,
            "drop_low": low,
            "drop_high": high,
            "drop_images": None if self.drop is None else self.drop.total,
            "layers": {kind: {"int8": count[0], "of": count[1]} for kind, count in counts.items()},
            "int8_macs": round(sum(layer.macs for layer in self.plan if layer.quantized) / max(macs, 1), 4),
            "float": {layer.node: layer.obstacle for layer in self.plan if not layer.quantized},
            "reverted": [layer.to_dict() for layer in self.reverted],
            "repairs": self.repairs,
            "tuning": None if self.latency is None else self.latency.to_dict(),
            "calibration": dict(self.images),
            "ranges": {name: found.to_dict() for name, found in self.ranges.items()},
        }


def quantize(
    model: ir.Model,
    rules: Int8Rules,
    recipe: Preprocessing,
    images: Images,
    evaluator: Evaluator,
    options: Int8Options,
    pinned: Mapping[str, str],
    image_inputs: Collection[str] | None = None,
    *,
    target: Target | None = None,
    known: Known | None = None,
) -> tuple[ir.Model, Int8Report]:
    """A copy of an optimized FP32 graph whose products compute in 8-bit integers as the target's rules say.

    recipe     how pictures became the images; its mean and deviation place the integers of the first convolution
    images     to calibrate on; they are read two times or more
    evaluator  holds the result against FP32, on other images
    pinned     nodes that stay in float, with the reason
    image_inputs  the inputs that are images; None where the only input is one
    target     in whose form the graph is; None for portable
    known      is taken instead of calibrating once more, if it is of this very graph

    Raises UsageError for a pattern that matches nothing, ExportError where nothing is left to quantize, and GateError
    where no mixture of INT8 and float keeps `min_snr`, `goals` or `max_drop`, unless the loss is accepted. The result
    may still miss a gate: see `gates.missed_gates`.
    """
    if known is not None and known.digest == digest(model):
        found = known.found.within(options.ignored_scope, pinned)
    else:
        found = calibrate(model, rules, recipe, images, options, pinned, image_inputs, target=target)
    quantizer = found.quantizer
    measures = Measures(quantizer.build, evaluator)
    reserve_db = HALF_RESERVE_DB if rules.half_rest else 0.0
    extra_bytes = quantizer.extra_bytes(found.plan)
    plan, reverted = meet_goals(found.plan, measures, options, extra_bytes=extra_bytes, reserve_db=reserve_db)
    drop = None if options.max_drop is None else measures.drop(plan)
    report = Int8Report(
        plan,
        found.ranges,
        measures.ratios(plan),
        found.images,
        found.repairs,
        reverted,
        drop,
        evaluator.fp32_top1,
        found.latency,
        options.bounds(measures.ratios(plan)),
    )
    return quantizer.build(plan), report
