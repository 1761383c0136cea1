"""Where a graph holds attention: softmax between two products of activations, or one Attention operator."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.edit import consumers, input_of, is_weight, of_type, producer

# What may be met on the way from one product to the softmax or from there to the other: scale, mask, type, layout.
_PASSABLE = """
    Add Cast Clip Div Dropout Expand Identity Mul Reshape Squeeze Sub Transpose Unsqueeze Where QuantizeLinear
    DequantizeLinear
"""
_BETWEEN = frozenset(_PASSABLE.split())
_LAYOUT = frozenset({"Cast", "DequantizeLinear", "QuantizeLinear", "Reshape", "Transpose"})
_REACH = 8  # nodes between a product and the softmax


@dataclass(frozen=True)
class Attention:
    """One attention: two products, the softmax, and what stands between them; an operator is all three by itself."""

    first: ir.Node
    softmax: ir.Node
    second: ir.Node
    before: tuple[ir.Node, ...] = ()
    after: tuple[ir.Node, ...] = ()

    @property
    def name(self) -> str:
        """The softmax's, whose path tells the module."""
        return str(self.softmax.name)

    @property
    def operands(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query [B, h, N, d], transposed key [B, h, d, M] and value [B, h, M, e] of two products."""
        return input_of(self.first, 0), input_of(self.first, 1), input_of(self.second, 1)

    @property
    def results(self) -> tuple[str, ...]:
        """The names under which the result is known: of the second product and, through changes of layout, on."""
        values = [self.second.outputs[0]]
        while len(after := consumers(values[-1])) == 1 and after[0].op_type in _LAYOUT:
            values.append(after[0].outputs[0])
        return tuple(str(value.name) for value in values)


def find_attentions(graph: ir.Graph, *, operators: bool = False) -> list[Attention]:
    """Every MatMul, Softmax, MatMul in which no weights are multiplied, in the order of the graph.

    Shapes need not be known. With `operators` also every Attention operator (opset 23, or of ONNX Runtime).
    """
    found = []
    for node in of_type(graph, "Softmax", "Attention"):
        if node.op_type == "Attention":
            found += [Attention(node, node, node)] if operators else []
            continue
        up = _towards_first(input_of(node, 0), _REACH)
        down = _towards_second(node.outputs[0], _REACH)
        if up is not None and down is not None:
            found.append(Attention(up[-1], node, down[-1], tuple(reversed(up[:-1])), tuple(down[:-1])))
    return found


def _towards_first(value: ir.Value | None, reach: int) -> list[ir.Node] | None:
    """Nodes from the softmax's input up to the first product, which is the last of the list."""
    node = producer(value)
    if node is None or reach == 0:
        return None
    if node.op_type == "MatMul":
        return [node] if all(_may_be_activation(operand) for operand in node.inputs) else None
    for operand in node.inputs if node.op_type in _BETWEEN else ():
        found = _towards_first(operand, reach - 1)
        if found is not None:
            return [node, *found]
    return None


def _towards_second(value: ir.Value, reach: int) -> list[ir.Node] | None:
    """Nodes from the softmax's output down to the second product, which is the last of the list."""
    for node in consumers(value) if reach else ():
        if node.op_type == "MatMul" and node.inputs[0] is value and _may_be_activation(node.inputs[1]):
            return [node]
        found = _towards_second(node.outputs[0], reach - 1) if node.op_type in _BETWEEN else None
        if found is not None:
            return [node, *found]
    return None


def _may_be_activation(value: ir.Value | None) -> bool:
    """Computed, or a constant stack of matrices, such as queries that are the same for every image."""
    if value is None:
        return False
    return not is_weight(value) or (value.shape is not None and len(value.shape) > 2)
