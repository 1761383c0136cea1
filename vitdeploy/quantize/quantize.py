"""The straight flow: an optimized FP32 graph and calibration images in, a graph with Q/DQ and what it took out."""

from __future__ import annotations

import fnmatch
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from vitdeploy.errors import ExportError, UsageError
from vitdeploy.graph.edit import constant
from vitdeploy.graph.qdq import U8, QuantParams
from vitdeploy.passes.drop_key_bias import DropKeyBias
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.bias_correction import correct_biases
from vitdeploy.quantize.collect import collect
from vitdeploy.quantize.histogram import in_json
from vitdeploy.quantize.images import Images
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.judge import Judge
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import CONVOLUTION, Layer, Plan, place, restrict, tensors
from vitdeploy.quantize.ranges import TensorRange, choose_range, choose_ranges
from vitdeploy.quantize.readers import Reader, channel_axis, reader
from vitdeploy.quantize.reconstruction import reconstruct
from vitdeploy.quantize.search import GivenBack, give_back
from vitdeploy.quantize.shift import obstacle, pixel_grid, shift
from vitdeploy.quantize.smoothing import smooth
from vitdeploy.quantize.tuning import Tuning, tune
from vitdeploy.targets import Int8Rules, find_target

log = logging.getLogger("vitdeploy.calibration")

# Below it something is wrong with the network or the images, and no accuracy is to be expected.
MIN_SNR_DB = 20.0

# A range is one-sided where it reaches less than this part of its longer side to the other: GELU's, SiLU's, ReLU's.
ONE_SIDED = 0.25


