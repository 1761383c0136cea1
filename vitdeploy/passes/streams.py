"""Streams of tokens that pass the same weights: when they may run as one, and how they are made one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from vitdeploy.graph.edit import Builder, attribute, constant, consumers, need, sizes

# All streams but the longest together. Measured on LeMeViT-tiny at 224x224, batch 1, one CPU thread: time with every
# merge over time without, by the number of short tokens, in ONNX Runtime and OpenVINO: 16 0.95 0.93, 64 0.97 0.95,
# 128 0.98 0.95, 256 1.00 0.97. A short GEMM pays for reading the weights again, however long the other one is.
MAX_SHORT_TOKENS = 128

_TOKEN_AXIS = 1
_UNARY = ("Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Sqrt", "Exp", "Neg", "Reciprocal")
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow")


def worthwhile(nodes: Sequence[ir.Node]) -> bool:
    """Whether all streams [B, N_i, C] that the nodes make but the longest are short."""
    if not all(_stackable([node.outputs[0]]) for node in nodes):
        return False
    rows = rows_of(nodes)
    return sum(rows) - max(rows) <= MAX_SHORT_TOKENS


def rows_of(nodes: Sequence[ir.Node]) -> list[int]:
    """The tokens that each node makes."""
    return [tokens_of(node.outputs[0]) for node in nodes]


def tokens_of(value: ir.Value) -> int:
    """The tokens N of [B, N, C]."""
    return int(need(sizes(value), f"the shape of {value.name}")[_TOKEN_AXIS])


class Merger:
    """One merge and what grows out of it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.splits: deque[list[ir.Value]] = deque()

    def merge(self, nodes: Sequence[ir.Node]) -> ir.Value:
        """Run the sibling `nodes` as one and return its output, which a Split hands to their consumers."""
        first = nodes[0]
        inputs = [
            value if is_constant(value) else self.join([node.inputs[i] for node in nodes])  # type: ignore[misc]
            for i, value in enumerate(first.inputs)
        ]
        add = Builder(self.graph, nodes[-1])
        rows, shape = rows_of(nodes), list(first.outputs[0].shape or ())
        shape[_TOKEN_AXIS] = sum(rows)
        attributes = {name: attribute(first, name) for name in first.attributes}
        out = add.op(first.op_type, inputs, shape, dtype=first.outputs[0].dtype, **attributes)
        parts = add.split(out, rows, _TOKEN_AXIS)
        for node, part in zip(nodes, parts, strict=True):
            ir.convenience.replace_all_uses_with(node.outputs[0], part)
            self.graph.remove(node, safe=True)
        self.splits.append(parts)
        return out

    def join(self, values: Sequence[ir.Value]) -> ir.Value:
        """The values one after the other: what is joined already, the output of merged producers, or a Concat."""
        found = joined(values)
        if found is not None:
            return found
        producers = [node for node in (value.producer() for value in values) if node is not None]
        if len(producers) == len(values) and mergeable(producers) and len(varying(producers)) == 1:
            return self.merge(producers)
        shape = list(values[0].shape or ())
        shape[_TOKEN_AXIS] = sum(map(tokens_of, values))
        anchor = consumers(values[-1])[0]
        return Builder(self.graph, anchor).op("Concat", values, shape, axis=_TOKEN_AXIS)

    def grow(self) -> None:
        """Merge the consumers of what was merged, as long as all their operands are."""
        while self.splits:
            parts = self.splits.popleft()
            for node in consumers(parts[0]):
                siblings = [node, *(sibling(node, parts[0], part) for part in parts[1:])]
                if mergeable(siblings) and all(joined(operands) is not None for operands in varying(siblings)):
                    self.merge(siblings)  # type: ignore[arg-type]


def sibling(node: ir.Node, part: ir.Value, other: ir.Value) -> ir.Node | None:
    """The consumer of `other` that is to it what `node` is to `part`."""
    position = node.inputs.index(part)
    for use in other.uses():
        if use.idx == position and same_operator(node, use.node):
            return use.node
    return None


