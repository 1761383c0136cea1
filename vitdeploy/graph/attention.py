"""Where a graph holds attention: the names of its nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Between the two products of attention: scale, mask, precision.
_BEFORE_SOFTMAX = frozenset({"Add", "Mul", "Div", "Sub", "Cast", "Where", "QuantizeLinear", "DequantizeLinear"})
_AFTER_SOFTMAX = frozenset({"Cast", "Dropout", "Identity", "QuantizeLinear", "DequantizeLinear"})
_LAYOUT = frozenset({"Transpose", "Reshape", "Cast", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class AttentionBlock:
    """Names of the nodes of one attention: first product, softmax, second product (all the same for one operator).

    `outputs` are the names under which its result is known: of the second product and, through changes of layout, on.
    """

    first: str
    softmax: str
    second: str
    softmax_output: str
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The softmax, whose path tells the module."""
        return self.softmax


def attention_blocks(model: Any) -> list[AttentionBlock]:
    """The attentions of an onnx.ModelProto: Attention operators, and Softmax between two products of activations."""
    producer = {output: node for node in model.graph.node for output in node.output}
    consumers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def up(name: str) -> Any | None:
        node = producer.get(name)
        if node is None or node.op_type == "MatMul":
            return node
        if node.op_type not in _BEFORE_SOFTMAX:
            return None
        return next((found for above in node.input if (found := up(above)) is not None), None)

    def down(name: str, through: frozenset[str]) -> tuple[list[str], Any | None]:
        names = [name]
        while len(after := consumers.get(names[-1], [])) == 1 and after[0].op_type in through:
            names.append(after[0].output[0])
        return names, after[0] if len(after) == 1 else None

    blocks = []
    for node in model.graph.node:
        if node.op_type == "Attention":
            names, _ = down(node.output[0], _LAYOUT)
            blocks.append(AttentionBlock(node.name, node.name, node.name, node.output[0], tuple(names)))
        if node.op_type != "Softmax":
            continue
        first = up(node.input[0])
        _, second = down(node.output[0], _AFTER_SOFTMAX)
        if first is None or second is None or second.op_type != "MatMul":
            continue
        names, _ = down(second.output[0], _LAYOUT)
        blocks.append(AttentionBlock(first.name, node.name, second.name, node.output[0], tuple(names)))
    return blocks
