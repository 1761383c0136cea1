"""What linear layers (MatMul, Gemm) and convolutions have in common: a weight with axes, a window, a bias."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import REPORT, ExportError
from vitdeploy.graph.edit import Builder, attribute, constant, graph_of, only_consumer, set_constant
from vitdeploy.graph.qdq import Array

_PRODUCTS = frozenset({"MatMul", "Gemm"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def weight_of(node: ir.Node) -> Array:
    """The constant weight of a layer; ExportError where it is computed."""
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if weight is None:
        what = f"the weight of {node.name} is computed"
        raise ExportError(what, why="only constant weights become integers", fix=REPORT)
    return weight


def output_axis(node: ir.Node) -> int:
    """The axis of a layer's weight that is its output channels; of the first two the other one is its inputs."""
    return 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1


def per_input(node: ir.Node, numbers: Array) -> Array:
    """A scalar or one number an input channel, shaped as the layer's weight wants it."""
    if not numbers.ndim:
        return numbers
    first = (1, -1) if output_axis(node) == 0 else (-1, 1)
    return numbers.reshape(*first, *((1, 1) if node.op_type == "Conv" else ()))


def channel_axis(node: ir.Node) -> int | None:
    """The axis of its first input over which `node` sums; None unless it is a linear layer of constant weights."""
    weight, *biases = [constant(value) for value in node.inputs[1:] if value is not None] or [None]
    if weight is None or any(bias is None for bias in biases):
        return None
    if node.op_type in _PRODUCTS and weight.ndim == 2 and not attribute(node, "transA", 0):
        same_for_all_rows = all(bias.size == bias.shape[-1] for bias in biases if bias is not None and bias.ndim)
        return -1 if same_for_all_rows else None
    if node.op_type in _CONVOLUTIONS and weight.ndim == 4:
        return 1
    return None


