"""Why a layer is costly in INT8: what its statistics say of each operand, and what that takes of the layer's own noise.

A reason is worth the decibels by which the noise that the layer itself makes would fall without it. Noise of the
operands adds up, so an operand that hardly takes part is no reason, however badly it is distributed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Array, attribute, constant, input_of
from vitdeploy.graph.qdq import QuantParams, quantize_weight
from vitdeploy.quantize.calibrate import Calibrated
from vitdeploy.quantize.histogram import Noise
from vitdeploy.quantize.layers import linear_map, output_axis, weight_of
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.placement import Layer
from vitdeploy.quantize.ranges import layer_noise
from vitdeploy.statistics import decibels, json_number, snr_db

OUTLIERS, ONE_SIDED, SPREAD, WEIGHT_SPREAD, WEIGHT_OUTLIERS, FEW, AMPLIFIED, NONE = (
    "range outliers",
    "one-sided",
    "channel spread",
    "weight spread",
    "weight outliers",
    "few channels",
    "amplified",
    "none",
)

# Where a range ends over the root mean square in it: with 8 bits a normal distribution keeps most at 4.
REACH = 4.0
# Errors of so many channels average out in the sums behind them; of fewer they do less.
ENOUGH_CHANNELS = 32
LEAST_DB = 1.0  # what is worth less is no reason
MOST = 0.999  # of the values: what lies beyond are outliers


class Reason(NamedTuple):
    """Why a layer is costly.

    kind  one of the constants of this module, or a word of FP16
    db    by which the layer's own noise would fall without it; of `amplified` what follows adds
    text  with the figures that make it so
    """

    kind: str
    db: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"kind": self.kind, "db": json_number(self.db, 2), "text": self.text}


@dataclass(frozen=True)
class _Operand:
    """What becomes integer for a layer: the noise it makes at the layer's output over the signal, and its losses."""

    noise: float
    losses: Sequence[Reason]


class Reasons:
    """The reasons of the layers that were calibrated."""

    def __init__(self, calibrated: Calibrated) -> None:
        self._found = calibrated
        graph = calibrated.quantizer.model.graph
        self._nodes = {str(node.name): node for node in graph}
        self._followed = _followed(graph, {layer.node for layer in calibrated.plan})

    def of(self, layer: Layer) -> tuple[float, tuple[Reason, ...]]:
        """Signal to noise of what a quantized layer itself makes, dB, and why, the best reason first."""
        node = self._nodes[layer.node]
        operands = [*self._activations(layer, node), *self._weight(layer, node), *self._output(layer, node)]
        total = sum(operand.noise for operand in operands)
        found = [
            reason._replace(db=_gain(total, operand.noise, reason.db))
            for operand in operands
            for reason in operand.losses
        ]
        found += self._few(layer, node)
        worth = sorted((one for one in found if one.db >= LEAST_DB), key=lambda one: -one.db)
        return decibels(1.0, total), tuple(worth)

    def _activations(self, layer: Layer, node: ir.Node) -> Iterator[_Operand]:
        several = len(layer.activations) > 1
        for index in layer.activations:
            observed = self._observed(input_of(node, index))
            if observed is None:
                continue  # known without images: exact
            statistics, params = observed
            mapped = linear_map(node) if index == 0 else None
            measured = None if mapped is None else layer_noise(statistics, [mapped])
            tensor = Noise(statistics.histogram, statistics.low, statistics.high)
            ratio = (measured or tensor).sqnr_db(params)
            what = f"{('left', 'right')[index]} input" if several else "input"
            yield _Operand(10 ** (-ratio / 10), list(_of_activation(statistics, params, tensor, what)))

    def _observed(self, value: ir.Value) -> tuple[Statistics, QuantParams] | None:
        """The statistics of a tensor, of a shifted one those before, and its range in their numbers."""
        found = self._found.ranges[str(value.name)]
        if found.params is None or found.method == "exact":
            return None
        params, offset, source = found.params, 0.0, value
        while str(source.name) not in self._found.statistics:
            maker = source.producer()
            if maker is None or maker.op_type not in ("Add", "Pad"):
                return None
            added = constant(maker.inputs[1]) if maker.op_type == "Add" else None
            offset += float(added.item()) if added is not None and added.size == 1 else 0.0
            source = input_of(maker, 0)
        zero_point = params.zero_point + round(offset / params.scale)
        return self._found.statistics[str(source.name)], replace(params, zero_point=zero_point)

    def _output(self, layer: Layer, node: ir.Node) -> Iterator[_Operand]:
        name = str(node.outputs[0].name)
        found, statistics = self._found.ranges.get(name), self._found.statistics.get(name)
        if layer.output and found is not None and found.params is not None and statistics is not None:
            tensor = Noise(statistics.histogram, statistics.low, statistics.high)
            losses = list(_of_activation(statistics, found.params, tensor, "output"))
            yield _Operand(10 ** (-tensor.sqnr_db(found.params) / 10), losses)

    def _weight(self, layer: Layer, node: ir.Node) -> Iterator[_Operand]:
        if layer.weight is None:
            return
        weight = weight_of(node)
        rounded = self._found.quantizer.layers.get(layer.node)
        if rounded is not None:
            ratio = rounded.rounded_db
        else:
            ratio = snr_db(weight, quantize_weight(weight, layer.axis).real(layer.axis))
        yield _Operand(10 ** (-ratio / 10), list(_of_weight(weight, layer.axis, node)))

    def _few(self, layer: Layer, node: ir.Node) -> list[Reason]:
        if layer.weight is None:
            return []
        shape = weight_of(node).shape
        axis = output_axis(node)
        inputs, outputs = shape[1 - axis], shape[axis]
        channels = {"input": inputs} | ({"output": outputs} if layer.node in self._followed else {})
        side, count = min(channels.items(), key=lambda item: item[1])
        if count >= ENOUGH_CHANNELS:
            return []
        text = f"{count} {side} channel{'s' if count > 1 else ''}, {ENOUGH_CHANNELS} average errors out"
        return [Reason(FEW, 10 * math.log10(ENOUGH_CHANNELS / count), text)]


