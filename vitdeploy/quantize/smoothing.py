"""Outlier channels scaled down to the size of the others: behind a norm, and before convolutions that shift anyway.

A tensor has one scale for all channels, and a channel far larger than the others leaves them few integers; behind the
LayerNorms of vision transformers that is common. Dividing channel j by s_j in the norm's scale and bias and multiplying
the weights that read it by s_j changes nothing in real arithmetic, and weights have a scale for each output channel:
SmoothQuant (Xiao et al., 2022, arXiv:2211.10438). There s_j is a power of the channel's largest magnitude; here only
outliers are touched. Where no constant scales the channels, as behind GELU, a product does it where the caller asks
for that. What it is worth is measured in docs/int8.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, constant, input_of, need, only_consumer, set_constant, sizes
from vitdeploy.graph.qdq import Array
from vitdeploy.quantize.layers import channel_axis, per_input, weight_of
from vitdeploy.quantize.observers import Statistics

OUTLIER = 1.5  # times the median channel: what reaches higher is scaled down to that
WORTH = 4.0  # by which the largest channel has to be scaled down, or all are left alone: less is worth nothing


@dataclass(frozen=True)
class Smoothed:
    """One tensor whose outlier channels were scaled down.

    node      that scales them: the norm, or the product put there
    layers    that undo it
    channels  how many channels were scaled
    largest   factor of the largest one
    """

    node: str
    layers: tuple[str, ...]
    channels: int
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "repair": "smoothing",
            "source": self.node,
            "layers": list(self.layers),
            "channels": self.channels,
            "largest": round(self.largest, 2),
        }


def smooth(model: ir.Model, statistics: Mapping[str, Statistics], *, multiply: Collection[str] = ()) -> list[Smoothed]:
    """Scale down outlier channels in place, and say where; the outputs of the graph stay the same.

    statistics  of what layers read, with the axis of the channels; out of date afterwards for the layers named
    multiply    names of dense convolutions in front of which a product may be put for it

    Nodes and tensors keep their names, except that layers of `multiply` read a new tensor; weights shared with other
    nodes are copied.
    """
    done: list[Smoothed] = []
    for scale in _scales(model.graph):
        layers = _layers_behind(scale.output)
        factors = _factors(layers, statistics)
        if factors is not None:
            for node, index in scale.constants:
                array = need(constant(node.inputs[index]), f"the scale of {node.name}")
                set_constant(node, index, (array / factors).astype(np.float32), "smoothed")
            done.append(_undo(layers, factors, scale.name))
    read: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if node.name in multiply:
            read.setdefault(input_of(node, 0), []).append(node)
    for value, layers in read.items():
        factors = _factors(layers, statistics)
        if factors is not None:
            builder = Builder(model.graph, layers[0])
            factor = builder.constant((1 / factors).reshape(-1, 1, 1), "smoothing")
            product = builder.op("Mul", [value, factor], value.shape)
            for node in layers:
                node.replace_input_with(0, product)
            done.append(_undo(layers, factors, str(builder.made[0].name)))
    return done


def _factors(layers: Sequence[ir.Node], statistics: Mapping[str, Statistics]) -> Array | None:
    """s of every channel that the layers read, float32, at least 1; None where none is worth it.

    It is how far the largest value that was sampled of a channel reaches above `OUTLIER` times that of the median one.
    """
    names = {str(input_of(layer, 0).name) for layer in layers}
    samples = [found.sample.units for name in names if (found := statistics.get(name)) and found.sample]
    if not samples:
        return None
    largest = np.max([np.abs(units).max(axis=(0, *range(2, units.ndim))) for units in samples], axis=0)
    factors: Array = np.maximum(largest / max(OUTLIER * float(np.median(largest)), 1e-30), 1.0).astype(np.float32)
    return factors if factors.max() >= WORTH else None


def _undo(layers: Sequence[ir.Node], factors: Array, source: str) -> Smoothed:
    """Multiply the weights of the layers by the factors of the channels that they read."""
    for layer in layers:
        set_constant(layer, 1, (weight_of(layer) * per_input(layer, factors)).astype(np.float32), "smoothed")
    names = tuple(str(layer.name) for layer in layers)
    return Smoothed(source, names, int(np.count_nonzero(factors > 1)), float(factors.max()))


@dataclass(frozen=True)
class _Scale:
    """Where the channels of a tensor, its last axis, are scaled by constants: LayerNormalization, or Mul and Add.

    constants  nodes, each with the index of its constant [channels]
    """

    name: str
    output: ir.Value
    constants: tuple[tuple[ir.Node, int], ...]


def _scales(graph: ir.Graph) -> Iterator[_Scale]:
    for node in list(graph):
        shape = sizes(node.outputs[0])
        if not shape:
            continue
        if node.op_type == "LayerNormalization" and attribute(node, "axis", -1) in (-1, len(shape) - 1):
            indices = [index for index in range(1, len(node.inputs)) if node.inputs[index] is not None]
            if all(_is_vector(node.inputs[index], shape[-1]) for index in indices):
                yield _Scale(str(node.name), node.outputs[0], tuple((node, index) for index in indices))
        elif node.op_type == "Mul":
            factor = next((index for index in (0, 1) if _is_vector(node.inputs[index], shape[-1])), None)
            if factor is None:
                continue
            add = only_consumer(node.outputs[0], "Add")
            term = next((i for i in (0, 1) if add is not None and _is_vector(add.inputs[i], shape[-1])), None)
            if add is not None and term is not None:
                yield _Scale(str(node.name), add.outputs[0], ((node, factor), (add, term)))


def _is_vector(value: ir.Value | None, length: int | str) -> bool:
    """Whether `value` is a constant with one number a channel."""
    array = constant(value)
    return array is not None and array.shape[-1:] == (length,) and array.size == length


def _layers_behind(value: ir.Value) -> list[ir.Node]:
    """The linear layers that read `value`, at once or moved about; empty where anything else reads its channels."""
    layers: list[ir.Node] = []
    joined: list[ir.Node] = []
    seen, waiting = {value}, [value]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            return []
        for use in value.uses():
            if use.idx == 0 and channel_axis(use.node) == -1:
                layers.append(use.node)
            elif _keeps_channels(use.node, use.idx):
                joined += [use.node] if use.node.op_type == "Concat" else []
                waiting += [out for out in use.node.outputs if out not in seen]
                seen.update(use.node.outputs)
            else:
                return []
    return layers if all(part in seen for node in joined for part in node.inputs) else []


def _keeps_channels(node: ir.Node, index: int) -> bool:
    """Whether input `index` and the outputs hold the same channels along their last axes, in the same order."""
    before, after = sizes(node.inputs[index]), sizes(node.outputs[0])
    if before is None or after is None or before[-1:] != after[-1:]:
        return False
    last = len(before) - 1
    if node.op_type in {"Reshape", "Identity"}:
        return index == 0
    if node.op_type == "Transpose":
        return bool(attribute(node, "perm", [0])[-1] == last)
    if node.op_type in {"Concat", "Split", "Gather"}:
        return (index == 0 or node.op_type == "Concat") and int(attribute(node, "axis", 0)) % len(before) != last
    if node.op_type == "Slice":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        return index == 0 and axes is not None and last not in (axes.reshape(-1) % len(before)).tolist()
    return False
