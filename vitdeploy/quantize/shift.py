"""Rewrites, exact in real arithmetic, that move a layer's input to where symmetric 8-bit integers hold it well.

A layer is linear, so it may read y = a x + c instead of x if its weights are divided by a and its bias makes up for c:

    W x + b = (W / a) y + (b - sum over inputs of (W / a) c)

A convolution pads with zeros, which would no longer stand for x = 0: the padding becomes a node in front of the sum.

A layer that stays in float after all reads x again: y lies far from zero, so bfloat16 would round most of it away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import REPORT, ExportError
from vitdeploy.graph.edit import Builder, attribute, constant, consumers, input_of, remove_unused, set_constant
from vitdeploy.graph.qdq import S8, Array, QScheme, QuantParams
from vitdeploy.preprocess import Preprocessing
from vitdeploy.quantize.layers import Window, add_to_bias, output_axis, per_input, weight_of

_LAYERS = frozenset({"Conv", "MatMul", "Gemm"})


class Move(NamedTuple):
    """A layer that reads `factor` x + `offset` instead of x.

    node    its name
    source  name of x
    pads    of the convolution, which a node in front of the sum does now
    """

    node: str
    source: str
    factor: Array | None
    offset: Array
    pads: tuple[int, ...]


class Moved(NamedTuple):
    """What was moved, and the range of every tensor that is read now, by its name; it needs no calibration."""

    ranges: dict[str, QuantParams]
    layers: list[Move]


def shift(model: ir.Model, ranges: Mapping[str, QuantParams]) -> Moved:
    """Let layers read x - o, o a scalar, so that symmetric int8 covers a one-sided range without loss.

    Outputs of ReLU and GELU leave one half of a symmetric range empty, which costs 6 dB. With the o chosen here the
    integers of x - o at zero point 0 are those of x in the asymmetric range, less a constant; zero stays exact.
    An error in the weights meets -o now wherever x was zero: once they are rounded, the bias wants correction.

    ranges  by name of a dense convolution or linear layer, an asymmetric 8-bit range of its first input

    The ranges that are returned are in the scheme `S8`. Layers with the same input, range and padding share the sum.
    Raises ExportError for a layer that has an `obstacle`.
    """
    shifted = _Inputs(model.graph)
    for node in list(model.graph):
        if node.name in ranges:
            params = ranges[str(node.name)]
            middle = params.scheme.low + 128 - params.zero_point
            offset = np.float32(-middle * params.scale)
            shifted.replace(node, None, np.asarray(offset), QuantParams(params.scale, 0, S8))
    return shifted.found


def pixel_grid(
    model: ir.Model,
    recipe: Preprocessing,
    scheme: QScheme = S8,
    layers: Collection[str] | None = None,
    images: Collection[str] | None = None,
) -> Moved:
    """Let the dense convolutions that read the network's input read pixels instead: whole numbers at scale 1.

    The input is (p / 255 - mean) / std of pixels p = 0..255, so p plus the scheme's lowest integer is an 8-bit integer
    already, and quantizing it loses nothing. Only the border of padding, the pixel 255 mean, is rounded. Instead of 255
    stands the recipe's scale. Only colours are known to be pixels of 8 bits.

    layers  names of the convolutions that may; None for all
    images  the inputs that are images; None where the only input is one

    Returns nothing where none reads the input.
    """
    if not recipe.takes_colours:
        return Moved({}, [])
    sources = [value for value in model.graph.inputs if images is None or value.name in images]
    std, mean = np.asarray(recipe.std), np.asarray(recipe.mean)
    pixels = _Inputs(model.graph)
    for node in (node for source in sources for node in consumers(source)):
        if node.op_type == "Conv" and obstacle(node) is None and (layers is None or node.name in layers):
            pixels.replace(node, recipe.scale * std, recipe.scale * mean + scheme.low, QuantParams(1.0, 0, scheme))
    return pixels.found


def put_back(model: ir.Model, layers: Iterable[Move]) -> None:
    """Let these layers read what they read before they were moved, their outputs unchanged."""
    nodes = {node.name: node for node in model.graph}
    made = (value for node in model.graph for value in node.outputs)
    values = {value.name: value for value in (*model.graph.inputs, *made)}
    for move in layers:
        node = nodes[move.node]
        weight = weight_of(node).astype(np.float64)
        add_to_bias(node, _moved(node, weight, move.offset))
        if move.factor is not None:
            set_constant(node, 1, (weight * per_input(node, move.factor)).astype(np.float32), "weight")
        node.replace_input_with(0, values[move.source])
        if move.pads:
            node.attributes["pads"] = ir.AttrInt64s("pads", list(move.pads))
    remove_unused(model)


def obstacle(node: ir.Node) -> str | None:
    """Why the input of `node` cannot be shifted; None where it can."""
    if node.op_type not in _LAYERS:
        return "it is neither a convolution nor a linear layer"
    weight = constant(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or (bias is not None and constant(bias) is None):
        return "its weights are computed"
    if node.op_type != "Conv":
        plain = weight.ndim == 2 and not attribute(node, "transA", 0) and attribute(node, "beta", 1.0)
        return None if plain else "it is a product of another form"
    if attribute(node, "group", 1) != 1 or weight.ndim != 4:
        return "it is a grouped convolution or not one of images"
    try:
        Window.of(node)
    except ExportError as error:
        return error.what
    return None


class _Inputs:
    """Replaces the inputs of layers; layers that want the same one share it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.found = Moved({}, [])
        self._made: dict[tuple[ir.Value, tuple[int, ...], QuantParams], ir.Value] = {}

    def replace(self, node: ir.Node, factor: Array | None, offset: Array, params: QuantParams) -> None:
        """Let `node` read `factor` x + `offset`, each a scalar or one number a channel, with its output unchanged."""
        reason = obstacle(node)
        if reason is not None:
            raise ExportError(f"the input of {node.name} cannot be shifted", why=reason, fix=REPORT)
        value, weight = input_of(node, 0), weight_of(node)
        padding = Window.of(node).pads if node.op_type == "Conv" else ()
        key = (value, padding, params)
        if key not in self._made:
            self._made[key] = self._make(node, value, padding, factor, offset)
            self.found.ranges[str(self._made[key].name)] = params
        self.found.layers.append(Move(str(node.name), str(value.name), factor, offset, padding))
        node.replace_input_with(0, self._made[key])
        if padding:
            node.attributes.pop("auto_pad", None)
            node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(padding))
        if factor is not None:
            weight = (weight / per_input(node, factor)).astype(np.float32)
            set_constant(node, 1, weight, "weight")
        add_to_bias(node, -_moved(node, weight, offset))

    def _make(
        self, node: ir.Node, value: ir.Value, padding: tuple[int, ...], factor: Array | None, offset: Array
    ) -> ir.Value:
        builder = Builder(self.graph, node)
        if any(padding):
            pads = np.array([0, 0, *padding[:2], 0, 0, *padding[2:]], dtype=np.int64)
            value = builder.op("Pad", [value, builder.constant(pads, "pads")], _padded(value, padding))
        for op_type, number in (("Mul", factor), ("Add", offset)):
            if number is not None:
                shaped = number.astype(np.float32).reshape((-1, 1, 1) if number.ndim else ())
                value = builder.op(op_type, [value, builder.constant(shaped, "shift")], value.shape)
        return value


def _moved(node: ir.Node, weight: Array, offset: Array) -> Array:
    """What the offset of its input adds to each channel that a layer gives, float64."""
    others = tuple(axis for axis in range(weight.ndim) if axis != output_axis(node))
    moved: Array = (weight * per_input(node, offset.astype(np.float32).astype(np.float64))).sum(axis=others)
    return moved


def _padded(value: ir.Value, padding: tuple[int, ...]) -> list[int | ir.SymbolicDim] | None:
    """The shape [n, channels, height, width] with the padding: top, left, bottom, right."""
    if value.shape is None:
        return None
    more = [0, 0, padding[0] + padding[2], padding[1] + padding[3]]
    return [dim + extra if isinstance(dim, int) else dim for dim, extra in zip(value.shape, more, strict=True)]
