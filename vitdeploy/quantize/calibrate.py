"""Calibration: from an optimized FP32 graph and images to all that INT8 needs of it, before any layer is chosen."""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import onnx_ir as ir

from vitdeploy.errors import ExportError, UsageError
from vitdeploy.graph.edit import input_of
from vitdeploy.graph.qdq import U8, QuantParams
from vitdeploy.passes.base import GraphPass
from vitdeploy.passes.bias_after_heads import BiasAfterHeads
from vitdeploy.passes.drop_key_bias import DropKeyBias
from vitdeploy.passes.fold_value_bias import FoldValueBias
from vitdeploy.passes.pack_heads import PackHeads
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.activations import collect
from vitdeploy.quantize.gptq import RoundedLayer, correct_biases, round_layers
from vitdeploy.quantize.insert import insert
from vitdeploy.quantize.latency import LatencyReport, faster_layers
from vitdeploy.quantize.layers import LinearMap, channel_axis, linear_map, weight_of
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.options import Int8Options
from vitdeploy.quantize.placement import CONVOLUTION, Layer, Plan, place, restrict, tensors
from vitdeploy.quantize.ranges import TensorRange, choose_range, choose_ranges
from vitdeploy.quantize.samples import Images
from vitdeploy.quantize.shift import Move, obstacle, pixel_grid, put_back, shift
from vitdeploy.quantize.smoothing import smooth
from vitdeploy.targets import Int8Rules, Target, find_target

# Keys need no correction of their bias, a bias that the target wants elsewhere goes there, and then heads are cut.
CORRECTED_PASSES: tuple[type[GraphPass], ...] = (DropKeyBias, FoldValueBias, BiasAfterHeads, PackHeads)

# A range is one-sided where it reaches less than this part of its longer side to the other: GELU's, SiLU's, ReLU's.
ONE_SIDED = 0.25


@dataclass(frozen=True)
class Quantizer:
    """An FP32 graph with all that INT8 needs of it: the quantized graph of any part of its layers follows.

    model   FP32, rewritten so that it quantizes well
    params  scale and zero point of every activation
    layers  the rounded weights, by node
    rules   of the target
    target  whose passes run again on what a correction changed
    moves   layers that read another input than before, for as long as they are quantized
    """

    model: ir.Model
    params: Mapping[str, QuantParams]
    layers: Mapping[str, RoundedLayer]
    rules: Int8Rules
    target: Target
    moves: Sequence[Move] = ()

    def build(self, plan: Plan) -> ir.Model:
        """The graph whose layers of `plan` are quantized and the others not."""
        nodes = [layer.node for layer in plan if layer.quantized and layer.node in self.layers]
        corrected = correct_biases(self.model, {node: self.layers[node].mean_error for node in nodes})
        put_back(corrected, (move for move in self.moves if move.node not in nodes))
        for kind in CORRECTED_PASSES:
            kind(self.target)(corrected)
        return insert(corrected, plan, self.params, {node: self.layers[node].weight for node in nodes}, self.rules)

    def extra_bytes(self, plan: Plan) -> dict[str, int]:
        """What the weight of each layer takes more in float, by node."""
        nodes = {node.name: node for node in self.model.graph}
        return {layer.node: 3 * weight_of(nodes[layer.node]).size for layer in plan if layer.weight is not None}


@dataclass(frozen=True)
class Calibrated:
    """What calibration found.

    quantizer   makes the quantized graph of any part of the layers
    plan        every product of the graph: quantized, or the reason why not
    statistics  of every activation that becomes integer and whose range is not known without images, by name
    ranges      by name of a tensor that becomes integer
    images      the calibration images
    repairs     what was changed in the network so that it quantizes well
    latency     what was measured, where that was asked for
    """

    quantizer: Quantizer
    plan: Plan
    statistics: Mapping[str, Statistics]
    ranges: Mapping[str, TensorRange]
    images: Mapping[str, Any]
    repairs: list[dict[str, Any]]
    latency: LatencyReport | None

    def within(self, ignored: Sequence[str], pinned: Mapping[str, str]) -> Calibrated:
        """The same with fewer layers in INT8; UsageError for a pattern of `ignored` that matches nothing."""
        return replace(self, plan=_in_scope(self.plan, ignored, pinned))


class Known(NamedTuple):
    """What was calibrated before, and of which graph, by its `digest`."""

    digest: str
    found: Calibrated


def digest(model: ir.Model) -> str:
    """SHA-256 of a graph with its weights."""
    return hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest()