@dataclass
class Int8Report:
    """What quantization decided; JSON by `to_dict`.

    snr_db   of the outputs against the FP32 graph, on images not calibrated on
    layers   every product of the graph: quantized, or the reason why not
    """

    plan: Plan
    ranges: Mapping[str, TensorRange]
    snr_db: float
    images: Mapping[str, Any]
    repairs: list[dict[str, Any]] = field(default_factory=list)
    given_back: Sequence[GivenBack] = ()
    drop: float | None = None
    tuning: Tuning | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as they stand in a manifest."""
        counts: dict[str, list[int]] = {}
        for layer in self.plan:
            count = counts.setdefault(layer.kind, [0, 0])
            count[0] += layer.quantized
            count[1] += 1
        macs = sum(layer.macs for layer in self.plan)
        return {
            "snr_db": in_json(self.snr_db),
            "drop": self.drop,
            "layers": {kind: {"int8": count[0], "of": count[1]} for kind, count in counts.items()},
            "int8_macs": round(sum(layer.macs for layer in self.plan if layer.quantized) / max(macs, 1), 4),
            "float": {layer.node: layer.obstacle for layer in self.plan if not layer.quantized},
            "given_back": [layer.to_dict() for layer in self.given_back],
            "repairs": self.repairs,
            "tuning": None if self.tuning is None else self.tuning.to_dict(),
            "calibration": dict(self.images),
            "ranges": {name: found.to_dict() for name, found in self.ranges.items()},
        }


def quantize(
    model: ir.Model,
    rules: Int8Rules,
    recipe: Preprocessing,
    calibration: Callable[[], Images],
    judge: Judge,
    options: Int8Options,
    pinned: Mapping[str, str],
) -> tuple[ir.Model, Int8Report]:
    """A copy of an optimized FP32 graph whose products compute in 8-bit integers as the target's rules say.

    recipe       how images became the images; its mean and deviation place the integers of the first convolution
    calibration  the images, anew at each call
    judge        holds the result against FP32, on other images
    pinned       nodes that stay in float, with the reason

    Raises UsageError for a pattern that matches nothing, and ExportError where nothing is left to quantize.
    """
    model = model.clone()
    plan = _restricted(place(model.graph, rules), options.ignore, pinned)
    tuning = None if options.tune_latency is None else _tuned(model, plan, rules, options.tune_latency)
    plan = plan if tuning is None else restrict(plan, tuning.obstacle)
    images = calibration()
    ranges, repairs = _activations(model, plan, rules, recipe, images, calibration, options.method)
    plan = _without_dead(plan, model, ranges)
    if not any(layer.quantized for layer in plan):
        raise ExportError("nothing in this network can be quantized", why=_reasons(plan), fix="--precision fp16")
    params = {name: found.params for name, found in ranges.items() if found.params is not None}
    rounded = reconstruct(model, plan, params, calibration)
    repairs += [{"repair": "rounding", "node": node, **found.to_dict()} for node, found in rounded.items()]
    weights = {node: found.weight for node, found in rounded.items()}

    def build(wanted: Plan) -> ir.Model:
        quantized = [layer.node for layer in wanted if layer.quantized and layer.node in rounded]
        corrected = correct_biases(model, {node: rounded[node].mean_error for node in quantized})
        DropKeyBias(find_target("portable"))(corrected)  # keys need no correction, and where they had no bias, no Add
        return insert(corrected, wanted, params, weights, rules)

    plan, given, drop = _search(model, plan, build, judge, options)
    quantized = build(plan)
    snr_db = judge.snr_db(quantized)
    if not snr_db >= MIN_SNR_DB:
        log.warning("INT8 reaches only %.1f dB against FP32; see --min-snr, --max-drop, and validate", snr_db)
    record = {"images": images.count, "method": options.method, "sha256": images.hashes}
    return quantized, Int8Report(plan, ranges, snr_db, record, repairs, given, drop, tuning)


def _tuned(model: ir.Model, plan: Plan, rules: Int8Rules, runtime: str) -> Tuning:
    """What is faster in INT8 here; ExportError where that is nothing, before anybody waits for calibration."""
    tuning = tune(model, plan, rules, runtime=runtime)
    if not tuning.wins:
        raise ExportError(
            f"INT8 is not faster than FP32 in {runtime} on this machine",
            why=f"the network takes {tuning.whole.value:.2f} of the time of FP32 at best",
            fix="--fp16, or leave --tune-latency out",
        )
    return tuning


def _activations(
    model: ir.Model,
    plan: Plan,
    rules: Int8Rules,
    recipe: Preprocessing,
    images: Images,
    calibration: Callable[[], Images],
    method: str,
) -> tuple[dict[str, TensorRange], list[dict[str, Any]]]:
    """Rewrite the graph so that its activations quantize well, and choose their ranges."""
    convolutions = [layer.node for layer in plan if layer.quantized and layer.kind == CONVOLUTION]
    exact = pixel_grid(model, recipe, rules.activation, convolutions)
    statistics = collect(model, _channel_axes(model, plan, exact), images)
    one_sided = _one_sided(model, plan, statistics) if rules.activation.symmetric else ()
    # A product costs these nothing: it stands next to the sum that shifts them.
    repairs = [found.to_dict() for found in smooth(model, plan, statistics, multiply=one_sided)]
    if repairs:
        statistics |= collect(
            model, _channel_axes(model, plan, {*exact, *_unchanged(model, plan, repairs)}), calibration()
        )
    shifted = shift(model, _asymmetric(model, plan, statistics, one_sided, method))
    repairs += [{"repair": "exact input", "tensor": name} for name in exact]
    repairs += [{"repair": "shift", "tensor": name} for name in shifted]
    known = {name: TensorRange(params, "exact", *params.range, math.inf) for name, params in exact.items()}
    known |= {name: TensorRange(params, "shift", *params.range, math.nan) for name, params in shifted.items()}
    return _ranges(model, plan, statistics, rules, method, known), repairs


def _one_sided(model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics]) -> list[str]:
    """The dense convolutions whose inputs lie on one side of zero, by node."""
    nodes = {node.name: node for node in model.graph}
    found = []
    for name, layers in tensors(model.graph, plan).items():
        low, high = (statistics[name].low, statistics[name].high) if name in statistics else (-1.0, 1.0)
        if min(-low, high) < ONE_SIDED * max(-low, high):
            convolutions = [layer.node for layer in layers if layer.kind == CONVOLUTION]
            found += [node for node in convolutions if obstacle(nodes[node]) is None]
    return found


def _unchanged(model: ir.Model, plan: Plan, repairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The activations that no smoothed layer reads."""
    changed = {node for found in repairs for node in found["layers"]}
    read = tensors(model.graph, plan)
    return [name for name, layers in read.items() if not any(layer.node in changed for layer in layers)]


