"""Scales moved from the channels of an activation into the weights that read it, so that both quantize better.

A tensor has one scale for all channels, and a few large ones leave the others few integers. Dividing channel j by s_j
where it is made and multiplying the weights that read it by s_j changes nothing in real arithmetic:

    LayerNormalization -> linear layers     SmoothQuant (Xiao et al., 2022, arXiv:2211.10438)
    layer -> nothing or ReLU -> layer       cross-layer equalization (Nagel et al., 2019, arXiv:1906.04721); one of
                                            these is attention's values -> output projection
    GELU -> layer                           by a product behind it, where the caller asks for it

Weights have a scale for each output channel, so that a layer in front loses nothing, and the same s serves all three.
Dividing it by a power of the weights too, as both papers do, was no better on LeMeViT-Tiny and Dual-ViT-S.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, constant, set_constant
from vitdeploy.graph.qdq import Array, quantize_weight
from vitdeploy.quantize.channels import Followed, Sink, follow
from vitdeploy.quantize.histogram import decibel, in_json
from vitdeploy.quantize.layers import output_axis, per_input
from vitdeploy.quantize.observers import Statistics
from vitdeploy.quantize.placement import Layer, Plan
from vitdeploy.quantize.readers import channel_axis

# s_j = (largest magnitude of channel j)^strength; 0 is off, 1 makes all channels equally large.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
WORTH = 1.0  # dB that a tensor must gain
_CLIPS = np.geomspace(1.0, 1 / 8, 7)  # parts of its range that a tensor keeps, tried with each


@dataclass(frozen=True)
class Smoothed:
    """One tensor whose channels were rescaled.

    source         the node that makes it
    layers         the quantized layers that undo the scales
    strength       the one of `STRENGTHS` that did best
    before, after  signal to quantization noise at the outputs of the layers, dB
    """

    source: str
    layers: tuple[str, ...]
    strength: float
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "repair": "smoothing",
            "source": self.source,
            "layers": list(self.layers),
            "strength": self.strength,
            "snr_db": [in_json(self.before), in_json(self.after)],
        }


def smooth(
    model: ir.Model, plan: Plan, statistics: Mapping[str, Statistics], *, multiply: Collection[str] = ()
) -> list[Smoothed]:
    """Rescale channels in place where that brings the outputs of quantized layers closer to FP32; say where.

    statistics  of what the quantized layers of `plan` read, with the axis of the channels; out of date afterwards
    multiply    names of layers in front of which a product may be put where no scale comes for free, as behind GELU

    Nodes and tensors keep their names, except that layers of `multiply` read a new tensor. Weights shared with other
    nodes are copied.
    """
    graph = model.graph
    layers = {layer.node: layer for layer in plan if layer.quantized and layer.weight is not None}
    done: list[Smoothed] = []
    reached: set[str] = set()
    for source in _sources(graph):
        found = follow(source.outputs[0], _channels_of(source))
        reached.update(str(sink.node.name) for sink in found.sinks)
        search = _Search(found, layers, statistics)
        scales = search.scales()
        if scales is not None:
            rescale(source, found, scales)
            done.append(search.record(source))
    for value, sinks in _inputs(graph, multiply, reached):
        found = Followed(len(sinks[0].channels), sinks)
        search = _Search(found, layers, statistics)
        scales = search.scales()
        if scales is not None:
            _carry(found, scales)
            done.append(search.record(_multiply(value, sinks, 1 / scales)))
    return done


def _sources(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes whose constants reach every channel of their output."""
    for node in list(graph):
        constants = [constant(value) for value in node.inputs[1:] if value is not None]
        if not constants or any(array is None for array in constants):
            continue
        if node.op_type == "LayerNormalization":
            last = len(node.inputs[0].shape or ()) - 1  # type: ignore[union-attr]
            if attribute(node, "axis", -1) in (-1, last):
                yield node
        elif node.op_type == "Conv" or (node.op_type in {"MatMul", "Gemm"} and constants[0].ndim == 2):  # type: ignore[union-attr]
            yield node


def _channels_of(source: ir.Node) -> int:
    """The axis of the channels in what a source makes."""
    return 1 if source.op_type == "Conv" else -1