def mergeable(nodes: Sequence[ir.Node | None]) -> bool:
    """Whether the nodes do the same to each token of [B, *, C] and none needs the result of another."""
    present = [node for node in nodes if node is not None]
    first = present[0]
    return (
        len(set(present)) == len(nodes)
        and all(node.graph is first.graph is not None and _by_token(node) for node in present)
        and all(same_operator(first, node) for node in present[1:])
        and all(_stackable(operands) and len(set(operands)) == len(present) for operands in varying(present))
        and independent(present)
    )


def _by_token(node: ir.Node) -> bool:
    """Whether the operator works on each token of [B, N, C] alone, parameters being constants."""
    out = node.outputs[0]
    varying = [value for value in node.inputs if not is_constant(value)]
    parameters = [array for array in map(constant, node.inputs) if array is not None]
    if len(node.outputs) != 1 or out.is_graph_output() or not varying or not _stackable([out]):
        return False
    if node.op_type == "MatMul":
        return varying == [node.inputs[0]] and parameters[0].ndim == 2
    if node.op_type == "LayerNormalization":
        return varying == [node.inputs[0]] and attribute(node, "axis", -1) in (-1, 2)
    if node.op_type in _UNARY:
        return len(node.inputs) == 1
    if node.op_type in _BINARY:
        per_channel = all(
            array.ndim <= 3 and (array.size == 1 or array.size == array.shape[-1]) for array in parameters
        )
        return per_channel and all(sizes(value) == sizes(out) for value in varying)
    return False


def same_operator(first: ir.Node, other: ir.Node) -> bool:
    """Same operator, attributes and constants."""
    return (
        (first.domain, first.op_type, len(first.inputs)) == (other.domain, other.op_type, len(other.inputs))
        and {k: a.value for k, a in first.attributes.items()} == {k: a.value for k, a in other.attributes.items()}
        and all(_same_constant(a, b) for a, b in zip(first.inputs, other.inputs, strict=True))
    )


def _same_constant(first: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both are computed, or both are the same constant."""
    if first is other:
        return True
    a, b = constant(first), constant(other)
    if a is None or b is None:
        return a is None and b is None and first is not None and other is not None
    return a.dtype == b.dtype and np.array_equal(a, b)


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is a constant, or an input that is left out."""
    return value is None or constant(value) is not None


def varying(nodes: Sequence[ir.Node | None]) -> list[list[ir.Value]]:
    """For each computed input, what the nodes take there."""
    present = [node for node in nodes if node is not None]
    columns = zip(*(node.inputs for node in present), strict=True)
    return [[v for v in column if v is not None] for column in columns if not is_constant(column[0])]


def _stackable(values: Sequence[ir.Value]) -> bool:
    """Whether the values are [B, N_i, C] with the same B and C, and N_i static."""
    shapes = [sizes(value) for value in values]
    known = [shape for shape in shapes if shape is not None and len(shape) == 3 and isinstance(shape[1], int)]
    return len(known) == len(shapes) and len({(shape[0], shape[2]) for shape in known}) == 1


def joined(values: Sequence[ir.Value]) -> ir.Value | None:
    """The value that holds `values` one after the other: they are the parts of its Split, or a Concat makes it."""
    split = values[0].producer()
    if split is not None and split.op_type == "Split" and _on_tokens(split) and list(split.outputs) == [*values]:
        return split.inputs[0]
    for node in consumers(values[0]):
        if node.op_type == "Concat" and list(node.inputs) == [*values] and _on_tokens(node):
            return node.outputs[0]
    return None


def _on_tokens(node: ir.Node) -> bool:
    return int(attribute(node, "axis", 0)) % 3 == _TOKEN_AXIS


def independent(nodes: Sequence[ir.Node]) -> bool:
    """Whether no node is an ancestor of another."""
    seen: set[ir.Node] = set()
    waiting = [producer for node in nodes for producer in node.predecessors()]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += node.predecessors()
    return seen.isdisjoint(nodes)
