"""The layers that read a tensor, as functions of it, so that a range can be judged by what it does to their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.graph.edit import attribute, constant

Array = NDArray[Any]

_PRODUCTS = frozenset({"MatMul", "Gemm"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


class Reader:
    """A layer with constant weights, alone: what it makes of units of its first input, see `sample.Sample`.

    window  pixels that it reads at once, for a convolution, which takes units [n, channels, height, width] of at
            least that; None for a product, which takes rows [n, channels]
    """

    def __init__(self, node: ir.Node) -> None:
        import onnxruntime as ort

        self.window = window(node)
        rank = 2 if self.window is None else 4
        source = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None] * rank))
        weights = [_copy(value, f"w{index}") for index, value in enumerate(node.inputs[1:])]
        copy = ir.Node("", node.op_type, [source, *weights], attributes=_unpadded(node))
        out = copy.outputs[0]
        out.name, out.type = "y", ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [source],
            [out],
            nodes=[copy],
            initializers=[weight for weight in weights if weight is not None],
            opset_imports={"": 17},
        )
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # there are as many sessions as layers
        payload = ir.to_proto(ir.Model(graph, ir_version=8)).SerializeToString()
        # Through ONNX Runtime, which knows every attribute.
        self._session = ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])

    def __call__(self, units: Array) -> Array:
        """Output of the layer for `units`, float32."""
        result: Array = self._session.run(["y"], {"x": units})[0]
        return result


def _copy(value: ir.Value | None, name: str) -> ir.Value | None:
    array = constant(value)
    return None if array is None else ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))


def _unpadded(node: ir.Node) -> list[ir.Attr]:
    """The attributes, without what only concerns where windows lie in an image."""
    dropped = {"auto_pad", "pads", "output_padding", "output_shape"} | (
        {"strides"} if node.op_type == "Conv" else set()
    )
    return [attribute for name, attribute in node.attributes.items() if name not in dropped]


def reader(node: ir.Node) -> Reader | None:
    """`node` as a function of its first input; None unless it is a linear layer or convolution of constant weights."""
    return None if channel_axis(node) is None else Reader(node)


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


def window(node: ir.Node) -> tuple[int, int] | None:
    """Height and width in pixels that one output of a convolution depends on; None for other layers."""
    if channel_axis(node) != 1:
        return None
    weight = constant(node.inputs[1])
    assert weight is not None
    dilations, strides = attribute(node, "dilations", [1, 1]), attribute(node, "strides", [1, 1])
    height, width = (1 + (size - 1) * step for size, step in zip(weight.shape[2:], dilations, strict=True))
    if node.op_type == "ConvTranspose":  # of overlapping outputs, as many pixels as reach one of them
        return -(-height // strides[0]), -(-width // strides[1])
    return height, width


def widest_window(value: ir.Value) -> tuple[int, int] | None:
    """Height and width that hold the window of every convolution that reads `value`; None where there is none."""
    windows = [found for use in value.uses() if use.idx == 0 and (found := window(use.node)) is not None]
    return (max(height for height, _ in windows), max(width for _, width in windows)) if windows else None