def _inputs(graph: ir.Graph, names: Collection[str], but: Collection[str]) -> Iterator[tuple[ir.Value, list[Sink]]]:
    """What the named layers read, each tensor with its readers among them."""
    read: dict[ir.Value, list[Sink]] = {}
    for node in graph:
        if (
            node.name in names
            and node.name not in but
            and channel_axis(node) is not None
            and node.inputs[0] is not None
        ):
            weight = constant(node.inputs[1])
            assert weight is not None
            channels = np.arange(weight.shape[1 - output_axis(node)])
            read.setdefault(node.inputs[0], []).append(Sink(node, channels))
    yield from read.items()


def rescale(source: ir.Node, found: Followed, scales: Array) -> None:
    """Divide channel j of what `source` makes by scales[j] > 0, and undo it in the layers that read it.

    found  where the channels end, `follow` of the source's output; those that are bound must have scale 1
    """
    weight = constant(source.inputs[1])
    assert weight is not None
    axis = 0 if source.op_type == "LayerNormalization" else output_axis(source)
    divisors = {1: scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]), 2: scales}
    for index, divisor in divisors.items():
        array = constant(source.inputs[index]) if index < len(source.inputs) else None
        if array is not None:
            set_constant(source, index, (array / divisor).astype(np.float32), "smoothed")
    _carry(found, scales)


def _carry(found: Followed, scales: Array) -> None:
    """Divide what is added on the way, and multiply the weights at its end."""
    for node, index, channels in found.sums:
        array = constant(node.inputs[index])
        assert array is not None
        divided = array / scales[channels]
        shape = divided.shape
        while len(shape) > max(array.ndim, 1) and shape[0] == 1:
            shape = shape[1:]
        set_constant(node, index, divided.reshape(shape).astype(np.float32), "smoothed")
    for sink in found.sinks:
        weight = constant(sink.node.inputs[1])
        assert weight is not None
        set_constant(
            sink.node, 1, (weight * per_input(sink.node, scales[sink.channels])).astype(np.float32), "smoothed"
        )


def _multiply(value: ir.Value, sinks: Sequence[Sink], factors: Array) -> ir.Node:
    """Let the sinks read `value` with its channels multiplied."""
    first = sinks[0].node
    assert first.graph is not None
    builder = Builder(first.graph, first)
    shape = (-1, 1, 1) if first.op_type == "Conv" else (-1,)
    factor = builder.constant(factors.astype(np.float32).reshape(shape), "smoothing")
    product = builder.op("Mul", [value, factor], value.shape)
    for sink in sinks:
        sink.node.replace_input_with(0, product)
    return builder.made[-1]


class _Search:
    """Which of `STRENGTHS` suits the layers that read the channels of one source best."""

    def __init__(self, found: Followed, layers: Mapping[str, Layer], statistics: Mapping[str, Statistics]) -> None:
        self.found, self.noises = found, [0.0] * len(STRENGTHS)
        self.trials = list(_trials(found.sinks, layers, statistics))

    def scales(self) -> Array | None:
        """One number a channel of the source, float32; None where leaving them alone is as good."""
        if not self.trials:
            return None
        tried = [self._scales(strength) for strength in STRENGTHS]
        self.noises = [sum(trial.noise(scales) for trial in self.trials) for scales in tried]
        gain = decibel(self.noises[0], self.noises[self._best])
        return tried[self._best] if self._best and gain >= WORTH else None

    def record(self, source: ir.Node) -> Smoothed:
        """What was found, for a search that gave scales."""
        names = tuple(name for trial in self.trials for name in trial.names)
        before, after = (decibel(len(names), self.noises[index]) for index in (0, self._best))
        return Smoothed(str(source.name), names, STRENGTHS[self._best], before, after)

    @property
    def _best(self) -> int:
        return int(np.argmin(self.noises))

    def _scales(self, strength: float) -> Array:
        """s of every channel, 1 where it is bound or idle; the mean of their logarithms is 0."""
        magnitudes = np.zeros(self.found.count)
        for trial in self.trials:
            np.maximum.at(magnitudes, trial.channels, trial.magnitudes)
        free = magnitudes > 0
        free[list(self.found.bound)] = False
        logs = np.zeros(self.found.count)
        if free.any():
            logs[free] = np.log(magnitudes[free])
            logs[free] -= logs[free].mean()
        return np.exp(strength * logs).astype(np.float32)