def calibrate(
    model: ir.Model,
    rules: Int8Rules,
    recipe: Preprocessing,
    images: Images,
    options: Int8Options,
    pinned: Mapping[str, str],
    image_inputs: Collection[str] | None = None,
    *,
    target: Target | None = None,
) -> Calibrated:
    """Calibrate a copy of an optimized FP32 graph; the arguments are those of `pipeline.quantize`.

    Raises UsageError for a pattern that matches nothing, ExportError where nothing is left to quantize.
    """
    model = model.clone()
    plan = _in_scope(place(model.graph, rules), options.ignored_scope, pinned)
    latency = None
    if options.tune_latency is not None:
        latency = faster_layers(model, plan, rules, options.tune_latency)
        plan = restrict(plan, latency.obstacle)

    convolutions = [layer.node for layer in plan if layer.quantized and layer.kind == CONVOLUTION]
    exact = pixel_grid(model, recipe, rules.activation, convolutions, image_inputs)
    statistics = collect(model, _channel_axes(model, plan, but=exact.ranges), images)
    calibration = {"images": images.count, "method": options.method, "sha256": images.hashes}
    one_sided = _one_sided(model, plan, statistics) if rules.activation.symmetric else ()
    smoothed = smooth(model, statistics, multiply=one_sided)  # a product costs these little: a sum stands there too
    changed = tuple(layer for layer in plan if any(layer.node in found.layers for found in smoothed))
    if changed:
        statistics |= collect(model, _channel_axes(model, changed, but=exact.ranges), images)
    shifted = shift(model, _asymmetric(model, plan, statistics, one_sided, options.method))
    ranges = _ranges(model, plan, statistics, rules, options.method, _known(exact.ranges, shifted.ranges))
    repairs = [{"repair": "exact input", "tensor": name} for name in exact.ranges]
    repairs += [found.to_dict() for found in smoothed]
    repairs += [{"repair": "shift", "tensor": name} for name in shifted.ranges]

    plan = _without_dead(plan, model, ranges)
    if not any(layer.quantized for layer in plan):
        reasons = "; ".join(dict.fromkeys(str(layer.obstacle) for layer in plan)) or "it has no products"
        raise ExportError("nothing in this network can be quantized", why=reasons, fix="--precision fp16")
    params = {name: found.params for name, found in ranges.items() if found.params is not None}
    layers = round_layers(model, plan, params, images)
    repairs += [{"repair": "rounding", "node": node, **layer.to_dict()} for node, layer in layers.items()]

    moves = (*exact.layers, *shifted.layers)
    quantizer = Quantizer(model, params, layers, rules, target or find_target("portable"), moves)
    return Calibrated(quantizer, plan, statistics, ranges, calibration, repairs, latency)


def _in_scope(plan: Plan, ignored: Sequence[str], pinned: Mapping[str, str]) -> Plan:
    """`plan` without the nodes that the user or the network keeps in float."""
    for pattern in ignored:
        if not any(fnmatch.fnmatchcase(layer.node, pattern) for layer in plan):
            names = ", ".join(layer.node for layer in plan[:3])
            raise UsageError(
                f"--ignored-scope {pattern} matches no layer",
                why=f"layers are called {names}, …",
                fix="use a name or a shell pattern, e.g. 'stages.3.*'",
            )

    def reason(layer: Layer) -> str | None:
        matched = next((pattern for pattern in ignored if fnmatch.fnmatchcase(layer.node, pattern)), None)
        return f"--ignored-scope {matched}" if matched else pinned.get(layer.node)

    return restrict(plan, reason)


def _channel_axes(model: ir.Model, plan: Plan, but: Collection[str]) -> dict[str, int | None]:
    """The activations to observe, each with the axis of its channels; not those of `but`, whose range is known."""
    nodes = {node.name: node for node in model.graph}
    read = {name: layers for name, layers in tensors(model.graph, plan).items() if name not in but}
    return {name: channel_axis(nodes[layers[0].node]) if layers else None for name, layers in read.items()}


def _one_sided(model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics]) -> list[str]:
    """The dense convolutions whose inputs lie on one side of zero and may be shifted, by node."""
    nodes = {node.name: node for node in model.graph}
    return [
        layer.node
        for name, layers in tensors(model.graph, plan).items()
        if name in statistics and _lies_on_one_side(statistics[name])
        for layer in layers
        if layer.kind == CONVOLUTION and obstacle(nodes[layer.node]) is None
    ]


def _asymmetric(
    model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics], convolutions: Collection[str], method: str
) -> dict[str, QuantParams]:
    """The asymmetric range of what each of the convolutions reads, by node."""
    nodes = {node.name: node for node in model.graph}
    found = {}
    for name, layers in tensors(model.graph, plan).items():
        wanted = [layer.node for layer in layers if layer.node in convolutions]
        if wanted:
            consumers = [LinearMap(nodes[node]) for node in wanted]
            params = choose_range(statistics[name], U8, method=method, consumers=consumers).params
            found.update({node: params for node in wanted if params is not None})
    return found


def _lies_on_one_side(statistics: Statistics) -> bool:
    low, high = statistics.low, statistics.high
    return min(-low, high) < ONE_SIDED * max(-low, high)


def _known(exact: Mapping[str, QuantParams], shifted: Mapping[str, QuantParams]) -> dict[str, TensorRange]:
    """The ranges that need no choice."""
    known = {name: TensorRange(params, "exact", *params.range, math.inf) for name, params in exact.items()}
    return known | {name: TensorRange(params, "shift", *params.range, math.nan) for name, params in shifted.items()}


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
    consumers = {
        name: [found for layer in layers if (found := linear_map(nodes[layer.node])) is not None]
        for name, layers in read.items()
    }
    chosen = choose_ranges({name: statistics[name] for name in read}, schemes, method=method, consumers=consumers)
    return {**chosen, **known}


def _without_dead(plan: Plan, model: ir.Model, ranges: Mapping[str, TensorRange]) -> Plan:
    """Layers that read or write a tensor without a range stay in float."""
    nodes = {node.name: node for node in model.graph}
    dead = {name: found.note for name, found in ranges.items() if found.params is None}

    def reason(layer: Layer) -> str | None:
        node = nodes[layer.node]
        values = [input_of(node, index) for index in layer.activations] + [node.outputs[0]] * layer.output
        return next((dead[str(value.name)] for value in values if value.name in dead), None)

    return restrict(plan, reason)
