"""Which layers compute in 8-bit integers, and which of their inputs: a plan made from a graph and a target's rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from vitdeploy.graph.edit import attribute, constant, for_one, input_of, sizes
from vitdeploy.graph.qdq import QScheme
from vitdeploy.targets import Int8Rules

LINEAR, CONVOLUTION, DEPTHWISE, DECONVOLUTION, ATTENTION = (
    "linear",
    "convolution",
    "depthwise",
    "deconvolution",
    "attention",
)


@dataclass(frozen=True)
class Layer:
    """A node that multiplies, and how it is quantized.

    node         name of the node
    kind         one of the constants of this module
    activations  indices of the inputs that are computed
    scheme       of these inputs
    weight       index of the constant input, if there is one, and `axis`, the one of its output channels
    output       whether the result is rounded to integers too
    macs         multiply-accumulates of one image
    obstacle     why it stays in float; None where it becomes integer
    """

    node: str
    kind: str
    activations: tuple[int, ...]
    scheme: QScheme | None
    weight: int | None = None
    axis: int = 0
    output: bool = False
    macs: int = 0
    obstacle: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether the layer computes in integers."""
        return self.obstacle is None

    def left_in_float(self, reason: str) -> Layer:
        """The same layer, not quantized, and why."""
        return replace(self, obstacle=reason)


Plan = tuple[Layer, ...]

_OF_IMAGES = 4  # axes of their weights

# What rounding takes in: with a constant, and always.
_AFFINE = frozenset({"Add", "Sub", "Mul", "Div"})
_ABSORBED = frozenset(
    {"BatchNormalization", "Clip", "Flatten", "Identity", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


def place(graph: ir.Graph, rules: Int8Rules) -> Plan:
    """Every product of the graph with the reason why it stays in float, if it does."""
    return tuple(_restricted(layer, node, rules) for node, layer in _layers(graph, rules))


def restrict(plan: Plan, obstacle: Callable[[Layer], str | None]) -> Plan:
    """`plan` with the quantized layers for which `obstacle` names a reason left in float."""
    return tuple(
        layer.left_in_float(reason) if layer.quantized and (reason := obstacle(layer)) else layer for layer in plan
    )


def tensors(graph: ir.Graph, plan: Plan) -> dict[str, list[Layer]]:
    """The activations that become integers, by name, each with the quantized layers that read it.

    What a layer writes as integers (`Layer.output`) and none reads stands there with an empty list.
    """
    nodes = {node.name: node for node in graph}
    found: dict[str, list[Layer]] = {}
    for layer in plan:
        if layer.quantized:
            for index in layer.activations:
                found.setdefault(str(input_of(nodes[layer.node], index).name), []).append(layer)
            if layer.output:
                found.setdefault(str(nodes[layer.node].outputs[0].name), [])
    return found


def _layers(graph: ir.Graph, rules: Int8Rules) -> Iterator[tuple[ir.Node, Layer]]:
    computed = _depends_on_input(graph)
    for node in graph:
        if node.op_type not in _KINDS:
            continue
        layer = _KINDS[node.op_type](node, computed, rules)
        if layer is not None:
            yield node, layer


def _depends_on_input(graph: ir.Graph) -> set[ir.Value]:
    computed = set(graph.inputs)
    for node in graph:
        if any(value in computed for value in node.inputs):
            computed.update(node.outputs)
    return computed


def _product(node: ir.Node, computed: set[ir.Value], rules: Int8Rules) -> Layer | None:
    left, right = input_of(node, 0), input_of(node, 1)
    out = sizes(node.outputs[0])
    inner = sizes(left)
    macs = prod(map(for_one, out or ())) * for_one(inner[-1] if inner else 1)
    activations = tuple(index for index, value in enumerate((left, right)) if value in computed)
    if activations == (0,) and constant(right) is not None and right.shape is not None and len(right.shape) == 2:
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        return Layer(str(node.name), LINEAR, (0,), rules.activation, 1, 0 if transposed else 1, macs=macs)
    if node.op_type == "MatMul" and activations:
        return Layer(str(node.name), ATTENTION, activations, rules.attention, macs=macs)
    return None


def _convolution(node: ir.Node, computed: set[ir.Value], rules: Int8Rules) -> Layer | None:
    weight = constant(node.inputs[1])
    if weight is None or node.inputs[0] not in computed:
        return None
    group, shape = int(attribute(node, "group", 1)), weight.shape
    transposed = node.op_type == "ConvTranspose"
    kind = DECONVOLUTION if transposed else CONVOLUTION if group == 1 else DEPTHWISE
    out = sizes(node.inputs[0] if transposed else node.outputs[0]) or (1, 1)
    macs = prod(map(for_one, out[2:])) * prod(shape)
    written = kind == CONVOLUTION and rules.convolution_output
    return Layer(str(node.name), kind, (0,), rules.activation, 1, 1 if transposed else 0, written, macs)


_KINDS: Mapping[str, Callable[[ir.Node, set[ir.Value], Int8Rules], Layer | None]] = {
    "MatMul": _product,
    "Gemm": _product,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
}


def _restricted(layer: Layer, node: ir.Node, rules: Int8Rules) -> Layer:
    reason = None
    if layer.scheme is None:
        reason = "the target computes the products of attention faster in float"
    elif layer.kind == ATTENTION and len(layer.activations) == 1:
        reason = "one of its factors is a constant: of such, only the weights of linear layers become integers"
    elif layer.kind == DEPTHWISE:
        reason = "a depthwise convolution is bound by memory, not by arithmetic"
    elif layer.kind in (CONVOLUTION, DECONVOLUTION) and len(sizes(node.inputs[1]) or ()) != _OF_IMAGES:
        reason = "only convolutions of images become integer"
    elif layer.kind == CONVOLUTION:
        inputs = for_one((sizes(node.inputs[1]) or (0, 0))[1])
        if inputs < rules.min_convolution_inputs:
            reason = f"a convolution of {inputs} input channels is faster in float"
        elif not rules.joined_convolutions and _is_joined(input_of(node, 0)):
            reason = "the target is not right on integers of maps that were concatenated"
    elif layer.kind == LINEAR:
        weight = sizes(node.inputs[1]) or (0, 0)
        if min(map(for_one, weight)) < rules.min_channels:
            reason = f"fewer than {rules.min_channels} channels"
    return layer.left_in_float(reason) if reason else layer


def _is_joined(value: ir.Value) -> bool:
    """Whether `value` comes out of a Concat, but for what rounding to integers absorbs."""
    node = value.producer()
    while node is not None and node.op_type != "Concat":
        computed = [source for source in node.inputs if source is not None and constant(source) is None]
        affine = node.op_type in _AFFINE and len(computed) == 1
        if not affine and node.op_type not in _ABSORBED:
            return False
        node = computed[0].producer() if computed else None
    return node is not None