def judged(own_db: float, at_outputs_db: float, reasons: Sequence[Reason]) -> tuple[Reason, ...]:
    """The reasons of a part, and behind them whether what follows takes its noise up."""
    found = list(reasons)
    more = own_db - at_outputs_db
    if math.isfinite(more) and more >= LEAST_DB:
        found.append(Reason(AMPLIFIED, more, f"own noise {own_db:.1f} dB, at the outputs {at_outputs_db:.1f} dB"))
    if not found:
        found.append(
            Reason(NONE, 0.0, "rounding alone, no single cause" if math.isfinite(own_db) else "no noise of its own")
        )
    return tuple(found)


def _gain(total: float, noise: float, loss_db: float) -> float:
    """Decibels by which `total` falls where the part `noise` of it falls by `loss_db`."""
    if not total > 0:
        return 0.0
    return decibels(total, total - noise * (1 - 10 ** (-loss_db / 10)))


def _of_activation(statistics: Statistics, params: QuantParams, tensor: Noise, what: str) -> Iterator[Reason]:
    low, high = params.range
    used_low, used_high = max(low, min(statistics.low, 0.0)), min(high, max(statistics.high, 0.0))
    steps = params.scheme.high - params.scheme.low
    if 0 < used_high - used_low < high - low:
        loss = decibels(high - low, used_high - used_low) * 2
        of = round(steps * (used_high - used_low) / (high - low))
        yield Reason(
            ONE_SIDED,
            loss,
            f"{what} {statistics.low:.3g} to {statistics.high:.3g} uses {of} of {steps} steps",
        )
    reach = max(-used_low, used_high)
    spread = 0.0
    highest = _channel_maxima(statistics)
    if highest is not None and len(highest) > 1 and highest.any():
        spread = _peak_db(highest)
        channel, middle = int(highest.argmax()), float(np.median(highest))
        yield Reason(SPREAD, spread, f"{what} {channel} reaches {highest.max():.3g}, median {middle:.3g}")
    power = tensor.signal / max(int(statistics.histogram.counts.sum()), 1)
    beyond = decibels(reach**2, REACH**2 * power) - spread if power > 0 and reach > 0 else 0.0
    if beyond > 0:
        most = statistics.histogram.magnitude_quantile(MOST, statistics.max_abs)
        yield Reason(OUTLIERS, beyond, f"{what} reaches {reach:.3g}, {MOST:.1%} of it {most:.3g}")


def _channel_maxima(statistics: Statistics) -> Array | None:
    """The largest magnitude of each channel in the sample; None without one."""
    if statistics.sample is None or not statistics.sample.seen:
        return None
    units = np.abs(statistics.sample.units)
    highest: Array = units.max(axis=(0, *range(2, units.ndim)))
    return highest


def _of_weight(weight: Array, axis: int, node: ir.Node) -> Iterator[Reason]:
    rows = np.moveaxis(weight, axis, 0).astype(np.float64)
    flat = rows.reshape(len(rows), -1)
    largest, power = np.abs(flat).max(axis=1), np.square(flat).mean(axis=1)
    if not power.any():
        return
    beyond = decibels(float(np.square(largest).sum()), float(REACH**2 * power.sum()))
    grouped = attribute(node, "group", 1) > 1
    columns = np.sqrt(np.square(rows).mean(axis=(0, *range(2, rows.ndim))))
    spread = 0.0 if grouped or len(columns) < 2 else min(_peak_db(columns), beyond)
    if spread > 0:
        channel, middle = int(columns.argmax()), float(np.median(columns))
        times = f"{columns.max() / middle:.1f} times the median" if middle > 0 else "over a median of 0"
        yield Reason(WEIGHT_SPREAD, spread, f"weights of input channel {channel} are {times}")
    if beyond - spread > 0:
        worst = float(np.max(largest / np.sqrt(np.maximum(power, 1e-300))))
        yield Reason(
            WEIGHT_OUTLIERS,
            beyond - spread,
            f"largest weight of a channel {worst:.1f} times its rms",
        )


def _peak_db(values: Array) -> float:
    """Decibels by which the largest of magnitudes lies above their root mean square."""
    squares = np.square(values, dtype=np.float64)
    return decibels(float(squares.max()), float(squares.mean()))


def _followed(graph: ir.Graph, layers: set[str]) -> set[str]:
    """The layers whose result another one reads, through whatever stands between."""
    reaching: set[ir.Value] = set()
    found: set[str] = set()
    for node in reversed(list(graph)):
        name = str(node.name)
        behind = any(value in reaching for value in node.outputs)
        if behind and name in layers:
            found.add(name)
        if behind or name in layers:
            reaching.update(value for value in node.inputs if value is not None)
    return found