@dataclass(frozen=True)
class Window:
    """The patches that a convolution reads: height and width of each; `pads` are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, node: ir.Node) -> Window:
        """The window of a Conv of images, whose weight is constant.

        Raises ExportError where its padding depends on a height and width that are not known.
        """
        height, width = weight_of(node).shape[2:]
        strides = tuple(attribute(node, "strides", (1, 1)))
        dilations = tuple(attribute(node, "dilations", (1, 1)))
        pads = tuple(attribute(node, "pads", (0, 0, 0, 0)))
        auto = attribute(node, "auto_pad", "NOTSET")
        if auto == "VALID":
            pads = (0, 0, 0, 0)
        elif auto != "NOTSET":
            pads = _same(node.inputs[0], (height, width), strides, dilations, lower=auto == "SAME_LOWER")
        return cls((height, width), strides, pads, dilations)

    def patches(self, values: Array) -> Array:
        """`values` [n, channels, h, w] as a view [n, out h, out w, channels, kh, kw] of its zero-padded copy."""
        top, left, bottom, right = self.pads
        padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
        spans = tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))
        views: Array = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
        taken: Array = views[:, :, :: self.strides[0], :: self.strides[1], :: self.dilations[0], :: self.dilations[1]]
        patches: Array = np.moveaxis(taken, 1, 3)
        return patches


def _same(
    source: ir.Value | None,
    kernel: tuple[int, int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    *,
    lower: bool,
) -> tuple[int, ...]:
    """Padding that makes the output as large as the input over the stride, the odd pixel behind or, `lower`, before."""
    sides = None if source is None or source.shape is None else [size for size in source.shape if isinstance(size, int)]
    if sides is None or len(sides) < 2:
        raise ExportError(
            "the padding of a convolution depends on the image size, which is free", fix="export with --image-size"
        )
    before, after = [], []
    for side, size, stride, dilation in zip(sides[-2:], kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(side / stride) - 1) * stride + (size - 1) * dilation + 1 - side)
        small, large = total // 2, total - total // 2
        before.append(large if lower else small)
        after.append(small if lower else large)
    return (*before, *after)


def window(node: ir.Node) -> tuple[int, int] | None:
    """Height and width in pixels that one output of a convolution depends on; None for other layers."""
    if channel_axis(node) != 1:
        return None
    dilations, strides = attribute(node, "dilations", [1, 1]), attribute(node, "strides", [1, 1])
    height, width = (1 + (size - 1) * step for size, step in zip(weight_of(node).shape[2:], dilations, strict=True))
    if node.op_type == "ConvTranspose":  # of overlapping outputs, as many pixels as reach one of them
        return -(-height // strides[0]), -(-width // strides[1])
    return height, width


def widest_window(value: ir.Value) -> tuple[int, int] | None:
    """Height and width that hold the window of every convolution that reads `value`; None where there is none."""
    windows = [found for use in value.uses() if use.idx == 0 and (found := window(use.node)) is not None]
    return (max(height for height, _ in windows), max(width for _, width in windows)) if windows else None


class LinearMap:
    """A layer of constant weights, without its bias, as a function of the units of its first input.

    Units are rows [n, channels] of a linear layer, or windows [n, channels, height, width] of a convolution, see
    `observers.Sample`; of a larger window its upper left part is read. The outputs are float32 [n, outputs]: those of
    one place of the image, or for ConvTranspose of the stride's pixels that all of the window reaches.

    window  that it reads; None for rows
    """

    def __init__(self, node: ir.Node) -> None:
        self.window = window(node)
        weight = weight_of(node).astype(np.float32)
        groups = attribute(node, "group", 1) if self.window is not None else 1
        if self.window is None:
            matrix = weight.T if attribute(node, "transB", 0) else weight
            self._matrices = matrix[None] * np.float32(attribute(node, "alpha", 1.0))
            return
        weight = _dilated(weight, attribute(node, "dilations", [1, 1]))
        if node.op_type == "ConvTranspose":
            weight = _phases(weight, attribute(node, "strides", [1, 1]))
            self._matrices = weight.reshape(groups, len(weight) // groups * math.prod(self.window), -1)
        else:
            rows = weight.reshape(groups, len(weight) // groups, -1)
            self._matrices = np.ascontiguousarray(rows.transpose(0, 2, 1))

    def __call__(self, units: Array) -> Array:
        """Outputs of the layer for `units`."""
        if self.window is not None:
            units = units[:, :, : self.window[0], : self.window[1]]
        parts = units.reshape(len(units), len(self._matrices), -1).transpose(1, 0, 2)
        outputs: Array = (parts @ self._matrices).transpose(1, 0, 2).reshape(len(units), -1)
        return outputs


def linear_map(node: ir.Node) -> LinearMap | None:
    """`node` as a function of its first input; None unless it is a linear layer or convolution of constant weights."""
    return None if channel_axis(node) is None else LinearMap(node)


def _dilated(weight: Array, dilations: list[int]) -> Array:
    """A kernel [a, b, h, w] with zeros between its taps."""
    sizes = [1 + (size - 1) * step for size, step in zip(weight.shape[2:], dilations, strict=True)]
    spread = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    spread[:, :, :: dilations[0], :: dilations[1]] = weight
    return spread


def _phases(weight: Array, strides: list[int]) -> Array:
    """A kernel [inputs, outputs, h, w] of ConvTranspose as [inputs, a, b, outputs, sh, sw].

    Pixel i of a window of a reaches output phase p of the stride through tap (a - 1 - i) stride + p.
    """
    height, width = (-(-size // step) for size, step in zip(weight.shape[2:], strides, strict=True))
    full = np.zeros((*weight.shape[:2], height * strides[0], width * strides[1]), weight.dtype)
    full[:, :, : weight.shape[2], : weight.shape[3]] = weight
    taps = full.reshape(*weight.shape[:2], height, strides[0], width, strides[1])[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(taps.transpose(0, 2, 4, 1, 3, 5))


def add_to_bias(node: ir.Node, more: Array) -> None:
    """Add `more` [channels] to what `node` gives: in its bias, that of the Add behind it, or an Add of its own."""
    if node.op_type in {"Conv", "Gemm"}:
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if node.op_type == "Gemm":
            more = more * attribute(node, "alpha", 1.0) / attribute(node, "beta", 1.0)
        set_constant(node, 2, _sum(bias, more), "bias")
        return
    add = only_consumer(node.outputs[0], "Add")
    for index, value in enumerate(add.inputs if add is not None else ()):
        bias = constant(value)
        if add is not None and bias is not None and bias.shape[-1:] == more.shape and bias.size == more.size:
            set_constant(add, index, _sum(bias, more), "bias")
            return
    _append_bias(node, more.astype(np.float32))


def _append_bias(node: ir.Node, bias: Array) -> None:
    graph, out = graph_of(node), node.outputs[0]
    after = ir.node("Add", [out, Builder(graph, node).constant(bias, "bias")], name=f"{node.name}.shifted")
    new = after.outputs[0]
    new.shape, new.type = out.shape, out.type
    graph.insert_after(node, after)
    name, out.name = out.name, f"{node.name}.unshifted"
    new.name = name
    ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
    after.replace_input_with(0, out)


def _sum(bias: Array | None, more: Array) -> Array:
    total: Array = more if bias is None else bias.astype(np.float64) + more
    return total.astype(np.float32)