def _asymmetric(
    model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics], convolutions: Sequence[str], method: str
) -> dict[str, QuantParams]:
    """The asymmetric range of what each of the convolutions reads, by node."""
    nodes = {node.name: node for node in model.graph}
    found = {}
    for name, layers in tensors(model.graph, plan).items():
        wanted = [layer.node for layer in layers if layer.node in convolutions]
        if wanted:
            readers = [one for node in wanted if (one := reader(nodes[node])) is not None]
            chosen = choose_range(statistics[name], U8, method=method, readers=readers).params
            found.update({node: chosen for node in wanted if chosen is not None})
    return found


def _restricted(plan: Plan, ignore: Sequence[str], pinned: Mapping[str, str]) -> Plan:
    """`plan` without the nodes that the user or the network keeps in float."""
    for pattern in ignore:
        if not any(fnmatch.fnmatchcase(layer.node, pattern) for layer in plan):
            names = ", ".join(layer.node for layer in plan[:3])
            raise UsageError(f"--ignore {pattern} matches no layer", why=f"layers are called {names}, …")

    def obstacle(node: str) -> str | None:
        matched = next((pattern for pattern in ignore if fnmatch.fnmatchcase(node, pattern)), None)
        return f"--ignore {matched}" if matched else pinned.get(node)

    return restrict(plan, lambda layer: obstacle(layer.node))


def _channel_axes(model: ir.Model, plan: Plan, fixed: Collection[str]) -> dict[str, int | None]:
    """The activations to observe, each with the axis of its channels; not those whose range is fixed."""
    nodes = {node.name: node for node in model.graph}
    read = {name: layers for name, layers in tensors(model.graph, plan).items() if name not in fixed}
    return {name: channel_axis(nodes[layers[0].node]) if layers else None for name, layers in read.items()}


def _ranges(
    model: ir.Model,
    plan: Plan,
    statistics: Mapping[str, Statistics],
    rules: Int8Rules,
    method: str,
    known: Mapping[str, TensorRange],
) -> dict[str, TensorRange]:
    """A range for every activation that is not in `known`, and those."""
    nodes = {node.name: node for node in model.graph}
    read = {name: layers for name, layers in tensors(model.graph, plan).items() if name not in known}
    schemes = {name: (layers[0].scheme if layers else None) or rules.activation for name, layers in read.items()}
    readers: dict[str, list[Reader]] = {}
    for name, layers in read.items():
        found = [reader(nodes[layer.node]) for layer in layers]
        readers[name] = [one for one in found if one is not None]
    chosen = choose_ranges({name: statistics[name] for name in read}, schemes, method=method, readers=readers)
    return {**chosen, **known}


def _without_dead(plan: Plan, model: ir.Model, ranges: Mapping[str, TensorRange]) -> Plan:
    """Layers that read or write a tensor without a range stay in float."""
    nodes = {node.name: node for node in model.graph}
    dead = {name: found.note for name, found in ranges.items() if found.params is None}

    def obstacle(layer: Layer) -> str | None:
        node = nodes[layer.node]
        values = [node.inputs[index] for index in layer.activations] + [node.outputs[0]] * layer.output
        return next((dead[str(value.name)] for value in values if value is not None and value.name in dead), None)

    return restrict(plan, obstacle)


def _reasons(plan: Plan) -> str:
    return "; ".join(dict.fromkeys(str(layer.obstacle) for layer in plan if layer.obstacle)) or "it has no products"


def _search(
    model: ir.Model, plan: Plan, build: Any, judge: Judge, options: Int8Options
) -> tuple[Plan, tuple[GivenBack, ...], float | None]:
    """Give layers back until both goals hold."""
    given: tuple[GivenBack, ...] = ()
    extra = _float_bytes(model, plan)
    if options.min_snr is not None:
        plan, more = give_back(plan, build, judge.snr_db, judge.noise, options.min_snr, extra_bytes=extra)
        given += more
    if options.max_drop is None:
        return plan, given, None
    plan, more = give_back(plan, build, lambda m: -judge.drop(m), judge.noise, -options.max_drop, extra_bytes=extra)
    return plan, given + more, judge.drop(build(plan))


def _float_bytes(model: ir.Model, plan: Plan) -> dict[str, int]:
    """What a layer's weight takes more in float, by node."""
    nodes = {node.name: node for node in model.graph}
    weights = {
        layer.node: constant(nodes[layer.node].inputs[layer.weight]) for layer in plan if layer.weight is not None
    }
    return {name: 3 * weight.size for name, weight in weights.items() if weight is not None}
