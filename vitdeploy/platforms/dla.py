"""How much of a graph a Jetson's deep learning accelerator could compute, told from rules and without one.

Rows are from the TensorRT documentation, "DLA Supported Layers and Restrictions". It is made for convolutional
networks: where attention stands between, each stretch is a loadable of its own and the data goes to the GPU and back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, sizes
from vitdeploy.platforms.boards import Platform, missing_dla
from vitdeploy.platforms.fusion_rules import type_name
from vitdeploy.platforms.report import DlaReport

MAX_LENGTH = 8192  # of every axis but the batch
MAX_KERNEL, MAX_STRIDE = 32, 8
MAX_SOFTMAX = 1024

_TYPES = ("fp16", "int8")
_ELEMENTWISE = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub")
_ACTIVATIONS = ("Clip", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh")
_LAYERS = frozenset({*_ELEMENTWISE, *_ACTIVATIONS, "AveragePool", "BatchNormalization", "Concat", "Conv"}) | {
    *("ConvTranspose", "LRN", "MaxPool", "Resize", "Slice", "Softmax")
}
# Part of the layer before or after them, or gone when the engine is built.
_NEUTRAL = frozenset({"Cast", "Constant", "DequantizeLinear", "Identity", "QuantizeLinear", "Shape"})


def judge_dla(graph: ir.Graph, platform: Platform) -> DlaReport | None:
    """What the platform's accelerator could compute of the graph; None for platforms that are no boards."""
    if not platform.jetpack:
        return None
    missing = missing_dla(platform.oldest, platform.name)
    if missing:
        return DlaReport(missing)
    reasons = [_obstacle(node) for node in _layers(graph)]
    off = Counter(reason for reason in reasons if reason is not None)
    able = [reason is None for reason in reasons]
    starts = sum(now and not before for before, now in pairwise([False, *able]))
    return DlaReport(None, sum(able), len(able), tuple(off.most_common()), starts)


def _layers(graph: ir.Graph) -> Iterator[ir.Node]:
    return (node for node in graph if node.op_type not in _NEUTRAL)


def _obstacle(node: ir.Node) -> str | None:
    """Why the accelerator does not take this node; None where it may."""
    kind = node.op_type
    if kind not in _LAYERS:
        return f"{kind}: it has no such layer"
    for value in (*node.inputs[:2], *node.outputs[:1]):
        shape = sizes(value)
        if value is None or constant(value) is not None or shape is None:
            continue
        if type_name(value) not in _TYPES:
            return f"{kind}: {type_name(value)}, it computes in FP16 and INT8"
        if len(shape) != 4:
            return f"{kind}: rank {len(shape)}, it takes maps of rank 4"
        if any(isinstance(length, str) for length in shape):
            return f"{kind}: a free axis"
        if any(isinstance(length, int) and length > MAX_LENGTH for length in shape[1:]):
            return f"{kind}: an axis longer than {MAX_LENGTH}"
    return _own_limits(node)


def _own_limits(node: ir.Node) -> str | None:
    kind = node.op_type
    if kind in ("Conv", "ConvTranspose"):
        weight = sizes(node.inputs[1]) or ()
        if any(isinstance(length, int) and length > MAX_KERNEL for length in weight[2:]):
            return f"{kind}: a kernel longer than {MAX_KERNEL}"
        if max(attribute(node, "strides", [1]), default=1) > MAX_STRIDE:
            return f"{kind}: a stride longer than {MAX_STRIDE}"
    if kind == "ConvTranspose":
        if int(attribute(node, "group", 1)) > 1:
            return f"{kind}: groups"
        if any(attribute(node, "pads", [0])):
            return f"{kind}: padding"
    if kind == "Concat" and int(attribute(node, "axis", 0)) != 1:
        return f"{kind}: along another axis than the channels"
    if kind == "Softmax":
        shape = sizes(node.inputs[0]) or (0,)
        length = shape[int(attribute(node, "axis", -1))]
        if isinstance(length, int) and length > MAX_SOFTMAX:
            return f"{kind}: over more than {MAX_SOFTMAX}"
    return None