def _trials(
    sinks: Iterable[Sink], layers: Mapping[str, Layer], statistics: Mapping[str, Statistics]
) -> Iterator[_Trial]:
    """One for each tensor that quantized layers read and that was observed."""
    read: dict[str, list[Sink]] = {}
    for sink in sinks:
        name = str(sink.node.inputs[0].name)  # type: ignore[union-attr]
        observed = statistics.get(name)
        if sink.node.name in layers and observed is not None and observed.sample is not None and observed.sample.seen:
            read.setdefault(name, []).append(sink)
    for name, group in read.items():
        yield _Trial(statistics[name], group, [layers[str(sink.node.name)] for sink in group])


class _Trial:
    """A sample of one tensor, and what quantization does to the outputs of the layers that read it.

    names       of the layers
    channels    for each channel of the tensor the one of the source that it is
    magnitudes  largest of each channel of the tensor
    """

    def __init__(self, found: Statistics, sinks: Sequence[Sink], layers: Sequence[Layer]) -> None:
        assert found.sample is not None
        assert found.channels is not None
        assert layers[0].scheme is not None
        self.names = [layer.node for layer in layers]
        self.channels, self.magnitudes, self._scheme = sinks[0].channels, found.channels, layers[0].scheme
        self._units, self._counts = found.sample.units, found.sample.weights
        self._readers = [_Product(sink.node, layer.axis) for sink, layer in zip(sinks, layers, strict=True)]
        self._outputs = [reader(self._units, reader.weight) for reader in self._readers]

    def noise(self, scales: Array) -> float:
        """Squared error over squared output, the sum over the layers, with the best of a few ranges."""
        mine = scales[self.channels]
        units = self._units / mine.reshape(-1, *(1,) * (self._units.ndim - 2))
        weights = [reader.rounded(mine) for reader in self._readers]
        seen = max(float(np.abs(units).max()), 1e-30)
        widest = float((self.magnitudes / mine).max()) / seen
        ends = float(units.min()) * widest, float(units.max()) * widest
        params = [self._scheme.params(ends[0] * clip, ends[1] * clip) for clip in _CLIPS]
        return min(self._error(params.round_trip(units), weights) for params in params)

    def _error(self, units: Array, weights: Sequence[Array]) -> float:
        return sum(
            self._energy(reader(units, weight) - wanted) / max(self._energy(wanted), 1e-30)
            for reader, weight, wanted in zip(self._readers, weights, self._outputs, strict=True)
        )

    def _energy(self, outputs: Array) -> float:
        return float(np.einsum("ij,ij->i", outputs, outputs, dtype=np.float64) @ self._counts)


class _Product:
    """A layer as a product of the units of its input, see `sample.Sample`, and a weight that may be changed."""

    def __init__(self, node: ir.Node, axis: int) -> None:
        weight = constant(node.inputs[1])
        assert weight is not None
        self.node, self.axis, self.weight = node, axis, weight

    def __call__(self, units: Array, weight: Array) -> Array:
        """Outputs [n, channels] without the bias."""
        if self.node.op_type == "Conv":
            steps = attribute(self.node, "dilations", [1, 1])
            ends = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], steps, strict=True)]
            units = units[:, :, : ends[0] : steps[0], : ends[1] : steps[1]]
        matrix = weight.reshape(len(weight), -1).T if output_axis(self.node) == 0 else weight
        product: Array = units.reshape(len(units), -1) @ matrix
        return product

    def rounded(self, scales: Array) -> Array:
        """What int8 makes of the weight that undoes the scales."""
        integers, steps = quantize_weight(self.weight * per_input(self.node, scales), self.axis)
        real: Array = (
            integers * np.expand_dims(steps, tuple(range(1, integers.ndim))) if self.axis == 0 else integers * steps
        )
        return real
